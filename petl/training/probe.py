"""A linear probe: a classifier on the frozen backbone's pooled last layer, as a baseline and as a head's start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from petl.backbones.model import POOLED_HEAD
from petl.backbones.pooling import pooled
from petl.data.batches import sorted_batches
from petl.data.tokens import TaskData
from petl.training.engine import autocast, place
from petl.training.processes import device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_ROWS: Final = 64
_NEVER: Final = -1e4  # the logit of a label that training never saw: it is not predicted, and its loss is finite
_LOGIT: Final = 2.0  # standard deviation of a logit that the fixed regularisation of `start` expects


def features(model: PreTrainedModel, data: TaskData, split: str, precision: str, pooling: str = "mean") -> np.ndarray:
    """Return the pooled last layer of a split's rows, (rows, width), float32, in the split's order."""
    place(model, training=False)
    part = data.splits[split]
    values = np.empty((len(part), model.config.hidden_size), np.float32)
    with torch.inference_mode(), autocast(precision):
        for index in sorted_batches(part.lengths, _ROWS):
            inputs, _ = data.batch(split, index)
            inputs = {name: value.to(device()) for name, value in inputs.items()}
            values[index] = pooled(model, inputs, pooling).cpu().numpy()
    return values


def linear(features: np.ndarray, labels: np.ndarray, classes: int, strength: float) -> dict[str, Tensor]:
    """Return `weight` (classes, width) and `bias` (classes,) of a logistic regression on standardised features.

    `strength` is its inverse regularisation, scikit-learn's C. Of two classes each has half of the logit. A class
    without a row is never predicted; where there is one class alone, it always is.
    """
    seen = np.unique(labels)
    if len(seen) == 1:
        return over_all(seen, np.zeros((1, features.shape[1])), np.zeros(1), classes)
    scale = StandardScaler().fit(features)
    fitted = LogisticRegression(C=strength, max_iter=1000).fit(scale.transform(features), labels)
    weight, bias = fitted.coef_, fitted.intercept_
    if len(seen) == 2:  # scikit-learn keeps one row for two classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scale.scale_
    return over_all(seen, weight, bias - weight @ scale.mean_, classes)


def over_all(seen: np.ndarray, weight: np.ndarray, bias: np.ndarray, classes: int) -> dict[str, Tensor]:
    """Return a classifier over all classes from the rows of those that training saw."""
    whole, biases = np.zeros((classes, weight.shape[1])), np.full(classes, _NEVER)
    whole[seen], biases[seen] = weight, bias
    return {"weight": _tensor(whole), "bias": _tensor(biases)}


def start(model: PreTrainedModel, data: TaskData, pooling: str, precision: str) -> dict[str, Tensor]:
    """Return what heads of this `pooling` start from: a probe on the train split, regularised by a fixed amount.

    The prior of its weights makes logits of standard deviation 2 whatever the width; no validation row is read.
    """
    labels = data.splits["train"].labels.numpy()
    found = features(model, data, "train", precision, pooling)
    return linear(found, labels, len(data.labels), _LOGIT**2 / found.shape[1])


def start_head(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Copy what `start` returned into the pooled head."""
    with torch.no_grad():
        for name, value in tensors.items():
            model.get_parameter(f"{POOLED_HEAD}.{name}").copy_(value)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
