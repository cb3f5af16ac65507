"""ZeRO stages 0 to 3 on one process and on two: the losses of a plain torch loop, whole tensors, the backbone back."""

from __future__ import annotations

import gc
import json
import socket
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scope import sampled
from studies import write_backbone, write_rows

from petl import backbones
from petl.adapters import storage
from petl.attach.attachment import attach
from petl.configuration import Configuration, Training
from petl.data.batches import epoch_batches
from petl.data.tokens import TaskData, load_data
from petl.presets import parse
from petl.tasks import resolve
from petl.training import run as train
from petl.training.evaluation import DivergedError, predict
from petl.training.processes import join_process_group, open_meeting_place
from petl.training.run import TrainingRun

STAGES = (0, 1, 2, 3)
DESIGNS = {
    "lora": "lora:rank=3,where=both",
    "bottlenecks": "houlsby:size=3+parallel:size=5",
    "mam": "mam:length=2,size=4,scale=4",
    "bitfit": "bitfit",
    "inner": "prompt:length=2+prefix:length=3,reparameterisation=6+multihead_parallel:size=3+ia3",
}
# 56 rows: an epoch is three steps of two micro-batches, of which one has a single row.
TRAINING = Training(
    learning_rate=2e-2,
    epochs=2.0,
    batch_size=11,
    accumulation=2,
    schedule="cosine",
    warmup=0.3,
    clip=0.5,
    weight_decay=0.1,
    dropout=0.0,
)
HALF, END = 1.0, 2.0


@dataclass(frozen=True)
class Plain:
    """The loss of each training step, and the validation split after the last one."""

    losses: list[float]
    validation_loss: float
    validation_accuracy: float


CASES = [(stage, design) for stage in STAGES for design in DESIGNS]
cases = pytest.mark.parametrize(("stage", "design"), CASES)
alone = pytest.mark.parametrize(
    ("stage", "design"),
    # two processes have all of them
    sampled("designs in one process, at stages of ZeRO", CASES, lambda case: case[0] in (0, 3)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine")
    write_backbone(path / "backbone")
    write_rows(path / "rows.csv", rows=101)
    return path


@pytest.fixture(scope="module")
def data(folder: Path) -> TaskData:
    return load(folder)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two processes on two cores, and matrices so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _every_step_is_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_LOG_EVERY", 1)


@pytest.fixture(scope="module")
def plain(folder: Path, data: TaskData) -> Mapping[str, Plain]:
    """By design, what a loop in plain torch comes to."""
    return {name: _in_plain_torch(folder, data, text) for name, text in DESIGNS.items()}


@pytest.fixture(scope="module")
def two_ranks(folder: Path, data: TaskData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two processes that trained together left; started once, since starting takes longest."""
    path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.start_processes(_rank, (folder, path), nprocs=2, start_method="spawn")
    return path


def load(folder: Path) -> TaskData:
    task = resolve({"name": "words", "paths": str(folder / "rows.csv"), "validation_rows": 29, "test_rows": 16})
    return load_data(task, backbones.load_tokenizer(str(folder / "backbone")))


def backbone(folder: Path, data: TaskData) -> Any:
    return backbones.load(str(folder / "backbone"), labels=data.labels, seed=3)  # the configurations' own


def configuration(design: str, training: Training = TRAINING) -> Configuration:
    return Configuration(parse(DESIGNS.get(design, design)), training, seed=3)


WITH_DROPOUT = configuration(
    "bottlenecks", Training(learning_rate=5e-3, epochs=2.0, batch_size=11, accumulation=2, dropout=0.3)
)


def losses(run: TrainingRun) -> list[float]:
    return [point.loss for point in run.position.points]


def whole(run: TrainingRun) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.state()[0].items()}


@alone
def test_one_process_loses_what_plain_torch_does(
    folder: Path, data: TaskData, plain: Mapping[str, Plain], stage: int, design: str
) -> None:
    run = TrainingRun(backbone(folder, data), data, configuration(design), zero=stage, persistent=0)
    run.advance(END)
    assert len(losses(run)) == 6
    np.testing.assert_allclose(losses(run), plain[design].losses, rtol=0, atol=1e-5)
    run.close()


@cases
def test_two_processes_lose_what_plain_torch_does(
    two_ranks: Path, plain: Mapping[str, Plain], stage: int, design: str
) -> None:
    for rank in (0, 1):
        report = _report(two_ranks, stage, design, rank)
        np.testing.assert_allclose(report["losses"], plain[design].losses, rtol=0, atol=1e-5)


@cases
def test_two_processes_measure_the_whole_validation_split(
    data: TaskData, two_ranks: Path, plain: Mapping[str, Plain], stage: int, design: str
) -> None:
    for rank in (0, 1):
        report = _report(two_ranks, stage, design, rank)
        assert report["scores"]["loss"] == pytest.approx(plain[design].validation_loss, abs=1e-5)
        assert report["scores"]["accuracy"] == pytest.approx(plain[design].validation_accuracy)
        assert report["tokens"] == 2 * int(data.splits["train"].lengths.sum())


@cases
def test_adapter_saved_by_two_processes_predicts_in_one_what_it_did_in_them(
    folder: Path, data: TaskData, two_ranks: Path, stage: int, design: str
) -> None:
    model = backbone(folder, data)
    where = two_ranks / f"{stage}-{design}"
    with storage.load_adapter(where / "adapter", model):
        logits = predict(model, data, "validation")
    theirs = load_file(where / "logits-0.safetensors")["logits"].numpy()
    np.testing.assert_allclose(logits, theirs, rtol=0, atol=1e-6)
    assert np.abs(logits - predict(model, data, "validation")).max() > 1e-2  # it did learn something


@pytest.mark.parametrize("stage", STAGES)
def test_state_of_two_processes_goes_on_in_one_at_stage_0(
    folder: Path, data: TaskData, two_ranks: Path, plain: Mapping[str, Plain], stage: int
) -> None:
    run = TrainingRun(backbone(folder, data), data, configuration("bottlenecks"))
    run.load(two_ranks / f"{stage}-bottlenecks")
    assert run.position.step == 3
    run.advance(END)
    np.testing.assert_allclose(losses(run), plain["bottlenecks"].losses, rtol=0, atol=1e-5)
    run.close()


@cases
def test_backbone_comes_back_from_two_processes_bit_for_bit(two_ranks: Path, stage: int, design: str) -> None:
    for rank in (0, 1):
        assert _report(two_ranks, stage, design, rank)["same"]


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_resume_bit_for_bit_with_dropout_too(two_ranks: Path, stage: int) -> None:
    for rank in (0, 1):
        report = json.loads((two_ranks / f"resumed-{stage}-{rank}.json").read_text())
        assert report["resumed"] == report["uninterrupted"]
        assert report["equal"]


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_lose_what_one_does_with_dropout_too(
    folder: Path, data: TaskData, two_ranks: Path, stage: int
) -> None:
    run = TrainingRun(backbone(folder, data), data, WITH_DROPOUT)
    run.advance(END)
    run.close()
    for rank in (0, 1):
        report = json.loads((two_ranks / f"resumed-{stage}-{rank}.json").read_text())
        np.testing.assert_allclose(report["uninterrupted"], losses(run), rtol=0, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_under_autocast_keep_float32_tensors(two_ranks: Path, stage: int) -> None:
    for rank in (0, 1):
        report = json.loads((two_ranks / f"bf16-{stage}-{rank}.json").read_text())
        assert np.isfinite(report["losses"]).all()
        assert report["same"]
        assert report["rounded"] == []  # names of the trained tensors that bfloat16 holds exactly


@pytest.mark.parametrize("stage", STAGES)
def test_resumed_run_equals_uninterrupted_one_bit_for_bit(
    folder: Path, data: TaskData, tmp_path: Path, stage: int
) -> None:
    training = Training(learning_rate=5e-3, epochs=2.0, batch_size=11, accumulation=2)
    what = configuration("bottlenecks", training)
    run = TrainingRun(backbone(folder, data), data, what, zero=stage, persistent=0)
    run.advance(HALF)
    run.save(tmp_path)
    run.advance(END)
    again = TrainingRun(backbone(folder, data), data, what, zero=stage, persistent=0)
    again.load(tmp_path)
    again.advance(END)
    assert losses(again) == losses(run)
    first, second = whole(run), whole(again)
    run.close()
    again.close()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("stage", [1, 3])
def test_state_before_the_first_step_begins_anew(folder: Path, data: TaskData, tmp_path: Path, stage: int) -> None:
    what = configuration("bottlenecks")
    fresh = TrainingRun(backbone(folder, data), data, what)
    fresh.save(tmp_path)
    run = TrainingRun(backbone(folder, data), data, what, zero=stage, persistent=0)
    run.load(tmp_path)
    fresh.advance(END)
    run.advance(END)
    run.close()
    np.testing.assert_allclose(losses(run), losses(fresh), rtol=0, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_used_backbone_is_as_good_as_a_fresh_one(folder: Path, data: TaskData, stage: int) -> None:
    model = backbone(folder, data)
    attributes = [set(vars(part)) for part in (*model.modules(), *model.parameters())]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    used = TrainingRun(model, data, configuration("lora"), zero=stage, persistent=0)
    used.advance(HALF)
    engine = weakref.ref(used._engine.deepspeed)
    used.close()
    assert _same(model, before)
    assert [set(vars(part)) for part in (*model.modules(), *model.parameters())] == attributes
    del used
    gc.collect()
    assert engine() is None  # nothing on the model holds it

    assert torch.nn.functional.linear is torch._C._nn.linear

    for zero in {stage, 0}:
        second = TrainingRun(model, data, configuration("bottlenecks"), zero=zero, persistent=0)
        fresh = TrainingRun(backbone(folder, data), data, configuration("bottlenecks"), zero=zero, persistent=0)
        for run in (second, fresh):
            run.advance(END)
            run.close()
        # Equal weights, but ZeRO-3 gives them back at other addresses, by which a CPU may choose another kernel.
        np.testing.assert_allclose(losses(second), losses(fresh), rtol=0, atol=1e-6 if stage == 3 else 0)


@pytest.mark.parametrize("stage", STAGES)
def test_backbone_comes_back_from_a_run_that_failed(
    folder: Path, data: TaskData, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    model = backbone(folder, data)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    diverging = Training(learning_rate=1e30, epochs=1.0, batch_size=11, clip=0.0)
    run = TrainingRun(model, data, configuration("bottlenecks", diverging), zero=stage, persistent=0)
    with pytest.raises(DivergedError):
        run.advance(END)
    run.close()
    assert _same(model, before)

    run = TrainingRun(model, data, configuration("bottlenecks"), zero=stage, persistent=0)
    run.advance(HALF)
    with monkeypatch.context() as patch:
        last = model.get_submodule("bert.encoder.layer.1.output.LayerNorm")
        patch.setattr(last, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.advance(END)
    run.close()
    assert _same(model, before)
    run = TrainingRun(model, data, configuration("lora"), zero=stage, persistent=0)
    run.advance(0.1)
    run.close()


@pytest.mark.parametrize("stage", STAGES)
def test_step_under_autocast(folder: Path, data: TaskData, stage: int) -> None:
    model = backbone(folder, data)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run = TrainingRun(model, data, configuration("lora"), "bf16", zero=stage, persistent=0)
    run.advance(HALF)
    assert np.isfinite(losses(run)).all()
    assert {tensor.dtype for tensor in whole(run).values()} == {torch.float32}
    run.close()
    assert _same(model, before)


def test_gradients_that_are_no_numbers_are_divergence_at_every_stage(folder: Path, data: TaskData) -> None:
    """ZeRO leaves such a step out, where plain torch would spoil the weights."""
    for stage in STAGES:
        run = TrainingRun(backbone(folder, data), data, configuration("lora"), zero=stage, persistent=0)
        _, parameter = next(run.attachment.named_parameters())
        parameter.register_hook(lambda gradient: gradient * float("nan"))
        with pytest.raises(DivergedError):
            run.advance(END)
        run.close()


def test_group_that_cannot_be_joined_is_refused() -> None:
    with pytest.raises(ValueError, match="received rank 2 of 2"):
        join_process_group(2, 2, "tcp://localhost:1")
    with pytest.raises(ValueError, match="init_method"):
        join_process_group(0, 2)


def test_micro_batches_that_two_processes_cannot_share_are_refused(two_ranks: Path) -> None:
    for rank in (0, 1):
        assert "accumulation is a multiple of the 2 workers; received 3" in (two_ranks / f"odd-{rank}.txt").read_text()


def _in_plain_torch(folder: Path, data: TaskData, design: str) -> Plain:
    """The run of TRAINING in one process and plain torch, schedule and clipping written out."""
    model = backbone(folder, data).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    parameters = [parameter for _, parameter in attach(model, parse(design), seed=3).named_parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
    )
    result = []
    batches = [index for epoch in (0, 1) for index in epoch_batches(data.splits["train"].lengths, 11, 3, epoch)]
    for step, pair in enumerate(zip(batches[::2], batches[1::2], strict=True)):
        rate = step / 2 if step < 2 else 0.5 * (1 + np.cos(np.pi * (step - 2) / 4))
        for group in optimizer.param_groups:
            group["lr"] = 2e-2 * rate
        rows = [data.batch("train", index) for index in pair]
        summed = [torch.nn.functional.cross_entropy(model(**i).logits, labels, reduction="sum") for i, labels in rows]
        loss = sum(summed) / sum(len(labels) for _, labels in rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        result.append(loss.item())
    inputs, labels = data.batch("validation", range(len(data.splits["validation"])))
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    accuracy = float((logits.argmax(-1) == labels).float().mean())
    return Plain(result, float(torch.nn.functional.cross_entropy(logits, labels)), accuracy)


def test_port_of_a_meeting_place_is_taken_before_anybody_meets() -> None:
    place, server = open_meeting_place("127.0.0.1")
    port = int(place.removeprefix("tcp://127.0.0.1:"))
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    group = torch.distributed.TCPStore("127.0.0.1", port, 1, True, multi_tenant=True)  # as rank 0's group makes it
    group.set("who", "rank 0")
    assert server.get("who") == b"rank 0"  # type: ignore[attr-defined]


def _rank(rank: int, folder: Path, out: Path) -> None:
    """One of two processes, and all that it trains: what it saw goes to files."""
    torch.set_num_threads(1)
    train._LOG_EVERY = 1  # type: ignore[misc]
    join_process_group(rank, 2, f"file://{out}/store")
    data = load(folder)
    model = backbone(folder, data)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for stage in STAGES:
        for design in DESIGNS:
            where = out / f"{stage}-{design}"
            where.mkdir(exist_ok=True)
            run = TrainingRun(model, data, configuration(design), zero=stage, persistent=0)
            run.advance(HALF)
            run.save(where if rank == 0 else None)
            scores = run.advance(END).scores
            logits = torch.from_numpy(predict(model, data, "validation"))
            save_file({"logits": logits}, where / f"logits-{rank}.safetensors")
            with run.gathered():
                if rank == 0:
                    described = backbones.describe(str(folder / "backbone"))
                    storage.save(where / "adapter", run.attachment, described, {"labels": list(data.labels)})
            run.close()
            _write(
                where / f"report-{rank}.json",
                losses=losses(run),
                scores=scores,
                tokens=run.position.tokens,
                same=_same(model, before),
            )
        _resume(rank, model, data, out, stage)
        with pytest.raises(ValueError, match="accumulation") as refusal:
            TrainingRun(model, data, configuration("lora", Training(accumulation=3)), zero=stage)
        (out / f"odd-{rank}.txt").write_text(str(refusal.value))
        run = TrainingRun(model, data, configuration("bottlenecks"), "bf16", zero=stage)
        run.advance(HALF)
        rounded = [name for name, t in whole(run).items() if "model." in name and torch.equal(t, t.bfloat16().float())]
        run.close()
        _write(out / f"bf16-{stage}-{rank}.json", losses=losses(run), rounded=rounded, same=_same(model, before))


def _resume(rank: int, model: Any, data: TaskData, out: Path, stage: int) -> None:
    where = out / f"resumed-{stage}"
    where.mkdir(exist_ok=True)
    first = TrainingRun(model, data, WITH_DROPOUT, zero=stage, persistent=0)
    first.advance(HALF)
    first.save(where if rank == 0 else None)
    torch.distributed.barrier()
    first.advance(END)
    expected = whole(first)
    first.close()
    second = TrainingRun(model, data, WITH_DROPOUT, zero=stage, persistent=0)
    second.load(where)
    second.advance(END)
    tensors = whole(second)
    second.close()
    equal = tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in tensors)
    _write(out / f"resumed-{stage}-{rank}.json", uninterrupted=losses(first), resumed=losses(second), equal=equal)


def _same(model: Any, before: Mapping[str, torch.Tensor]) -> bool:
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def _write(path: Path, **report: Any) -> None:
    path.write_text(json.dumps(report))


def _report(out: Path, stage: int, design: str, rank: int) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / f"{stage}-{design}" / f"report-{rank}.json").read_text())
    return report


@pytest.mark.parametrize(
    ("stage", "offload"),
    [(1, ("optimizer",)), (2, ("optimizer",)), (3, ("parameters",)), (3, ("optimizer", "parameters"))],
)
def test_offload_changes_neither_losses_nor_a_resume(
    folder: Path, data: TaskData, plain: Mapping[str, Plain], tmp_path: Path, stage: int, offload: tuple[str, ...]
) -> None:
    def begin() -> TrainingRun:
        return TrainingRun(
            backbone(folder, data), data, configuration("mam"), zero=stage, offload=offload, persistent=0
        )

    run = begin()
    run.advance(HALF)
    run.save(tmp_path)
    run.advance(END)
    np.testing.assert_allclose(losses(run), plain["mam"].losses, rtol=0, atol=1e-5)
    run.close()
    again = begin()
    again.load(tmp_path)
    again.advance(END)
    assert losses(again) == losses(run)
    again.close()


def test_what_a_stage_cannot_offload_is_said(folder: Path, data: TaskData) -> None:
    for stage, offload in ((0, "optimizer"), (2, "parameters"), (3, "activations")):
        with pytest.raises(ValueError, match=f"received '{offload}' at stage {stage}"):
            TrainingRun(backbone(folder, data), data, configuration("lora"), zero=stage, offload=(offload,))
