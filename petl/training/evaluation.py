"""Scores of a model on a split: of its predictions, of its loss, and of the text that it generates."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn.functional import cross_entropy

from petl.backbones.generation import decoding_alone, generate
from petl.backbones.padding import padding
from petl.backbones.quiet import quiet
from petl.data.batches import sorted_batches
from petl.data.encoding import IGNORED
from petl.data.tokens import TaskData
from petl.errors import UserError
from petl.tasks import KINDS
from petl.training import metrics
from petl.training.engine import autocast, place
from petl.training.processes import device, share, sum_over_ranks, world_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Progress = Callable[[str, int, int], None]
"""Hears what is done, how much of it, and how much there is."""

_LABELLED_ROWS: Final = 64
_LOSS_ROWS: Final = 16
_GENERATED_ROWS: Final = 32
_LATENCY_CALLS: Final = 9
_LATENCY_TOKENS: Final = 16


class DivergedError(UserError, ArithmeticError):
    """The loss or the predictions of a run are no longer numbers."""


@dataclass(frozen=True)
class Evaluation:
    """`scores` by name, and a prediction a row in the split's order: a label's name, or the text generated.

    Where nothing was generated, `predictions` is empty.
    """

    scores: Mapping[str, float]
    predictions: Sequence[str] = field(default=(), repr=False)


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


def evaluate(
    model: PreTrainedModel,
    data: TaskData,
    split: str,
    precision: str = "fp32",
    *,
    generates: bool = True,
    progress: Progress = silent,
) -> Evaluation:
    """Return all scores of the task on a split; without `generates` only those that need no generated text.

    Leaves the model in evaluation mode. Collective in a process group: every rank computes its share, and all
    get the whole. Raises DivergedError where predictions or loss are not finite.
    """
    if data.labels:
        logits = predict(model, data, split, precision)
        scores = metrics.classification(logits, data.splits[split].labels.numpy())
        return Evaluation(scores, [data.labels[index] for index in logits.argmax(1)])
    scores = {"loss": mean_loss(model, data, split, precision, progress)}
    if "perplexity" in data.task.scores:
        scores["perplexity"] = math.exp(min(scores["loss"], 700.0))  # the largest that a float holds
    wanted = [name for name in data.task.scores if name in metrics.GENERATED]
    if not (wanted and generates):
        return Evaluation(scores)
    texts = generate_split(model, data, split, precision, progress)
    return Evaluation(scores | metrics.text(texts, data.references(split), wanted, data.task.script), texts)


def predict(model: PreTrainedModel, data: TaskData, split: str, precision: str = "fp32") -> np.ndarray:
    """Return a classifier's logits (rows, classes), float32, in the split's own order. Collective, as `evaluate` is."""
    place(model, training=False)
    part = data.splits[split]
    logits = np.zeros((len(part), len(data.labels)), np.float32)
    # Not inference mode: what ZeRO-3 gathers in it cannot be trained on afterwards.
    with torch.no_grad(), autocast(precision):
        for index in sorted_batches(part.lengths, _LABELLED_ROWS):
            mine = share(index)
            inputs, _ = data.batch(split, mine if len(mine) else index[:1])
            output = model(**{name: value.to(device()) for name, value in inputs.items()})
            logits[mine] = output.logits[: len(mine)].float().cpu().numpy()
    logits = sum_over_ranks(torch.from_numpy(logits)).numpy()
    if not np.isfinite(logits).all():
        raise DivergedError(f"the predictions on the {split} split are no longer finite")
    return logits


def mean_loss(
    model: PreTrainedModel, data: TaskData, split: str, precision: str = "fp32", progress: Progress = silent
) -> float:
    """Return the mean cross-entropy of a split's labels or target tokens, in nats. Collective, as `evaluate` is."""
    place(model, training=False)
    part = data.splits[split]
    total, done = torch.zeros((), dtype=torch.float64), 0
    with torch.no_grad(), autocast(precision):
        for index in sorted_batches(part.lengths, _LOSS_ROWS):
            mine = share(index)
            inputs, labels = data.batch(split, mine if len(mine) else index[:1])
            loss = summed_loss(model, model, inputs, labels).double().cpu()
            total += loss if len(mine) else 0.0
            done += len(index)
            progress(f"{split} loss", done, len(part))
    mean = float(sum_over_ranks(total)) / int(part.targets.sum())
    if not math.isfinite(mean):
        raise DivergedError(f"the loss on the {split} split is no longer finite")
    return mean


def summed_loss(
    call: Callable[..., Any],
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the cross-entropy of a batch, summed over its labels or target tokens.

    `call` is what is called, the `model` or an engine around it; labels of encoder-decoders, (rows, tokens),
    are shifted right for the decoder as the model itself does.
    """
    placed = {name: value.to(device()) for name, value in inputs.items()}
    labels = labels.to(device())
    if labels.dim() == 2 and model.config.is_encoder_decoder:
        placed["decoder_input_ids"] = _decoder_inputs(model, labels)
    logits = call(**placed).logits
    return cross_entropy(
        logits.float().flatten(0, -2),
        labels.flatten(),
        reduction="sum",
        ignore_index=IGNORED,
        label_smoothing=smoothing,
    )


def generate_split(
    model: PreTrainedModel, data: TaskData, split: str, precision: str = "fp32", progress: Progress = silent
) -> list[str]:
    """Return the text generated for each row of a split, in its order, as the task decodes. Collective."""
    place(model, training=False)
    part = data.splits[split]
    texts: dict[int, str] = {}
    with autocast(precision):
        done = 0
        for index in sorted_batches(part.lengths, _GENERATED_ROWS):
            mine = share(index)
            prompts = data.prompts(split, mine if len(mine) else index[:1])
            inputs = {name: value.to(device()) for name, value in prompts.items()}
            several = world_size() > 1
            generated = generate(model, data.tokenizer, inputs, data.task, data.start, data.first, synced=several)
            texts.update(zip(mine.tolist(), generated, strict=False))  # a rank without rows generates for the others
            done += len(index)
            progress(f"{split} text", done, len(part))
    if world_size() > 1:
        everyone: list[Any] = [None] * world_size()
        distributed.all_gather_object(everyone, texts)
        texts = {row: text for own in everyone for row, text in own.items()}
    return [texts[row] for row in range(len(part))]


def latency(model: PreTrainedModel, data: TaskData, precision: str) -> float:
    """Return the median milliseconds for one row of median length: one pass, or generating 16 tokens greedily."""
    generates = KINDS[data.task.kind].generates
    lengths = data.splits["sample"].lengths
    row = [int(np.argsort(lengths, kind="stable")[len(lengths) // 2])]
    inputs = data.prompts("sample", row) if generates else data.batch("sample", row)[0]
    inputs = {name: value.to(device()) for name, value in inputs.items()}

    def call() -> float:
        began = time.perf_counter()
        if not generates:
            model(**inputs).logits.cpu()
        else:
            tokens = {"max_new_tokens": _LATENCY_TOKENS, "min_new_tokens": _LATENCY_TOKENS}
            with quiet(), decoding_alone(model, data.tokenizer, data.task):
                token = padding(data.tokenizer)
                cast(Any, model).generate(**inputs, **tokens, do_sample=False, num_beams=1, pad_token_id=token)
        return 1e3 * (time.perf_counter() - began)

    place(model, training=False)
    with torch.no_grad(), autocast(precision):
        call()
        return statistics.median(call() for _ in range(_LATENCY_CALLS // 3 if generates else _LATENCY_CALLS))


def _decoder_inputs(model: Any, labels: Tensor) -> Tensor:
    inputs: Tensor = model.prepare_decoder_input_ids_from_labels(labels=labels)
    return inputs
