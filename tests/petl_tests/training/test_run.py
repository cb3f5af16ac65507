"""Training: the loop against plain torch, its schedule against the formula, resuming bit for bit."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tokens
import torch
from studies import write_backbone, write_rows
from tokens import write_lines
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    MBartConfig,
    MBartModel,
    T5Config,
    T5EncoderModel,
)

from petl import backbones
from petl.attach.attachment import attach
from petl.backbones.count import count
from petl.configuration import Configuration, Training
from petl.data.batches import epoch_batches
from petl.data.tokens import TaskData, load_data
from petl.presets import parse
from petl.tasks import resolve
from petl.training.evaluation import DivergedError, Evaluation, evaluate
from petl.training.run import TrainingRun, fastest_precision, set_dropout

DESIGNS = ("lora:rank=2,where=both", "mam:length=2,size=4,scale=4", "houlsby:size=3", "bitfit", "head_only", "full")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train")
    write_backbone(path / "backbone")
    write_rows(path / "rows.csv", rows=150)
    return path


@pytest.fixture(scope="module")
def data(folder: Path) -> TaskData:
    task = resolve({"name": "words", "paths": str(folder / "rows.csv"), "validation_rows": 30, "test_rows": 20})
    return load_data(task, backbones.load_tokenizer(str(folder / "backbone")))


def load(folder: Path, data: TaskData) -> Any:
    return backbones.load(str(folder / "backbone"), labels=data.labels, seed=3)  # the configurations' own


def configuration(design: str, **training: Any) -> Configuration:
    settings = {"learning_rate": 5e-3, "epochs": 2.0, "batch_size": 16, "accumulation": 1, **training}
    return Configuration(parse(design), Training(**settings), seed=3)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_resumed_run_equals_uninterrupted_one_bit_for_bit(
    folder: Path, data: TaskData, design: str, accumulation: int
) -> None:
    what = configuration(design, accumulation=accumulation, schedule="cosine")
    whole = TrainingRun(load(folder, data), data, what)
    whole.advance(1.0)
    whole.advance(2.0)

    first = TrainingRun(load(folder, data), data, what)
    first.advance(1.0)
    tensors, position = first.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    first.close()
    second = TrainingRun(load(folder, data), data, what)
    second.restore(tensors, position)
    second.advance(2.0)

    assert second.position.validations[-1].scores == whole.position.validations[-1].scores
    assert [point.loss for point in second.position.points] == [point.loss for point in whole.position.points]
    (a, _), (b, _) = whole.state(), second.state()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_state_holds_what_trains_and_nothing_frozen(folder: Path, data: TaskData) -> None:
    run = TrainingRun(load(folder, data), data, configuration("mam:length=2,size=4,scale=4"))
    run.advance(1.0)
    tensors, _ = run.state()
    trained = {name for name, _ in run.attachment.named_parameters()}
    assert {name.removeprefix("model.") for name in tensors if name.startswith("model.")} == trained
    for moment in ("exp_avg", "exp_avg_sq", "step"):
        prefix = f"optimizer.{moment}."
        assert {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)} == trained
    assert len(tensors) == 4 * len(trained)


def test_same_configuration_gives_the_same_score_on_a_used_backbone(folder: Path, data: TaskData) -> None:
    model = load(folder, data)
    before = evaluate(model, data, "validation")
    results = []
    for design in ("lora:rank=2", "full", "lora:rank=2"):
        run = TrainingRun(model, data, configuration(design))
        results.append(run.advance(2.0).scores)
        run.close()
    assert results[0] == results[2] != results[1]
    assert evaluate(model, data, "validation") == before


def test_each_seed_has_a_head_of_its_own_and_the_backbone_keeps_its(folder: Path, data: TaskData) -> None:
    model = load(folder, data)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for seed in (3, 4):
        what = replace(configuration("lora:rank=2,head=false"), seed=seed)
        run = TrainingRun(model, data, what)
        drawn = backbones.load(str(folder / "backbone"), labels=data.labels, seed=seed)
        assert torch.equal(run.attachment.head_state_dict()["classifier.weight"], drawn.classifier.weight)
        assert torch.equal(drawn.classifier.weight, before["classifier.weight"]) == (seed == 3)
        run.close()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_loop_equals_plain_torch(folder: Path, data: TaskData) -> None:
    """The same batches, AdamW, schedule and clipping written out in torch give the same weights."""
    what = configuration("lora:rank=2", epochs=1.0, warmup=0.25, clip=0.5, weight_decay=0.1)
    run = TrainingRun(_without_dropout(load(folder, data)), data, what)
    run.advance(1.0)
    ours, _ = run.state()

    model = _without_dropout(load(folder, data)).train()
    attachment = attach(model, what.design, seed=what.seed)
    parameters = dict(attachment.named_parameters())
    matrices = [p for p in parameters.values() if p.ndim > 1]
    vectors = [p for p in parameters.values() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=5e-3
    )
    batches = epoch_batches(data.splits["train"].lengths, 16, what.seed, 0)
    steps, warm = len(batches), round(0.25 * len(batches))
    for step, index in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (step / warm if step < warm else (steps - step) / (steps - warm))
        inputs, labels = data.batch("train", index)
        loss = torch.nn.functional.cross_entropy(model(**inputs).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*parameters.values()], 0.5)
        optimizer.step()
    for name, parameter in parameters.items():
        torch.testing.assert_close(ours[f"model.{name}"], parameter.detach(), rtol=0, atol=1e-6)


def test_accumulation_equals_a_larger_batch(folder: Path, data: TaskData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dropout, two micro-batches of 8 rows have the gradient of one batch of the same 16."""

    def in_order(lengths: np.ndarray, size: int, seed: int, epoch: int, tokens: int) -> list[np.ndarray]:
        return np.split(np.arange(len(lengths)), range(size, len(lengths), size))

    monkeypatch.setattr("petl.training.run.epoch_batches", in_order)
    gradients = []
    for batch_size, accumulation in ((8, 2), (16, 1)):
        what = configuration("full", batch_size=batch_size, accumulation=accumulation, clip=0.0)
        run = TrainingRun(_without_dropout(load(folder, data)), data, what)
        run.advance(what.training.epochs / run.steps)
        assert run.position.step == 1
        gradients.append({name: t for name, t in run.state()[0].items() if ".exp_avg." in name})
    for name, tensor in gradients[0].items():
        torch.testing.assert_close(tensor, gradients[1][name], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("loss_over", "weights"), [("step", (1 / 44, 1 / 44)), ("micro-batch", (1 / 80, 1 / 8))])
def test_a_step_weighs_tokens_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss_over: str, weights: tuple[float, float]
) -> None:
    """Two rows with targets of 20 tokens, end included, then two of 2: 40 and 4 of the 44 tokens of the step."""
    rows = [{"source": f"s{row}", "target": "a" * (19 if row < 2 else 1)} for row in range(4)]
    write_lines(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    paths = {split: str(tmp_path / "rows.jsonl") for split in ("train", "validation")}
    task = resolve({"name": "t", "kind": "summarization", "paths": paths})
    data = load_data(task, tokens.of_bytes(), decoder_only=True)
    monkeypatch.setattr("petl.training.run.epoch_batches", lambda *_: [np.array([0, 1]), np.array([2, 3])])
    settings = {"batch_size": 2, "accumulation": 2, "epochs": 1.0, "loss_over": loss_over, "clip": 0.0, "dropout": 0.0}
    what = Configuration(parse("bitfit"), Training(**settings))
    run = TrainingRun(tiny.model("gpt2", generates=True, vocab_size=257), data, what, generates=False)
    run.advance(1.0)
    ours = {name.removeprefix("optimizer.exp_avg."): t for name, t in run.state()[0].items() if ".exp_avg." in name}
    ours = {name: 10 * moment for name, moment in ours.items()}  # after one step it is a tenth of the gradient

    model = tiny.model("gpt2", generates=True, vocab_size=257)
    set_dropout(model.train(), 0.0)
    parameters = dict(attach(model, what.design, seed=what.seed).named_parameters())
    loss = torch.zeros(())
    for index, weight in zip(([0, 1], [2, 3]), weights, strict=True):
        inputs, labels = data.batch("train", index)
        for logits, wanted in zip(model(**inputs).logits.flatten(0, 1), labels.flatten(), strict=True):
            if wanted >= 0:
                loss = loss - weight * logits.log_softmax(-1)[wanted]
    loss.backward()
    assert [point.loss for point in run.position.points] == pytest.approx([loss.item()], rel=1e-5)
    for name, parameter in parameters.items():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_each_micro_batch_of_a_step_drops_what_it_draws_itself(
    folder: Path, data: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows twice in a step: their logits differ by the dropout alone."""
    monkeypatch.setattr("petl.training.run.epoch_batches", lambda *_: [np.arange(8)] * 8)
    model = load(folder, data)
    run = TrainingRun(model, data, configuration("head_only", batch_size=16, accumulation=2, dropout=0.5))
    seen: list[torch.Tensor] = []
    hook = model.classifier.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    run._train(1)
    hook.remove()
    run.close()
    assert len(seen) == 2
    assert not torch.equal(*seen)


def test_a_resumed_run_ends_with_the_best_weights_of_before(
    folder: Path, data: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = configuration("bitfit", keep="loss", epochs=2.0)
    losses = iter([0.1, 0.9])
    monkeypatch.setattr("petl.training.run.evaluate", lambda *_, **__: Evaluation({"loss": next(losses)}))
    first = TrainingRun(load(folder, data), data, what)
    first.advance(1.0)
    best = {name: tensor.clone() for name, tensor in first.attachment.state_dict().items()}
    second = TrainingRun(load(folder, data), data, what)
    second.restore(*first.state())
    second.advance(2.0)
    trained = second.attachment.state_dict()
    assert not any(torch.equal(trained[name], tensor) for name, tensor in best.items() if tensor.any())
    second.finish()
    for name, tensor in second.attachment.state_dict().items():
        assert torch.equal(tensor, best[name])


@pytest.mark.parametrize(
    ("score", "values", "best"),
    [("loss", [0.5, 0.5], 0), ("accuracy", [0.5, 0.5], 0), ("loss", [0.5, 0.4], 1), ("accuracy", [0.5, 0.6], 1)],
)
def test_of_equal_validations_the_first_is_the_best(
    folder: Path, data: TaskData, monkeypatch: pytest.MonkeyPatch, score: str, values: list[float], best: int
) -> None:
    """It took less training, and one that is no better counts against patience."""
    given = iter(values)
    monkeypatch.setattr("petl.training.run.evaluate", lambda *_, **__: Evaluation({score: next(given)}))
    run = TrainingRun(load(folder, data), data, configuration("bitfit", keep=score, patience=1, epochs=3.0))
    run.advance(1.0)
    run.advance(2.0)
    assert run.position.best == best
    assert run.finished == (best == 0)
    run.close()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_learning_rate_follows_the_formula(folder: Path, data: TaskData, schedule: str) -> None:
    what = configuration("bitfit", epochs=4.0, schedule=schedule, warmup=0.1, learning_rate=1e-3)
    run = TrainingRun(load(folder, data), data, what)
    run.advance(4.0)
    steps, warm = run.steps, round(0.1 * run.steps)
    for point in run.position.points:
        step = point.step - 1  # the rate that the step was taken with
        share = (step - warm) / (steps - warm)
        falling = {"linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share)), "constant": 1.0}[schedule]
        assert point.learning_rate == pytest.approx(1e-3 * (step / warm if step < warm else falling))


def test_training_learns_and_measures(folder: Path, data: TaskData) -> None:
    what = configuration("lora:rank=8,where=both", epochs=12.0, learning_rate=1e-2)
    run = TrainingRun(load(folder, data), data, what)
    early, late = run.advance(1.0), run.advance(12.0)
    assert late.scores["loss"] < early.scores["loss"]
    assert late.scores["accuracy"] > 0.6  # three classes: guessing gives a third
    counts = count(what.design, backbones.describe(str(folder / "backbone")), len(data.labels))
    measured = run.measurements(counts)
    assert measured.accuracy == late.scores["accuracy"]
    assert measured.stored_parameters == sum(t.numel() for t in run.attachment.state_dict().values())
    assert measured.epochs == 12.0
    assert measured.steps == run.steps
    assert measured.seconds > 0
    assert measured.latency_ms > 0
    assert measured.tokens_per_second > 0
    assert measured.peak_memory_mb > 50  # torch alone is more
    assert run.position.tokens == 12 * int(data.splits["train"].lengths.sum())


def test_divergence_is_an_error_of_its_own(folder: Path, data: TaskData) -> None:
    run = TrainingRun(load(folder, data), data, configuration("full", learning_rate=1e30, clip=0.0))
    with pytest.raises(DivergedError, match=r"became|no longer finite"):
        run.advance(2.0)
    run.close()


def test_state_of_another_design_is_refused(folder: Path, data: TaskData) -> None:
    run = TrainingRun(load(folder, data), data, configuration("lora:rank=2"))
    run.advance(1.0)
    state = run.state()
    run.close()
    other = TrainingRun(load(folder, data), data, configuration("bitfit"))
    with pytest.raises(ValueError, match="another design"):
        other.restore(*state)


def test_close_removes_every_hook(folder: Path, data: TaskData) -> None:
    model = load(folder, data)

    def hooks() -> int:
        tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return sum(len(getattr(module, table)) for module in model.modules() for table in tables)

    before = hooks()
    run = TrainingRun(model, data, configuration("mam:length=2,size=4,scale=4"))
    run.advance(0.5)
    assert hooks() > before
    run.close()
    assert hooks() == before


def test_dropout_of_the_backbone_can_be_set_and_comes_back(folder: Path, data: TaskData) -> None:
    model = load(folder, data)
    rates = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    run = TrainingRun(model, data, configuration("bitfit", dropout=0.0))
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    run.close()
    assert [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)] == rates


_TINY: dict[str, Any] = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LAYERS: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "max_position_embeddings": 20}
_LAYERS |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
_LLAMA: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
_BERT: dict[str, Any] = {**_LLAMA, "hidden_dropout_prob": 0.0}
# One kind of rate at a time: where it is missed, passes go on differing.
DROPOUTS: dict[str, Any] = {
    "bert": lambda: BertModel(BertConfig(**_TINY, **_BERT, attention_probs_dropout_prob=0.5)),
    "bart dropout": lambda: BartModel(BartConfig(**_TINY, **_LAYERS, dropout=0.5)),
    "bart attention": lambda: BartModel(BartConfig(**_TINY, **_LAYERS, dropout=0.0, attention_dropout=0.5)),
    "bart activation": lambda: BartModel(BartConfig(**_TINY, **_LAYERS, dropout=0.0, activation_dropout=0.5)),
    "mbart": lambda: MBartModel(MBartConfig(**_TINY, **_LAYERS, dropout=0.5, attention_dropout=0.5)),
    "t5": lambda: T5EncoderModel(T5Config(**_TINY, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)),
    "llama": lambda: LlamaModel(LlamaConfig(**_TINY, **_LLAMA, attention_dropout=0.5)),
}


@pytest.mark.parametrize("name", DROPOUTS)
def test_every_kind_of_dropout_is_set(name: str) -> None:
    model = DROPOUTS[name]().train()
    tokens = torch.arange(3, 12)[None]

    def passes_are_alike() -> bool:
        with torch.no_grad():
            return torch.equal(model(tokens).last_hidden_state, model(tokens).last_hidden_state)

    assert not passes_are_alike()
    restore = set_dropout(model, 0.0)
    assert passes_are_alike()
    restore()
    assert not passes_are_alike()
    restore = set_dropout(model, None)
    assert not passes_are_alike()
    restore()


@pytest.mark.parametrize("design", ["lora:rank=2", "bitfit"])
def test_resuming_where_only_matrices_or_only_vectors_train(folder: Path, data: TaskData, design: str) -> None:
    what = configuration(design)
    what = replace(what, design=replace(what.design, head=False))
    first = TrainingRun(load(folder, data), data, what)
    assert len({parameter.ndim > 1 for _, parameter in first.attachment.named_parameters()}) == 1
    first.advance(1.0)
    second = TrainingRun(load(folder, data), data, what)
    second.restore(*first.state())
    assert second.advance(2.0).scores == first.advance(2.0).scores


def test_precision_is_measured(folder: Path, data: TaskData, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folder, data)
    assert fastest_precision(model) in ("fp32", "bf16")
    seconds = iter([0.0, 9.0, 0.0, 9.0, 0.0, 9.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0])  # fp32 takes 9 s, bf16 1 s
    monkeypatch.setattr("petl.training.run.time.perf_counter", lambda: next(seconds))
    assert fastest_precision(model) == "bf16"


def _without_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model
