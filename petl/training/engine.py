"""DeepSpeed set-up: one process or several, CPU or GPU, ZeRO stages 0 to 3, no C++ compilation on CPU.

Every rank of a process group trains its share of a step's micro-batches; what a run comes to depends
neither on the number of ranks nor on the ZeRO stage, except in rounding. Where parameters or moments are
partitioned (ZeRO 1 to 3), this file alone knows how to read and write them whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from petl.configuration import Training, check_offload
from petl.training.processes import device, join_process_group, prepare_process, rank, world_size

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from torch.optim import Optimizer
    from transformers import PreTrainedModel


MOMENTS: Final = ("exp_avg", "exp_avg_sq")
_OFFLOADED: Final = {"optimizer": "offload_optimizer", "parameters": "offload_param"}  # in DeepSpeed's words
_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_BUCKET: Final = 500_000_000  # elements; DeepSpeed's own

Before = list[tuple[dict[Any, Any], set[Any]]]  # tables that DeepSpeed adds to, and the keys that they had


def place(model: nn.Module, *, training: bool) -> None:
    """Move the model to this process's device, and into training or evaluation mode."""
    model.to(device()).train(training)


def autocast(precision: str) -> torch.autocast:
    """Return the context in which forward passes compute in `precision`, "fp32" or "bf16"; weights stay float32."""
    return torch.autocast(device().type, torch.bfloat16, enabled=precision == "bf16")


@dataclass(frozen=True)
class Engine:
    """A DeepSpeed engine, the torch optimizer inside it, and the hooks and attributes on the model before it.

    Under ZeRO-3 a parameter is an empty tensor outside of forward and backward passes: read it inside
    `gathered`. All methods are collective: every rank calls them, in the same order.
    """

    deepspeed: DeepSpeedEngine
    optimizer: Optimizer
    zero: int
    hooks: Before
    attributes: Before

    @contextmanager
    def gathered(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Make the parameters whole within the context, to be read only, on every rank.

        DeepSpeed's hooks are off: a module of these parameters may be called by one rank alone.
        """
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters(list(parameters)):  # leaves those that are not partitioned alone
            everything = [dict(table) for table, _ in self.hooks]
            _drop_added(self.hooks)
            try:
                yield
            finally:
                for (table, _), hooks in zip(self.hooks, everything, strict=True):
                    table.clear()  # their order counts
                    table.update(hooks)

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return AdamW's state of a trained parameter: `step` and, in the parameter's shape, MOMENTS.

        They are the same at every stage and world size, except that stage 0 has none before the first step.
        """
        if self.zero == 0:
            return dict(self.optimizer.state.get(parameter, {}))
        from deepspeed.utils import safe_get_full_optimizer_state

        step = self.optimizer.state[_flat(self.deepspeed)[0]]["step"].clone()
        return {"step": step} | {moment: safe_get_full_optimizer_state(parameter, moment) for moment in MOMENTS}

    def load(self, values: Mapping[nn.Parameter, Tensor], moments: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        """Set trained parameters, and what `moments` gave of each (nothing: the optimizer has made no step)."""
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters(list(values), modifier_rank=0), torch.no_grad():
            for parameter, value in values.items():
                parameter.copy_(value)
        placed = {parameter: _placed(state, parameter.device) for parameter, state in moments.items() if state}
        if self.zero:
            self._load_flat(values, placed)
            return
        for parameter, state in placed.items():
            self.optimizer.state[parameter] = state

    @property
    def skipped(self) -> bool:
        """Return whether a step was left out because its gradients were no numbers, as at ZeRO stages 1 to 3."""
        return bool(self.deepspeed.skipped_steps)

    def seek(self, micro_batch: int, step: int) -> None:
        """Set counters and learning rates to those after so many micro-batches of this rank, and steps."""
        self.deepspeed.micro_steps, self.deepspeed.global_steps = micro_batch, step
        scheduler = self.deepspeed.lr_scheduler
        scheduler.last_epoch = step
        for group, base, factor in zip(
            self.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(step)

    def close(self) -> None:
        """Give the model back as it was, whole, also after an error in a pass.

        DeepSpeed's own `destroy` leaves hooks, which hold the engine, and attributes on modules and
        parameters, by which the next engine would take them for its own.
        """
        model = self.deepspeed.module
        if self.zero == 3:
            _unpartition(self.deepspeed)
        self.deepspeed.destroy()
        _drop_added(self.hooks)
        _drop_added(self.attributes)
        for module in model.modules():
            module._parameters = dict(module._parameters)  # ZeRO-3's own kind of dictionary holds on to the module

    def _load_flat(
        self, values: Mapping[nn.Parameter, Tensor], moments: Mapping[nn.Parameter, Mapping[str, Tensor]]
    ) -> None:
        from deepspeed import utils

        if self.zero == 3:  # its writers of whole tensors fail where the ranks do not divide the size
            write, write_moment, part = utils.safe_set_local_fp32_param, utils.safe_set_local_optimizer_state, _part
        else:
            write, write_moment, part = utils.safe_set_full_fp32_param, utils.safe_set_full_optimizer_state, _whole
        for flat in _flat(self.deepspeed) if moments else ():
            self.optimizer.state[flat]["step"] = next(iter(moments.values()))["step"].clone()
        for parameter, value in values.items():
            write(parameter, part(parameter, value))
            for moment in MOMENTS if parameter in moments else ():
                write_moment(parameter, part(parameter, moments[parameter][moment]), moment)


def open_engine(
    model: PreTrainedModel,
    training: Training,
    steps: int,
    precision: str,
    *,
    zero: int = 0,
    offload: Collection[str] = (),
    persistent: int = 100_000,
) -> Engine:
    """Return DeepSpeed around what trains in `model`: AdamW, clipping, accumulation, a schedule over `steps`.

    Matrices decay; vectors (biases, norms, scales) do not. `zero` is the ZeRO stage: what is
    partitioned among the ranks, 0 nothing, 1 moments, 2 gradients too, 3 parameters too, frozen ones
    included, without those of up to `persistent` elements. `offload`, as `configuration.OFFLOAD` has it,
    is what lies in the host's memory and not in the GPU's. The micro-batches of a step are those of all
    ranks together, which DeepSpeed takes the mean of.

    Raises ValueError where the stage cannot offload that.
    """
    check_offload(zero, offload)
    prepare_process()
    import deepspeed
    from transformers import get_scheduler

    join_process_group()
    modules = list(model.modules())
    hooks = _before(getattr(module, table) for module in modules for table in _HOOKS)
    attributes = _before(map(vars, (*modules, *model.parameters())))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = _optimizer(trained, training)
    name = "constant_with_warmup" if training.schedule == "constant" else training.schedule
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=get_scheduler(name, optimizer, round(training.warmup * steps), steps),
        config={
            "train_micro_batch_size_per_gpu": training.batch_size,
            "gradient_accumulation_steps": training.accumulation // world_size(),
            "gradient_clipping": training.clip,
            "zero_optimization": {
                "stage": zero,
                "stage3_param_persistence_threshold": persistent,
                # A buffer that is allocated whole: 2 GB, where an adapter may need a thousandth.
                "reduce_bucket_size": min(_BUCKET, sum(parameter.numel() for parameter in trained)),
                **{_OFFLOADED[what]: {"device": "cpu", "pin_memory": device().type == "cuda"} for what in offload},
            },
            "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own AdamW would be compiled, and rounds otherwise
            "zero_allow_untested_optimizer": True,
            # Without these modules gradients and parameters travel in float32, as they do at stage 0.
            "torch_autocast": {
                "enabled": precision == "bf16",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            },
            "steps_per_print": 10**9,
        },
    )
    if zero:
        _begin_moments(engine, optimizer)
    return Engine(engine, optimizer, zero, hooks, attributes)


def _flat(engine: DeepSpeedEngine) -> list[Tensor]:
    """Return this rank's part of the float32 copy of what trains, as ZeRO 1 to 3 give it to AdamW, by group."""
    stage_3 = engine.zero_optimization_stage() == 3
    optimizer = engine.optimizer
    return list(optimizer.fp32_partitioned_groups_flat if stage_3 else optimizer.single_partition_of_fp32_groups)


def _begin_moments(engine: DeepSpeedEngine, optimizer: Optimizer) -> None:
    """Make AdamW's state before its first step, as AdamW would in that step.

    DeepSpeed 0.19 links parameters to their moments after the first group's first step, when
    the second group has none yet, and never again.
    """
    for flat in _flat(engine):
        optimizer.state[flat] = {"step": torch.tensor(0.0)} | {m: torch.zeros_like(flat) for m in MOMENTS}
    if engine.zero_optimization_stage() < 3:
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _before(tables: Iterable[dict[Any, Any]]) -> Before:
    return [(table, set(table)) for table in tables]


def _drop_added(before: Before) -> None:
    for table, keys in before:
        for added in table.keys() - keys:
            del table[added]


def _unpartition(engine: DeepSpeedEngine) -> None:
    """Make the parameters whole again, on every rank, and undo what ZeRO-3 did to the whole process."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses

    # What an interrupted pass left gathered, or half so, is let go of first.
    engine.optimizer.empty_partition_cache()
    parameters = list(engine.module.parameters())
    parameters[0].all_gather(param_list=parameters)
    modules = set(engine.module.modules())
    FWD_MODULE_STACK[:] = [module for module in FWD_MODULE_STACK if module not in modules]
    nn.functional.linear = InsertPostInitMethodToModuleSubClasses.linear_bk


def _placed(state: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return a copy of AdamW's state where it keeps it: its step counter is on the CPU."""
    return {name: value.to("cpu" if name == "step" else device, copy=True) for name, value in state.items()}


def _whole(parameter: nn.Parameter, value: Tensor) -> Tensor:
    return value


def _part(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Return this rank's part of a value of a ZeRO-3 parameter; the last rank's is padded."""
    size = vars(parameter)["ds_tensor"].numel()
    return pad(value.flatten(), (0, world_size() * size - value.numel())).narrow(0, rank() * size, size)


def _optimizer(trained: Iterable[nn.Parameter], training: Training) -> Optimizer:
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # DeepSpeed would drop an empty group itself, and the schedule, which counts them, would differ.
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=training.learning_rate,
        betas=(0.9, training.beta2),
        eps=training.epsilon,
    )
