"""From rows to tokens: cleaning, splitting, tokenising once, and batches as models take them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from datasets import Dataset, disable_progress_bars
from torch import Tensor

from petl.data.cache import Tables, fetch, key_of
from petl.data.encoding import CHUNK, IGNORED, Texts, model_inputs, padded, tokenise
from petl.data.languages import set_language_tokens, set_languages
from petl.data.report import DataReport
from petl.data.rows import drawn, read_rows
from petl.data.sources import content, locate_data
from petl.data.values import ValueTokenizer, unknown_share
from petl.tasks import KINDS, Task, TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_FORMAT: Final = 2  # of the cached tables; another one whenever the same task gives other tables
# Fields that change neither a row nor a token; the source's are in the key by what they lead to.
_FREE: Final = frozenset(
    {
        *("name", "hub", "hub_config", "revision", "paths", "data_dir", "splits"),
        *("decoding", "validation_sample", "max_unknown", "script"),
    }
)
_LIBRARIES: Final = ("datasets", "numpy", "pandas", "tokenizers", "transformers")


@dataclass(frozen=True)
class Split:
    """One tokenised split.

    `rows` has the texts and their tokens. `labels` are indices, shape (rows,), and empty where the
    task has none. `lengths`, shape (rows,), are the tokens that a row costs: of the text; of the longer
    of source and target in an encoder-decoder; of both in a decoder. `targets`, shape (rows,), are
    the terms of a row's loss: 1 for a label, else its target's tokens.
    """

    rows: Dataset
    labels: Tensor
    lengths: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def tokens(self) -> Dataset:
        """Return the columns of `rows` that are no text."""
        texts = {column for kind in KINDS.values() for column in (*kind.inputs, "target")}
        return self.rows.select_columns([column for column in self.rows.column_names if column not in texts])


@dataclass
class TaskData:
    """A task's splits under one tokenizer, and the batches that a model takes.

    `splits` has train, validation, where there is one test, and `sample`: the fixed part of validation
    that is scored during a search, validation itself where that is all of it. `digest` is a hash of
    the rows drawn (texts, labels, split by split), so that a study notices that its data changed.
    `report` says what was understood of them.
    `start` is the token that a decoder starts with and `first` the one that generated text begins
    with, where that depends on the target's language (mBART has the one, NLLB the other).
    """

    task: Task
    splits: Mapping[str, Split]
    labels: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase
    digest: str
    report: DataReport
    decoder_only: bool = False
    start: int | None = None
    first: int | None = None

    def batch(self, split: str, index: Iterable[int]) -> tuple[dict[str, Tensor], Tensor]:
        """Return what a model's forward takes, shape (rows, tokens), padded on the right, and its labels.

        Labels of a classification are indices, shape (rows,). An encoder-decoder's are the target's
        tokens, (rows, target tokens), from which the decoder's inputs are made. A decoder reads source
        and target as one; labels[i, t], shape (rows, tokens), is what logits[i, t] predicts: the token
        at t + 1 where that is of the target. -100 marks what is not predicted, padding included.
        """
        index = [int(number) for number in index]
        part = self.splits[split]
        rows = part.tokens[index]
        inputs = self._inputs(rows)
        if self.labels:
            return inputs, part.labels[index]
        if "labels" in rows:
            return inputs, padded(rows["labels"], IGNORED)
        labels = [
            [IGNORED] * (given - 1) + tokens[given:] + [IGNORED]
            for tokens, given in zip(rows["input_ids"], rows["given"], strict=True)
        ]
        return inputs, padded(labels, IGNORED)

    def prompts(self, split: str, index: Iterable[int]) -> dict[str, Tensor]:
        """Return what `generate` continues or answers: a decoder's sources padded on the left, else `batch`'s inputs.

        Raises ValueError where nothing is to be generated.
        """
        if not KINDS[self.task.kind].generates:
            raise ValueError(f"a task of kind {self.task.kind} has nothing to generate")
        rows = self.splits[split].tokens[[int(number) for number in index]]
        if not self.decoder_only:
            return self._inputs(rows)
        sources = [tokens[:given] for tokens, given in zip(rows["input_ids"], rows["given"], strict=True)]
        return self._inputs({"input_ids": sources}, left=True)

    def sources(self, split: str) -> list[str]:
        """Return the texts as they were read: the source, or the (first) text."""
        return list(self.splits[split].rows[KINDS[self.task.kind].inputs[0]])

    def references(self, split: str) -> list[str]:
        """Return the answers: targets as they were read, label names, or the texts of a language model."""
        part = self.splits[split]
        if self.labels:
            return [self.labels[index] for index in part.labels.tolist()]
        return list(part.rows["target" if KINDS[self.task.kind].generates else "text"])

    def facts(self) -> dict[str, Any]:
        """Return what a model trained on this has to know to predict: JSON-ready; without labels where it generates."""
        return self.task.facts | ({"labels": list(self.labels)} if self.labels else {})

    def _inputs(self, rows: Mapping[str, list[list[int]]], left: bool = False) -> dict[str, Tensor]:
        return model_inputs(rows, self.tokenizer, left)


def load_data(
    task: Task, tokenizer: PreTrainedTokenizerBase, *, decoder_only: bool = False, cache: str | Path | None = None
) -> TaskData:
    """Read and tokenise a task, once on a machine: `cache` is a folder, by default `cache_folder()`.

    A decoder reads the prompt, a new line where that does not end in white space, and the target. The
    end of a source that is too long is cut off, never what the prompt has behind it. The tokenizer of
    a model with language codes is set to the task's `languages`.

    Raises TaskError, naming the place and the column, where the data is not what the task says.
    """
    disable_progress_bars()
    kind = KINDS[task.kind]
    if task.kind == "causal-lm" and not decoder_only:
        raise TaskError(f"task {task.name}: causal-lm is for models that are a decoder alone")
    task, joined = locate_data(task), decoder_only and not kind.labelled
    set_languages(task, tokenizer)
    read_from = content(task)
    key = key_of(
        {
            "format": _FORMAT,
            "task": {name: value for name, value in asdict(task).items() if name not in _FREE},
            "decoder_only": joined,
            "sources": read_from,
            "tokenizer": _fingerprint(tokenizer),
            "libraries": {name: version(name) for name in _LIBRARIES},
        }
    )

    def make() -> Tables:
        tables = _tables(task, tokenizer, joined)
        if content(task) != read_from:
            raise TaskError(f"task {task.name}: its files changed while they were read; start again")
        return tables

    tables = fetch(key, make, Path(cache) if cache else None)
    report = DataReport.from_dict(tables.facts["report"])
    splits = {split: _split(table) for split, table in tables.splits.items()}
    splits["sample"] = _sample(splits["validation"], task)
    data = TaskData(
        task, splits, tuple(tables.facts["labels"]), tokenizer, tables.facts["digest"], report, decoder_only
    )
    if kind.generates and not decoder_only:
        data.start, data.first = set_language_tokens(tokenizer)
    return data


def _tables(task: Task, tokenizer: PreTrainedTokenizerBase, decoder_only: bool) -> Tables:
    rows = read_rows(task)
    digest = hashlib.sha256()
    for split, frame in rows.frames.items():
        digest.update(split.encode() + pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    tokens = tokenise(task, rows.labels, tokenizer, decoder_only)
    splits = {split: _table(frame, tokens) for split, frame in rows.frames.items()}
    values = ValueTokenizer.of(task, tokenizer)
    report = rows.report.with_unknown({split: unknown_share(_flat(table), values) for split, table in splits.items()})
    return Tables(splits, {"labels": rows.labels, "digest": digest.hexdigest()[:16], "report": report.to_dict()})


def _flat(table: Dataset) -> np.ndarray:
    """Return all tokens of a split, of texts and of targets."""
    columns = [table.data.column(name) for name in ("input_ids", "labels") if name in table.column_names]
    return np.concatenate([chunk.flatten().to_numpy() for column in columns for chunk in column.chunks])


def _table(frame: pd.DataFrame, tokens: Callable[[Texts], Mapping[str, Any]]) -> Dataset:
    parts = []
    for start in range(0, len(frame), CHUNK):
        texts = {str(name): column.tolist() for name, column in frame[start : start + CHUNK].items()}
        encoded = tokens(texts)
        arrays = {name: pa.array(column, pa.string()) for name, column in texts.items() if name not in encoded}
        for name, column in encoded.items():
            arrays[name] = pa.array(column, pa.list_(pa.int32()) if isinstance(column[0], list) else pa.int64())
        parts.append(pa.table(arrays))
    return Dataset(pa.concat_tables(parts))


def _split(table: Dataset) -> Split:
    columns = {name: table.data.column(name).to_numpy() for name in table.column_names if name in _NUMBERS}
    labels = torch.from_numpy(columns.get("label", np.zeros(0, np.int64)).copy())
    return Split(table, labels, columns["length"], columns["terms"])


_NUMBERS: Final = ("label", "length", "terms")


def _sample(validation: Split, task: Task) -> Split:
    index = drawn(len(validation), task.validation_sample, task.split_seed)
    if len(index) == len(validation):
        return validation
    labels = validation.labels[index] if len(validation.labels) else validation.labels
    return Split(validation.rows.select(index), labels, validation.lengths[index], validation.targets[index])


def _fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of all that decides what tokens a text becomes."""
    digest = hashlib.sha256(type(tokenizer).__name__.encode())
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "model_input_names", "truncation_side", "padding_side")
    for name in (*names, "src_lang", "tgt_lang"):
        digest.update(f"{name} {getattr(tokenizer, name, None)}\n".encode())
    if getattr(tokenizer, "is_fast", False):
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        digest.update(json.dumps({**state, "truncation": None, "padding": None}).encode())  # left by the last call
        return digest.hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
