"""What a design has to beat without any training of the network.

A classification task has the majority class and a linear probe: both are a linear classifier on the
frozen backbone's mean-pooled last layer, of which the majority class has the weight zero. A task whose
text is generated has the pretrained model as it is, `untuned`, which has no tensors of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from petl.data.batches import sorted_batches
from petl.data.tokens import TaskData
from petl.training import metrics
from petl.training.engine import autocast, place
from petl.training.evaluation import Evaluation, Progress, silent
from petl.training.evaluation import evaluate as evaluate_model
from petl.training.processes import device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


UNTUNED: Final = "untuned"
BASELINES: Final = ("majority", "probe", UNTUNED)
_STRENGTHS: Final = (0.001, 0.01, 0.1, 1.0)  # inverse regularisation tried by the probe
_ROWS: Final = 64
_NEVER: Final = -1e4  # the logit of a label that training never saw: it is not predicted, and its loss is finite
_FILE: Final = "baseline.safetensors"


def fit(name: str, model: PreTrainedModel, data: TaskData, precision: str) -> dict[str, Tensor]:
    """Return `weight` (classes, width) and `bias` (classes,) of a baseline, from the train split; nothing of `untuned`.

    The probe is a logistic regression; the strength of its regularisation is the one that scores
    best on the validation split.
    """
    if name == UNTUNED:
        return {}
    labels = data.splits["train"].labels.numpy()
    seen, counts = np.unique(labels, return_counts=True)
    if name == "majority" or len(seen) == 1:
        return _of_labels(data, seen, np.zeros((len(seen), model.config.hidden_size)), np.log(counts / len(labels)))
    features = _features(model, data, "train", precision)
    scale = StandardScaler().fit(features)
    pooled, truth = _features(model, data, "sample", precision), data.splits["sample"].labels.numpy()
    fitted = [
        LogisticRegression(C=strength, max_iter=1000).fit(scale.transform(features), labels) for strength in _STRENGTHS
    ]
    best = max(fitted, key=lambda candidate: candidate.score(scale.transform(pooled), truth))
    weight, bias = best.coef_, best.intercept_
    if len(seen) == 2:  # scikit-learn keeps one row for two classes
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    weight = weight / scale.scale_
    return _of_labels(data, seen, weight, bias - weight @ scale.mean_)


def _of_labels(data: TaskData, seen: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> dict[str, Tensor]:
    """Return a classifier over all labels of the task from the rows of those in the train split."""
    whole, biases = np.zeros((len(data.labels), weight.shape[1])), np.full(len(data.labels), _NEVER)
    whole[seen], biases[seen] = weight, bias
    return {"weight": _tensor(whole), "bias": _tensor(biases)}


def evaluate(
    baseline: Mapping[str, Tensor],
    model: PreTrainedModel,
    data: TaskData,
    split: str,
    precision: str,
    *,
    generates: bool = True,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate what `fit` returned on a split, as `evaluation.evaluate` does a model."""
    if not baseline:
        return evaluate_model(model, data, split, precision, generates=generates, progress=progress)
    weight, bias = (baseline[name].numpy() for name in ("weight", "bias"))
    rows = len(data.splits[split])
    pooled = _features(model, data, split, precision) if weight.any() else np.zeros((rows, weight.shape[1]))
    logits = pooled @ weight.T + bias
    scores = metrics.classification(logits, data.splits[split].labels.numpy())
    return Evaluation(scores, [data.labels[index] for index in logits.argmax(1)])


def save(baseline: Mapping[str, Tensor], folder: Path) -> None:
    """Write what `fit` returned; `load` reads it."""
    save_file(dict(baseline), folder / _FILE)


def load(folder: Path) -> dict[str, Tensor]:
    """Read what `save` writes."""
    return load_file(folder / _FILE)


def _features(model: PreTrainedModel, data: TaskData, split: str, precision: str) -> np.ndarray:
    place(model, training=False)
    part = data.splits[split]
    pooled = np.empty((len(part), model.config.hidden_size), np.float32)
    with torch.inference_mode(), autocast(precision):
        for index in sorted_batches(part.lengths, _ROWS):
            inputs, _ = data.batch(split, index)
            inputs = {name: value.to(device()) for name, value in inputs.items()}
            hidden = model.base_model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"].unsqueeze(-1)
            pooled[index] = ((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()
    return pooled


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
