"""DeepSpeed set-up: one process, CPU or GPU, no C++ compilation on CPU."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from petl.configuration import Training

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from torch.optim import Optimizer
    from transformers import PreTrainedModel


def device() -> torch.device:
    """The GPU that this process was given, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def place(model: nn.Module, *, training: bool) -> None:
    """Moves the model to this process's device, and into training or evaluation mode."""
    model.to(device()).train(training)


def autocast(precision: str) -> torch.autocast:
    """The context in which forward passes compute in `precision`, "fp32" or "bf16"; weights stay float32."""
    return torch.autocast(device().type, torch.bfloat16, enabled=precision == "bf16")


def prepare_process() -> None:
    """Settings that libraries read when they are imported: call it before transformers is.

    No chatter, no threads of the tokenizer's own, no telemetry.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if device().type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*", category=FutureWarning)


@dataclass(frozen=True)
class Engine:
    """A DeepSpeed engine, the torch optimizer inside it, and the hooks that it left on the model."""

    deepspeed: DeepSpeedEngine
    optimizer: Optimizer
    hooks: list[tuple[dict[int, Any], int]]

    def close(self) -> None:
        """Gives the model back as it was. DeepSpeed's own `destroy` leaves its hooks, which hold the engine."""
        self.deepspeed.destroy()
        for table, key in self.hooks:
            table.pop(key, None)


@cache
def join_process_group() -> tempfile.TemporaryDirectory[str]:
    """A process group of one, over a file: there is no port to collide on. Once per process.

    The folder of the file goes with the process.
    """
    import deepspeed
    import deepspeed.ops

    if device().type == "cpu":
        # Otherwise init_distributed compiles this op for half a minute, and a stale lock hangs it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    store = tempfile.TemporaryDirectory(prefix="petl-store-")
    deepspeed.init_distributed(
        "gloo" if device().type == "cpu" else "nccl",
        auto_mpi_discovery=False,
        rank=0,
        world_size=1,
        init_method=f"file://{store.name}/store",
        verbose=False,
    )
    return store


def open_engine(model: PreTrainedModel, training: Training, steps: int, precision: str) -> Engine:
    """DeepSpeed around what trains in `model`: AdamW, clipping, accumulation, a schedule over `steps`.

    Matrices decay; vectors (biases, norms, scales) do not.
    """
    prepare_process()
    import deepspeed
    from transformers import get_scheduler

    join_process_group()
    optimizer = _optimizer(model, training)
    hooks = _hooks(model)
    name = "constant_with_warmup" if training.schedule == "constant" else training.schedule
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=get_scheduler(name, optimizer, round(training.warmup * steps), steps),
        config={
            "train_micro_batch_size_per_gpu": training.batch_size,
            "gradient_accumulation_steps": training.accumulation,
            "gradient_clipping": training.clip,
            "zero_optimization": {"stage": 0},
            "zero_allow_untested_optimizer": True,
            "torch_autocast": {"enabled": precision == "bf16", "dtype": "bfloat16"},
            "steps_per_print": 10**9,
        },
    )
    return Engine(engine, optimizer, [added for added in _hooks(model) if added not in hooks])


def _hooks(model: PreTrainedModel) -> list[tuple[dict[int, Any], int]]:
    tables = (model._forward_hooks, model._forward_pre_hooks, model._backward_hooks, model._backward_pre_hooks)
    return [(table, key) for table in tables for key in table]


def _optimizer(model: PreTrainedModel, training: Training) -> Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = (
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    )
    # DeepSpeed drops an empty group, and the schedule would then count one more than there is.
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=training.learning_rate)
