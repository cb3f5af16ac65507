"""One row through a model and back, before any training: what no design can change is found out there."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow.compute as pc

from petl.attach import attach
from petl.backbones.locate import BackboneError
from petl.backbones.padding import padding
from petl.configuration import Training
from petl.data.tokens import TaskData
from petl.design import Design
from petl.errors import library
from petl.training.engine import place
from petl.training.evaluation import summed_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BATCHES: Final = 3  # that are timed


def rehearse(model: PreTrainedModel, data: TaskData, name: str) -> None:
    """Run the longest row of the train split forward and backward, and leave the model as it was.

    Raises BackboneError, naming the model, where it cannot: where the tokenizer makes tokens that the model has no
    embeddings of, where transformers or torch refuse the row, and where its loss is not a number.
    """
    _require_embeddings(model, data, name)
    row = [int(np.argmax(data.splits["train"].lengths))]
    place(model, training=False)
    inputs, labels = data.batch("train", row)
    with library(f"{name}: a row of task {data.task.name} does not pass through the model", BackboneError):
        loss = summed_loss(model, model, inputs, labels)
        loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    if not math.isfinite(value := float(loss.detach())):
        raise BackboneError(f"{name}: the loss of a text is a number; received {value}: are its weights damaged?")


def seconds_per_row(model: PreTrainedModel, data: TaskData, design: Design) -> float:
    """Return what a row takes to pass forward and backward where `design` is attached: the fastest of a few batches."""
    attach(model, design)
    place(model, training=True)
    rows = list(range(min(Training().batch_size, len(data.splits["train"]))))
    took = []
    for _ in range(_BATCHES):
        began = time.perf_counter()
        summed_loss(model, model, *data.batch("train", rows)).backward()  # type: ignore[no-untyped-call]
        took.append(time.perf_counter() - began)
        model.zero_grad()
    return min(took) / len(rows)


def _require_embeddings(model: PreTrainedModel, data: TaskData, name: str) -> None:
    table: Any = model.get_input_embeddings()
    rows, tokenizer = len(table.weight), data.tokenizer
    highest = padding(tokenizer)
    for part in data.splits.values():
        for column in {"input_ids", "labels"} & {*part.rows.column_names}:
            found = pc.max(pc.list_flatten(part.rows.data.column(column))).as_py()
            highest = max(highest, found or 0)
    if highest >= rows:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise BackboneError(
            f"{name}: a tokenizer makes tokens that the model has embeddings of, {rows} here; received {highest}, "
            f"{token!r}: take the tokenizer that belongs to the model, or resize its embeddings"
        )
