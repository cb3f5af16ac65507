"""Training and scoring of models that generate text: against the library's own loss and its own generate."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import texts
import torch
from transformers.trainer_pt_utils import LabelSmoother

from petl import backbones
from petl.adapters import storage
from petl.attach.attachment import attach
from petl.configuration import Configuration, Training
from petl.data.batches import epoch_batches
from petl.data.tokens import TaskData, load_data
from petl.presets import parse
from petl.tasks import resolve
from petl.training import run as train
from petl.training.evaluation import evaluate, generate_split, mean_loss
from petl.training.processes import join_process_group
from petl.training.run import TrainingRun

FAMILIES = ("bart", "t5", "gpt2", "llama")


@pytest.fixture(scope="module", params=FAMILIES)
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts.write_backbone(request.param, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def data(home: Path, tmp_path_factory: pytest.TempPathFactory) -> TaskData:
    return load(home, texts.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl"))


@pytest.fixture(autouse=True)
def _every_step_is_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_LOG_EVERY", 1)


def load(home: Path, rows: Path, **changes: Any) -> TaskData:
    decoder_only = backbones.describe(str(home)).architecture == "decoder"
    task = resolve(texts.task(rows, **changes))
    return load_data(task, backbones.load_tokenizer(str(home)), decoder_only=decoder_only)


def model(home: Path) -> Any:
    return backbones.load(str(home), generates=True)


def configuration(design: str = "lora:rank=2", **training: Any) -> Configuration:
    settings = {"learning_rate": 1e-2, "epochs": 2.0, "batch_size": 16, "dropout": 0.0, **training}
    return Configuration(parse(design), Training(**settings), seed=3)


PAIRS = configuration(epochs=1.0, batch_size=11, accumulation=2, dropout=0.2)


def losses(run: TrainingRun) -> list[float]:
    return [point.loss for point in run.position.points]


def row_loss(model: Any, data: TaskData, split: str, row: int) -> tuple[float, int]:
    """The summed loss of one row, which needs no padding, by the model's own loss, and its target tokens."""
    source = data.tokenizer(data.sources(split)[row])["input_ids"]
    target = data.tokenizer(data.references(split)[row])["input_ids"]
    if model.config.is_encoder_decoder:
        inputs, labels = torch.tensor([source]), torch.tensor([target])
    else:
        target = target[1:]  # without <s>, with </s>
        inputs = torch.tensor([source + target])
        labels = torch.tensor([[-100] * len(source) + target])
    with torch.no_grad():
        return float(model(input_ids=inputs, labels=labels).loss) * len(target), len(target)


def test_loss_is_the_librarys_over_all_target_tokens(home: Path, data: TaskData) -> None:
    if backbones.describe(str(home)).architecture == "decoder":
        pytest.skip("what stands between source and target is held by tests/petl_tests/data/test_tokens.py")
    bare = model(home)
    found = [row_loss(bare, data, "validation", row) for row in range(20)]
    expected = sum(loss for loss, _ in found) / sum(count for _, count in found)
    assert mean_loss(bare, data, "validation") == pytest.approx(expected, abs=1e-5)
    assert data.splits["validation"].targets.tolist() == [count for _, count in found]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loop_equals_plain_torch_with_the_librarys_smoothing(home: Path, data: TaskData, smoothing: float) -> None:
    what = configuration(epochs=1.0, label_smoothing=smoothing, beta2=0.98, epsilon=1e-6, weight_decay=0.0)
    run = TrainingRun(model(home), data, what)
    run.advance(1.0)

    twin = model(home).train()
    train.set_dropout(twin, 0.0)
    parameters = [parameter for _, parameter in attach(twin, what.design, seed=what.seed).named_parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    smoother = LabelSmoother(epsilon=smoothing)
    expected = []
    batches = epoch_batches(data.splits["train"].lengths, 16, what.seed, 0)
    steps, warm = len(batches), round(0.06 * len(batches))
    for step, index in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (step / warm if step < warm else (steps - step) / (steps - warm))
        inputs, labels = data.batch("train", index)
        if twin.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = twin.prepare_decoder_input_ids_from_labels(labels)
        loss = smoother({"logits": twin(**inputs).logits}, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        expected.append(loss.item())
    np.testing.assert_allclose(losses(run), expected, rtol=0, atol=2e-5)
    run.close()


def test_generated_text_is_the_models_own(home: Path, data: TaskData) -> None:
    """A row at a time, without padding: greedy, since beams of rows beside each other may tie differently."""
    bare, greedy = model(home), replace(data, task=resolve({**texts.task(Path("-")), **_decoding(beams=1)}))
    written = generate_split(bare, greedy, "test")
    for row, text in enumerate(written):
        inputs = greedy.prompts("test", [row])
        lengths = {"max_length": 12} if bare.config.is_encoder_decoder else {"max_new_tokens": 12}
        tokens = bare.generate(**inputs, **lengths, do_sample=False, num_beams=1)[0]
        own = tokens if bare.config.is_encoder_decoder else tokens[inputs["input_ids"].shape[1] :]
        assert text == data.tokenizer.decode(own, skip_special_tokens=True).strip()


def test_scores_are_those_of_the_text(home: Path, data: TaskData) -> None:
    found = evaluate(model(home), data, "test")
    assert len(found.predictions) == len(data.references("test")) == 13
    expected = sacrebleu.corpus_bleu(list(found.predictions), [data.references("test")]).score
    assert found.scores["sacrebleu"] == pytest.approx(expected)
    assert "sacrebleu" not in evaluate(model(home), data, "test", generates=False).scores


def test_token_batches_train_every_row_once(home: Path, data: TaskData) -> None:
    run = TrainingRun(model(home), data, configuration(epochs=1.0, batch_tokens=60))
    run.advance(1.0)
    assert run.position.tokens == int(data.splits["train"].lengths.sum())
    assert run.position.micro_batch == run.batches_per_epoch == run.steps
    run.close()


def test_resumed_run_equals_uninterrupted_one(home: Path, data: TaskData) -> None:
    what = configuration("mam:length=2,size=3", batch_tokens=60, keep="loss", dropout=0.1)
    whole = TrainingRun(model(home), data, what)
    whole.advance(1.0)
    whole.advance(2.0)
    first = TrainingRun(model(home), data, what)
    first.advance(1.0)
    tensors, position = first.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    first.close()
    second = TrainingRun(model(home), data, what)
    second.restore(tensors, position)
    second.advance(2.0)
    a, b = whole.state()[0], second.state()[0]
    assert a.keys() == b.keys()
    assert any(name.startswith("kept.") for name in a)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert losses(whole) == losses(second)


def test_best_weights_are_kept_and_patience_ends_the_run(home: Path, data: TaskData) -> None:
    """A learning rate that breaks the model after a good first step: the first validation stays the best."""
    what = configuration(epochs=6.0, learning_rate=2.0, schedule="constant", warmup=0.0, keep="loss", patience=2)
    run = TrainingRun(model(home), data, what)
    epoch = 0.0
    while not run.finished:
        epoch += 1 / run.batches_per_epoch
        run.advance(epoch)
    scores = [validation.scores["loss"] for validation in run.position.validations]
    assert run.position.step < run.steps
    assert run.position.best == int(np.argmin(scores)) == len(scores) - 3
    assert scores[-1] > min(scores)
    run.finish()
    assert mean_loss(run.model, data, "sample") == pytest.approx(min(scores), abs=1e-6)
    run.close()


def test_last_weights_are_kept_unless_asked(home: Path, data: TaskData) -> None:
    run = TrainingRun(model(home), data, configuration(epochs=1.0))
    last = run.advance(1.0).scores["loss"]
    run.finish()
    assert mean_loss(run.model, data, "sample") == pytest.approx(last, abs=1e-6)
    assert not any(name.startswith("kept.") for name in run.state()[0])
    run.close()


@pytest.mark.full("half a minute; test_engine has two processes on a classifier")
def test_two_processes_lose_and_say_what_one_does(tmp_path: Path) -> None:
    home = texts.write_backbone("bart", tmp_path)
    rows = texts.write_rows(tmp_path / "rows.jsonl", rows=90)
    torch.multiprocessing.start_processes(_rank, (home, rows, tmp_path), nprocs=2, start_method="spawn")
    data = load(home, rows)
    alone = TrainingRun(model(home), data, PAIRS)
    scores = alone.advance(1.0).scores
    for stage in (0, 3):
        for rank in (0, 1):
            there = torch.load(tmp_path / f"{stage}-{rank}.pt", weights_only=True)
            np.testing.assert_allclose(there["losses"], losses(alone), rtol=0, atol=1e-5)
            assert there["scores"]["loss"] == pytest.approx(scores["loss"], abs=1e-5)
            assert there["texts"] == generate_split(alone.model, data, "test")
    alone.close()


def _rank(rank: int, home: Path, rows: Path, out: Path) -> None:
    torch.set_num_threads(1)
    train._LOG_EVERY = 1  # type: ignore[misc]
    join_process_group(rank, 2, f"file://{out}/store")
    data, bare = load(home, rows), model(home)
    for stage in (0, 3):
        run = TrainingRun(bare, data, PAIRS, zero=stage, persistent=0)
        scores = run.advance(1.0).scores
        written = generate_split(run.model, data, "test")
        torch.save({"losses": losses(run), "scores": dict(scores), "texts": written}, out / f"{stage}-{rank}.pt")
        run.close()


def _decoding(**changes: Any) -> dict[str, Any]:
    return {"decoding": {"max_length": 12, **changes}}


def test_perplexity_is_exp_of_the_loss(tmp_path: Path) -> None:
    home = texts.write_backbone("gpt2", tmp_path)
    rows = texts.write_rows(tmp_path / "rows.jsonl")
    task = {"name": "causal-lm", "paths": {"train": str(rows)}, "columns": {"text": "target"}, "max_length": 12}
    data = load_data(resolve(task), backbones.load_tokenizer(str(home)), decoder_only=True)
    scores = evaluate(model(home), data, "validation").scores
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    run = TrainingRun(model(home), data, configuration(epochs=2.0))
    before, after = scores["loss"], run.advance(2.0).scores["loss"]
    assert after < before
    run.close()


@pytest.mark.parametrize("family", ["bart", "gpt2"])
def test_a_stored_adapter_says_what_it_said_in_training(tmp_path: Path, family: str) -> None:
    home = texts.write_backbone(family, tmp_path)
    data = load(home, texts.write_rows(tmp_path / "rows.jsonl"), prompt="{source} m0")
    run = TrainingRun(model(home), data, configuration("mam:length=2,size=3", epochs=1.0))
    run.advance(1.0)
    written = generate_split(run.model, data, "test")
    described = backbones.describe(str(home))
    storage.save(tmp_path / "adapter", run.attachment, described, data.facts(), data.tokenizer)
    adapted = storage.load_model(tmp_path / "adapter")
    assert adapted.predict(data.sources("test")) == written
    with pytest.raises(ValueError, match="has no labels"):
        adapted.probabilities(data.sources("test"))
