"""Heads that start from a linear probe: before the first step they say what scikit-learn's classifier says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from studies import write_backbone, write_rows

from petl import backbones
from petl.attach.attachment import attach
from petl.configuration import Configuration, Training
from petl.data.tokens import TaskData, load_data
from petl.design import Design
from petl.head import Head
from petl.presets import parse
from petl.tasks import resolve
from petl.training import probe
from petl.training.evaluation import predict
from petl.training.run import TrainingRun

HEAD = Head(pooling="mean", start="probe")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe")
    write_backbone(path / "backbone")
    write_rows(path / "rows.csv", rows=150)
    return path


@pytest.fixture(scope="module")
def data(folder: Path) -> TaskData:
    task = resolve({"name": "words", "paths": str(folder / "rows.csv"), "validation_rows": 30, "test_rows": 20})
    return load_data(task, backbones.load_tokenizer(str(folder / "backbone")))


@pytest.fixture
def model(folder: Path, data: TaskData) -> Any:
    return backbones.load(str(folder / "backbone"), labels=data.labels)


def means(model: Any, data: TaskData, split: str) -> np.ndarray:
    """Each row by itself, without padding."""
    rows = []
    for index in range(len(data.splits[split])):
        inputs, _ = data.batch(split, [index])
        rows.append(model.base_model(**inputs).last_hidden_state[0].mean(0).detach().numpy())
    return np.stack(rows)


def test_the_first_step_starts_at_the_probe(model: Any, data: TaskData) -> None:
    features, labels = means(model, data, "train"), data.splits["train"].labels.numpy()
    scale = StandardScaler().fit(features)
    fitted = LogisticRegression(C=4 / features.shape[1], max_iter=1000).fit(scale.transform(features), labels)
    start = probe.start(model, data, "mean", "fp32")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    what = Configuration(parse("lora:rank=2"), Training(epochs=1.0, batch_size=16), 3, HEAD)
    run = TrainingRun(model, data, what, start=start)  # a LoRA changes nothing at first
    logits = torch.from_numpy(predict(model, data, "validation"))
    expected = fitted.predict_proba(scale.transform(means(model, data, "validation")))
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, atol=2e-3)
    run.advance(1.0)
    weight = run.attachment.head_state_dict()["pooled_head.weight"]
    assert not torch.equal(weight, start["weight"])
    run.close()
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("design", ["lora:rank=2", "full", "bitfit"])
def test_a_pooled_head_is_resumed_bit_for_bit(folder: Path, data: TaskData, design: str) -> None:
    what = Configuration(parse(design), Training(epochs=2.0, batch_size=16), 3, replace(HEAD, start="random"))

    def new() -> TrainingRun:
        return TrainingRun(backbones.load(str(folder / "backbone"), labels=data.labels), data, what)

    whole, first, second = new(), new(), new()
    whole.advance(1.0)
    whole.advance(2.0)
    first.advance(1.0)
    second.restore(*first.state())
    second.advance(2.0)
    expected, found = whole.state()[0], second.state()[0]
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize(
    ("labels", "classes"), [([0, 1, 2] * 20, 3), ([0, 1] * 20, 2), ([2, 0] * 20, 4), ([1] * 20, 3)]
)
def test_labels_that_are_missing_are_never_predicted(labels: list[int], classes: int) -> None:
    draw = np.random.default_rng(0)
    truth = np.array(labels)
    features = (np.eye(4)[truth] * 3 + draw.normal(size=(len(truth), 4))).astype(np.float32)
    fitted = probe.linear(features, truth, classes, 0.1)
    logits = torch.from_numpy(features) @ fitted["weight"].T + fitted["bias"]
    assert tuple(fitted["weight"].shape) == (classes, 4)
    assert set(logits.argmax(1).tolist()) <= set(labels)
    if len(set(labels)) > 1:
        scale = StandardScaler().fit(features)
        other = LogisticRegression(C=0.1, max_iter=1000).fit(scale.transform(features), truth)
        chances = logits.double().softmax(1)[:, sorted(set(labels))]
        np.testing.assert_allclose(chances.numpy(), other.predict_proba(scale.transform(features)), atol=1e-4)
    if len(set(labels)) == 2:  # neither label is the one without a logit
        seen = fitted["weight"][sorted(set(labels))]
        torch.testing.assert_close(seen[0], -seen[1])


def test_a_start_is_asked_for(model: Any, data: TaskData) -> None:
    what = Configuration(Design(), Training(epochs=1.0), 0, HEAD)
    with pytest.raises(ValueError, match=r"starts from a probe needs what .* returns"):
        TrainingRun(model, data, what)
    assert "pooled_head" not in dict(model.named_children())  # the model is as it was
    with attach(model, Design()):
        pass


def test_the_key_has_the_head_where_it_is_another() -> None:
    plain = Configuration(parse("lora"), Training(), 0)
    heads = [Head(), Head(pooling="mean"), Head(pooling="first"), HEAD]
    assert len({replace(plain, head=head).key for head in heads}) == 4
    stored = plain.to_dict()
    del stored["head"]  # of version 0.1.0
    assert Configuration.from_dict(stored) == plain
    assert Configuration.from_dict(replace(plain, head=HEAD).to_dict()).head == HEAD
