"""Baselines where a label of the task never occurs in training: it is never predicted, the others are as without it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from petl.training import baselines, probe


@dataclass
class Part:
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


LABELS = ("a", "b", "c", "d")


def data_of(monkeypatch: pytest.MonkeyPatch, train: list[int], sample: list[int], labels: tuple[str, ...]) -> Any:
    """Stands for a task whose texts have features drawn around a corner for each label."""
    draw = np.random.default_rng(0)
    truth = {"train": train, "sample": sample}
    corners = 2.0 * np.eye(4, dtype=np.float32)
    features = {
        split: np.stack([corners[label] + draw.normal(size=4) for label in own]).astype(np.float32)
        for split, own in truth.items()
    }
    monkeypatch.setattr(probe, "features", lambda model, data, split, precision: features[split])
    splits = {split: Part(torch.tensor(own)) for split, own in truth.items()}
    return SimpleNamespace(splits=splits, labels=labels, features=features)


@pytest.mark.parametrize(
    ("train", "sample", "count"),
    [
        ([0, 1, 2] * 30, [0, 1, 2] * 10, 3),
        ([0, 1] * 30, [0, 1] * 10, 2),
        ([0, 1] * 30, [0, 1] * 10, 3),
        ([0, 2, 3] * 30, [0, 2] * 10, 4),
        ([1, 3] * 30, [1, 3, 2] * 10, 4),
        ([2, 1, 1] * 30, [2, 1] * 10, 3),
    ],
)
def test_the_probe_predicts_only_what_it_saw(
    monkeypatch: pytest.MonkeyPatch, train: list[int], sample: list[int], count: int
) -> None:
    data = data_of(monkeypatch, train, sample, LABELS[:count])
    fitted = baselines.fit("probe", None, data, "fp32")  # type: ignore[arg-type]
    found = baselines.evaluate(fitted, None, data, "sample", "fp32")  # type: ignore[arg-type]
    assert tuple(fitted["weight"].shape) == (count, 4)
    scale = StandardScaler().fit(data.features["train"])
    inputs = {split: scale.transform(features) for split, features in data.features.items()}
    models = [LogisticRegression(C=c, max_iter=1000).fit(inputs["train"], train) for c in (0.001, 0.01, 0.1, 1.0)]
    best = max(models, key=lambda model: model.score(inputs["sample"], sample))
    assert found.predictions == [LABELS[label] for label in best.predict(inputs["sample"])]
    assert found.scores["accuracy"] == pytest.approx(best.score(inputs["sample"], sample))
    assert math.isfinite(found.scores["loss"])
    seen = np.isin(sample, train)
    if seen.all():
        chances = best.predict_proba(inputs["sample"])[np.arange(len(sample)), np.searchsorted(best.classes_, sample)]
        assert found.scores["loss"] == pytest.approx(-np.log(chances).mean(), rel=1e-4)


@pytest.mark.parametrize("name", ["probe", "majority"])
def test_one_label_alone_is_always_predicted(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    data = data_of(monkeypatch, [1] * 20, [1, 0, 2] * 4, LABELS[:3])
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=4))
    found = baselines.evaluate(baselines.fit(name, model, data, "fp32"), model, data, "sample", "fp32")  # type: ignore[arg-type]
    assert set(found.predictions) == {"b"}
    assert math.isfinite(found.scores["loss"])


def test_the_majority_is_the_share_of_each_label(monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(monkeypatch, [0, 0, 0, 2], [0, 2, 0, 0], LABELS[:3])
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=4))
    fitted = baselines.fit("majority", model, data, "fp32")  # type: ignore[arg-type]
    assert fitted["bias"][[0, 2]].tolist() == pytest.approx([math.log(0.75), math.log(0.25)])
    found = baselines.evaluate(fitted, model, data, "sample", "fp32")  # type: ignore[arg-type]
    assert found.scores["loss"] == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4, rel=1e-5)
