"""Texts as a model takes them: tokens with their language, and padded batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from petl.backbones.padding import padding
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
    first = [text if isinstance(text, str) else text[0] for text in texts]
    second = [text[1] for text in texts if not isinstance(text, str)]
    encoded = tokenizer(first, second or None, truncation=True, max_length=task.max_length)
    return model_inputs(encoded, tokenizer, left=not kind.labelled)


def language_tokens(task: Task, tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int | None]:
    """Return `TaskData`'s `start` and `first` of a tokenizer, and set it to the task's languages."""
    set_languages(task, tokenizer)
    return set_language_tokens(tokenizer)


def tokenise(
    task: Task, labels: Sequence[str], tokenizer: PreTrainedTokenizerBase, decoder_only: bool
) -> Callable[[Texts], dict[str, Any]]:
    """Return what becomes of texts: the tokenizer's columns, the answer's, and `length` and `terms` of each row."""
    cut = {"truncation": True, "verbose": False}
    numbers = {label: number for number, label in enumerate(labels)}
    before, _, behind = task.prompt.partition("{source}")

    def classification(rows: Texts) -> dict[str, Any]:
        encoded = tokenizer(rows["text"], rows.get("pair"), max_length=task.max_length, **cut)
        columns = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
        answers = [numbers[label] for label in rows["label"]]
        return {**columns, "label": answers, "length": _lengths(encoded["input_ids"]), "terms": [1] * len(answers)}

    def pairs(rows: Texts) -> dict[str, Any]:
        prompts = [before + source + behind for source in rows["source"]]
        encoded = tokenizer(prompts, max_length=task.max_length, **cut)
        columns = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
        targets = tokenizer(text_target=rows["target"], max_length=task.max_target_length, **cut)["input_ids"]
        terms = _lengths(targets)
        length = list(map(max, _lengths(encoded["input_ids"]), terms))
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
        prompts = [before + source + behind_source for source in rows["source"]]
        given = []
        for tokens in tokenizer(prompts, verbose=False)["input_ids"]:
            tokens = tokens[:-1] if tokens[-1:] == end else tokens
            over = len(tokens) > task.max_length
            given.append(tokens[: task.max_length - tail] + tokens[len(tokens) - tail :] if over else tokens)
        most = task.max_target_length - len(end)
        encoded = tokenizer(rows["target"], add_special_tokens=False, max_length=most, **cut)["input_ids"]
        whole = [source + target + end for source, target in zip(given, encoded, strict=True)]
        return _of_decoder(whole, _lengths(given))

    def language(rows: Texts) -> dict[str, Any]:
        encoded = tokenizer(rows["text"], max_length=task.max_length - len(end), **cut)["input_ids"]
        whole = [tokens if tokens[-1:] == end else tokens + end for tokens in encoded]
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


def set_languages(task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the languages. Raises TaskError for one that a tokenizer with language codes has none for."""
    if task.languages is None or not hasattr(tokenizer, "src_lang"):
        return
    vocabulary = tokenizer.get_vocab()
    codes = []
    for language in task.languages:
        forms = (rf"{re.escape(language)}_[A-Z]{{2}}", rf"__{re.escape(language)}__", re.escape(language))
        matches = [code for form in forms for code in sorted(vocabulary) if re.fullmatch(form, code)]
        if not matches:
            raise TaskError(f"task {task.name}: the tokenizer has no code for the language {language!r}")
        codes.append(matches[0].strip("_"))
    tokenizer.src_lang, tokenizer.tgt_lang = codes


def set_language_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int | None]:
    """Return (start, first). In mBART the code ends a target, whose decoder wraps it to the front."""
    if not hasattr(tokenizer, "src_lang"):
        return None, None
    tokens = tokenizer(text_target="")["input_ids"]
    return (None, tokens[0]) if tokens[-1] == tokenizer.eos_token_id else (tokens[-1], None)


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
