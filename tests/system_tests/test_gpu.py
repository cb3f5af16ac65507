"""What only a GPU shows: nccl, offload, bf16, the same bits again, fractions of a GPU, and its memory given back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from studies import study, write_backbone, write_rows
from torch import distributed
from transformers import BertConfig, BertForSequenceClassification

from petl import backbones
from petl.configuration import Configuration, Training
from petl.data.tokens import TaskData, load_data
from petl.presets import parse
from petl.tasks import resolve
from petl.training import processes
from petl.training import run as train
from petl.training.evaluation import predict
from petl.training.run import TrainingRun, fastest_precision
from search import run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU (make test-gpu)")

DESIGNS = ("lora:rank=3,where=both", "mam:length=2,size=4,scale=4", "bitfit", "houlsby:size=3", "full")
TRAINING = Training(learning_rate=5e-3, epochs=2.0, batch_size=11, accumulation=2)
HALF, END = 1.0, 2.0
SHARDED = [
    (1, ()),
    (2, ()),
    (3, ()),
    (1, ("optimizer",)),
    (2, ("optimizer",)),
    (3, ("parameters",)),
    (3, ("optimizer", "parameters")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu")
    write_backbone(path / "backbone")
    write_rows(path / "rows.csv", rows=101)
    return path


@pytest.fixture(scope="module")
def data(folder: Path) -> TaskData:
    task = resolve({"name": "words", "paths": str(folder / "rows.csv"), "validation_rows": 29, "test_rows": 16})
    return load_data(task, backbones.load_tokenizer(str(folder / "backbone")))


@pytest.fixture(autouse=True)
def _every_step_is_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_LOG_EVERY", 1)


@pytest.fixture
def begin(folder: Path, data: TaskData) -> Callable[..., TrainingRun]:
    def begun(design: str, training: Training = TRAINING, precision: str = "fp32", **options: Any) -> TrainingRun:
        model = backbones.load(str(folder / "backbone"), labels=data.labels, seed=3)
        return TrainingRun(model, data, Configuration(parse(design), training, seed=3), precision, **options)

    return begun


def losses(run: TrainingRun) -> list[float]:
    return [point.loss for point in run.position.points]


def trained(run: TrainingRun) -> dict[str, torch.Tensor]:
    run.advance(END)
    tensors = run.state()[0]
    run.close()
    return tensors


def test_processes_talk_by_nccl() -> None:
    processes.join_process_group()
    assert distributed.get_backend() == "nccl"
    assert processes.device().type == "cuda"


@pytest.mark.parametrize("design", DESIGNS)
def test_the_same_run_again_has_the_same_bits(begin: Callable[..., TrainingRun], design: str) -> None:
    first, second = trained(begin(design)), trained(begin(design))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_bf16_has_the_same_bits_again_too(begin: Callable[..., TrainingRun]) -> None:
    first, second = (trained(begin("mam:length=2,size=4,scale=4", precision="bf16")) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_resumed_run_equals_uninterrupted_one_bit_for_bit(begin: Callable[..., TrainingRun], tmp_path: Path) -> None:
    whole = begin("mam:length=2,size=4,scale=4")
    whole.advance(HALF)
    whole.save(tmp_path)
    expected = trained(whole)
    again = begin("mam:length=2,size=4,scale=4")
    again.load(tmp_path)
    found = trained(again)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(("stage", "offload"), SHARDED)
def test_zero_and_offload_change_nothing(
    begin: Callable[..., TrainingRun], stage: int, offload: tuple[str, ...]
) -> None:
    plain, sharded = (
        begin("houlsby:size=3+bitfit", zero=0),
        begin("houlsby:size=3+bitfit", zero=stage, offload=offload, persistent=0),
    )
    for each in (plain, sharded):
        each.advance(END)
        each.close()
    np.testing.assert_allclose(losses(sharded), losses(plain), rtol=0, atol=1e-5)


def test_predictions_are_those_of_the_cpu(begin: Callable[..., TrainingRun], data: TaskData) -> None:
    begun = begin("mam:length=2,size=4,scale=4")
    begun.advance(END)
    here = predict(begun.model, data, "validation")
    inputs, _ = data.batch("validation", np.arange(29))
    with torch.no_grad():
        there = begun.model.to("cpu")(**inputs).logits.numpy()
    np.testing.assert_allclose(here, there, rtol=0, atol=1e-4)


def test_bf16_computes_in_bfloat16_and_keeps_weights_in_float32(begin: Callable[..., TrainingRun]) -> None:
    half, whole = (begin("lora:rank=3", precision=precision) for precision in ("bf16", "fp32"))
    seen: set[torch.dtype] = set()
    linear = next(module for module in half.model.modules() if isinstance(module, torch.nn.Linear))
    handle = linear.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    for each in (half, whole):
        each.advance(END)
    handle.remove()
    assert torch.bfloat16 in seen
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
    assert losses(half) != losses(whole)
    np.testing.assert_allclose(losses(half), losses(whole), rtol=0.05)
    half.close()
    whole.close()


def test_bf16_is_the_fastest_on_a_model_of_some_size() -> None:
    wide = BertConfig(vocab_size=1000, hidden_size=4096, num_hidden_layers=2, num_attention_heads=32)
    wide.intermediate_size = 16384
    assert fastest_precision(BertForSequenceClassification(wide)) == "bf16"


def test_offloaded_parameters_leave_the_gpu(folder: Path, data: TaskData) -> None:
    deep = BertConfig(
        vocab_size=len(data.tokenizer),
        hidden_size=512,
        num_hidden_layers=24,
        num_attention_heads=8,
        num_labels=len(data.labels),
    )
    peaks = {}
    for stage, offload in ((0, ()), (3, ()), (3, ("parameters",))):
        model = BertForSequenceClassification(deep)
        weights = 4 * sum(parameter.numel() for parameter in model.parameters()) / 1e6  # MB
        begun = TrainingRun(
            model,
            data,
            Configuration(parse("lora:rank=3"), TRAINING, seed=3),
            zero=stage,
            offload=offload,
            persistent=0,
        )
        begun.advance(END)
        peaks[stage, offload] = begun.position.peak_memory_mb
        begun.close()
        model.to("cpu")
    assert peaks[0, ()] > weights
    assert peaks[3, ("parameters",)] < 0.7 * peaks[3, ()]


class Watch(threading.Thread):
    """The most workers of this process that were there at once, and the least memory that was free."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.workers, self.free = 0, free_memory()

    def run(self) -> None:
        while not self.ended.wait(0.2):
            children = psutil.Process().children(recursive=True)
            with suppress(psutil.NoSuchProcess):
                titles = [" ".join(child.cmdline()) for child in children]
                self.workers = max(self.workers, sum(title.startswith("ray::Resource") for title in titles))
            self.free = min(self.free, free_memory())


def free_memory() -> float:
    """In MB, of the whole GPU."""
    return torch.cuda.mem_get_info()[0] / 1e6


def validation_losses(folder: Path, name: str, **resources: Any) -> tuple[list[float | None], Watch]:
    """Of a list of designs, in its order, and what was seen while they trained."""
    content = study(
        folder,
        rows=1000,
        study=name,
        designs={design: design for design in (*DESIGNS[:-1], "prefix:length=2", "lora:rank=5", "ia3")},
        seeds=[1, 2],
        budget={"epochs": 2},
        objectives={"score": "loss"},
        resources=resources,
    )
    for section in ("space", "constraints", "references", "sampler"):
        del content[section]
    watch = Watch()
    watch.start()
    found = run(content)
    watch.ended.set()
    watch.join()
    return [trial.score for trial in found.trials], watch


def test_trials_share_a_gpu_and_leave_nothing_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path / "home"))
    torch.zeros(1, device="cuda")
    before = free_memory()
    alone, _ = validation_losses(tmp_path, "alone", gpus_per_trial=1, concurrent=1)
    together, watch = validation_losses(tmp_path, "together", gpus_per_trial=0.25, cpus_per_trial=1, concurrent=4)
    assert None not in alone
    assert alone == together  # bit for bit, whoever else is on the GPU
    assert watch.workers == 4
    assert watch.free < before - 1000  # four CUDA contexts
    deadline = time.monotonic() + 30
    while free_memory() < before - 100 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert free_memory() >= before - 100


def test_trials_without_a_gpu_see_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path / "home"))
    torch.zeros(1, device="cuda")
    before = free_memory()
    found, watch = validation_losses(tmp_path, "none", gpus_per_trial=0, concurrent=2)
    assert None not in found
    assert watch.free >= before - 100


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_lose_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path / "home"))
    for stage in range(4):
        one, _ = validation_losses(tmp_path, f"one-{stage}", gpus_per_trial=1, concurrent=1, zero_stage=stage)
        resources = {"gpus_per_trial": 2, "workers_per_trial": 2, "concurrent": 1, "zero_stage": stage}
        two, _ = validation_losses(tmp_path, f"two-{stage}", **resources)
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-4)
