"""Texts as a model takes them: tokens with their language, and padded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from petl.backbones.padding import padding
from petl.data.values import ValueTokenizer
from petl.tasks import KINDS, Task, TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


IGNORED: Final = -100  # the label of a position that no loss is taken of


CHUNK: Final = 1_000  # rows tokenised at once


Texts = Mapping[str, list[str]]


def encode_sources(
    texts: Sequence[Any], task: Task, tokenizer: PreTrainedTokenizerBase, *, decoder_only: bool = False
) -> dict[str, Tensor]:
    """Return texts, or pairs of them, as inputs, such as `TaskData` gives a classifier, or `generate`, of a split."""
    kind = KINDS[task.kind]
    if kind.generates:
        encoded = tokenise(task, (), tokenizer, decoder_only)({"source": list(texts), "target": [""] * len(texts)})
        tokens = encoded["input_ids"]
        if decoder_only:
            tokens = [row[:given] for row, given in zip(tokens, encoded["given"], strict=True)]
        return model_inputs({"input_ids": tokens}, tokenizer, left=decoder_only)
    values = ValueTokenizer.of(task, tokenizer)
    first = [text if isinstance(text, str) else text[0] for text in texts]
    second = [text[1] for text in texts if not isinstance(text, str)]
    columns = values.inputs(first, second or None, truncation=True, max_length=task.max_length)
    return model_inputs(columns, tokenizer, left=not kind.labelled)


def tokenise(
    task: Task, labels: Sequence[str], tokenizer: PreTrainedTokenizerBase, decoder_only: bool
) -> Callable[[Texts], dict[str, Any]]:
    """Return what becomes of texts: the tokenizer's columns, the answer's, and `length` and `terms` of each row."""
    values = ValueTokenizer.of(task, tokenizer)
    cut: dict[str, Any] = {"truncation": True, "verbose": False}
    numbers = {label: number for number, label in enumerate(labels)}
    before, _, behind = task.prompt.partition("{source}")

    def classification(rows: Texts) -> dict[str, Any]:
        columns = values.inputs(rows["text"], rows.get("pair"), max_length=task.max_length, **cut)
        answers = [numbers[label] for label in rows["label"]]
        return {**columns, "label": answers, "length": _lengths(columns["input_ids"]), "terms": [1] * len(answers)}

    def pairs(rows: Texts) -> dict[str, Any]:
        columns = values.inputs(rows["source"], prompt=(before, behind), max_length=task.max_length, **cut)
        targets = values.filled(
            values(rows["target"], answers=True, max_length=task.max_target_length, **cut)["input_ids"]
        )
        terms = _lengths(targets)
        length = list(map(max, _lengths(columns["input_ids"]), terms))
        return {**columns, "labels": targets, "length": length, "terms": terms}

    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    behind_source = behind if task.prompt[-1:].isspace() else behind + "\n"
    tail = len(tokenizer(behind_source, add_special_tokens=False)["input_ids"]) if decoder_only else 0
    if tail >= task.max_length:
        raise TaskError(
            f"task {task.name}: task.prompt has {tail} tokens behind the source, which leaves none of "
            f"task.max_length, {task.max_length}, to it"
        )

    def continued(rows: Texts) -> dict[str, Any]:
        given = []
        for tokens in values(rows["source"], prompt=(before, behind_source), verbose=False)["input_ids"]:
            tokens = tokens[:-1] if tokens[-1:] == end else tokens
            over = len(tokens) > task.max_length
            given.append(tokens[: task.max_length - tail] + tokens[len(tokens) - tail :] if over else tokens)
        given = values.filled(given)
        most = task.max_target_length - len(end)
        encoded = values(rows["target"], add_special_tokens=False, max_length=most, **cut)["input_ids"]
        whole = [source + target + end for source, target in zip(given, encoded, strict=True)]
        return _of_decoder(whole, _lengths(given))

    def language(rows: Texts) -> dict[str, Any]:
        encoded = values(rows["text"], max_length=task.max_length - len(end), **cut)["input_ids"]
        whole = values.filled([tokens if tokens[-1:] == end else tokens + end for tokens in encoded])
        return _of_decoder(whole, [1] * len(whole))

    if labels:
        return classification
    if not decoder_only:
        return pairs
    return continued if KINDS[task.kind].generates else language


def _of_decoder(tokens: list[list[int]], given: list[int]) -> dict[str, Any]:
    """Return the columns of a decoder; `given` tokens of each row are not predicted, the first one never."""
    given = [max(1, number) for number in given]
    length = _lengths(tokens)
    terms = [whole - first for whole, first in zip(length, given, strict=True)]
    return {"input_ids": tokens, "given": given, "length": length, "terms": terms}


def _lengths(rows: Iterable[Sequence[int]]) -> list[int]:
    return [len(row) for row in rows]


def model_inputs(
    rows: Mapping[str, Sequence[Sequence[int]]], tokenizer: PreTrainedTokenizerBase, left: bool
) -> dict[str, Tensor]:
    tokens = rows["input_ids"]
    inputs = {
        "input_ids": padded(tokens, padding(tokenizer), left),
        "attention_mask": padded([[1] * len(row) for row in tokens], 0, left),
    }
    if "token_type_ids" in rows:
        inputs["token_type_ids"] = padded(rows["token_type_ids"], tokenizer.pad_token_type_id, left)
    return inputs


def padded(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> Tensor:
    """Return a tensor of shape (rows, tokens of the longest)."""
    padded = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for line, row in zip(padded, rows, strict=True):
        line[len(line) - len(row) if left else 0 :][: len(row)] = row
    return torch.from_numpy(padded)
