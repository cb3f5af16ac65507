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
from torch import Tensor
from torch.nn.functional import linear

from petl.attach.attachment import Attachment, attach
from petl.data.tokens import TaskData
from petl.design import Design
from petl.training import metrics, probe
from petl.training.evaluation import Evaluation, Progress, silent
from petl.training.evaluation import evaluate as evaluate_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


UNTUNED: Final = "untuned"
BASELINES: Final = ("majority", "probe", UNTUNED)
_STRENGTHS: Final = (0.001, 0.01, 0.1, 1.0)  # inverse regularisation tried by the probe
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
        weight = np.zeros((len(seen), model.config.hidden_size))
        return probe.over_all(seen, weight, np.log(counts / len(labels)), len(data.labels))
    found = probe.features(model, data, "train", precision)
    pooled, truth = torch.from_numpy(probe.features(model, data, "sample", precision)), data.splits["sample"].labels
    fitted = [probe.linear(found, labels, len(data.labels), strength) for strength in _STRENGTHS]
    return max(fitted, key=lambda each: int((_logits(each, pooled).argmax(1) == truth).sum()))


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
    rows, weight = len(data.splits[split]), baseline["weight"]
    found = probe.features(model, data, split, precision) if weight.any() else np.zeros((rows, weight.shape[1]))
    logits = _logits(baseline, torch.from_numpy(found)).numpy()
    scores = metrics.classification(logits, data.splits[split].labels.numpy())
    return Evaluation(scores, [data.labels[index] for index in logits.argmax(1)])


def attach_probe(model: PreTrainedModel, baseline: Mapping[str, Tensor]) -> Attachment:
    """Return the probe on the model, as a design that changes the head alone."""
    attachment = attach(model, Design(), pooling="mean")
    probe.start_head(model, baseline)
    return attachment


def save(baseline: Mapping[str, Tensor], folder: Path) -> None:
    """Write what `fit` returned; `load` reads it."""
    save_file(dict(baseline), folder / _FILE)


def load(folder: Path) -> dict[str, Tensor]:
    """Read what `save` writes."""
    return load_file(folder / _FILE)


def _logits(baseline: Mapping[str, Tensor], features: Tensor) -> Tensor:
    return linear(features.float(), baseline["weight"], baseline["bias"])
