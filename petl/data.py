"""From files to tokens: reading, splitting, tokenising, and batches of rows of like length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, disable_progress_bars
from torch import Tensor

from petl.locate import package_path
from petl.tasks import SPLITS, Task, TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WINDOW: Final = 50  # batches whose rows are sorted by length together: like lengths, yet well mixed
_CUT: Final = 0.1  # share of the train file that becomes a split which has no file of its own
_CUT_MOST: Final = 2_000


@dataclass(frozen=True)
class Split:
    """One tokenised split. `rows` has the tokenizer's columns; `labels` are indices, shape (rows,)."""

    rows: Dataset
    labels: Tensor
    lengths: np.ndarray  # tokens of each row

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TaskData:
    """A task's splits under one tokenizer, and what padding a batch needs.

    `digest` is a hash of the rows drawn (texts, labels, split by split), so that a study can tell
    that a file changed under it.
    """

    splits: Mapping[str, Split]
    labels: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase
    digest: str

    def batch(self, split: str, index: Sequence[int] | np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs padded to the longest row, shape (len(index), tokens), and labels, shape (len(index),)."""
        part = self.splits[split]
        rows = part.rows[list(index)]
        inputs = self.tokenizer.pad(rows, return_tensors="pt")
        return dict(inputs), part.labels[torch.as_tensor(index)]


def read_table(path: str) -> pd.DataFrame:
    """A csv, tsv, json, jsonl or parquet file. Bytes that are not UTF-8 become U+FFFD.

    Values of csv and tsv files are text, only empty ones are missing: "NA" and "None" are words, and
    a label "1" does not become 1.0 because another one is missing.

    Raises TaskError where the file is missing, of another kind, or damaged.
    """
    file = package_path(path) if path.startswith("package:") else Path(path).expanduser()
    if not file.is_file():
        raise TaskError(f"no file at {file}" + (f" (looked up as {path})" if path != str(file) else ""))
    kind = file.name.removesuffix(".gz").rpartition(".")[2].lower()
    try:
        if kind in ("csv", "tsv"):
            separator = "\t" if kind == "tsv" else ","
            return pd.read_csv(
                file, sep=separator, encoding_errors="replace", dtype=str, keep_default_na=False, na_values=[""]
            )
        if kind in ("jsonl", "json"):
            return pd.read_json(file, lines=kind == "jsonl", encoding_errors="replace", dtype=False)
        if kind == "parquet":
            return pd.read_parquet(file)
    except (ValueError, OSError, EOFError) as error:
        raise TaskError(f"{file} cannot be read as {kind}: {error}") from error
    raise TaskError(f"a task's file is csv, tsv, json, jsonl or parquet (.gz allowed); received {file.name}")


def read_splits(task: Task) -> dict[str, pd.DataFrame]:
    """The rows of each split as columns text, label and, for pairs, pair: clean, distinct, bounded.

    A split that has no file is cut from the train file before that is bounded, so that changing
    `train_rows` leaves validation and test as they are. Raises TaskError for a missing column or an
    empty split.
    """
    frames = {split: _clean(task, split, read_table(path)) for split, path in task.paths.items()}
    train = frames.pop("train").sample(frac=1.0, random_state=task.split_seed)
    for split in ("test", "validation"):
        if split in frames:
            frames[split] = frames[split].sample(frac=1.0, random_state=task.split_seed)
        elif split == "test" and set(task.paths) == {"train", "validation"}:
            continue  # two files say what is trained on and what decides; nothing is set aside unasked
        else:
            rows = getattr(task, f"{split}_rows") or min(int(_CUT * len(train)), _CUT_MOST)
            frames[split], train = train[:rows], train[rows:]
    frames["train"] = train
    for split, frame in frames.items():
        frames[split] = frame[: getattr(task, f"{split}_rows")].reset_index(drop=True)
        if frames[split].empty:
            raise TaskError(f"task {task.name}: no rows are left for the {split} split; add data or ask for fewer rows")
    return {split: frames[split] for split in SPLITS if split in frames}


def load_data(task: Task, tokenizer: PreTrainedTokenizerBase) -> TaskData:
    """Reads and tokenises a task. Labels are the sorted names that occur in the train split.

    Raises TaskError, naming the file and the column, where the data is not what the task says.
    """
    frames = read_splits(task)
    labels = tuple(sorted(frames["train"]["label"].unique()))
    if len(labels) < 2:
        raise TaskError(f"task {task.name}: training needs two labels or more; its train split has {labels}")
    digest = hashlib.sha256()
    splits = {}
    for split, frame in frames.items():
        strange = sorted(set(frame["label"]) - set(labels))
        if strange:
            raise TaskError(
                f"task {task.name}: the {split} split has the label {strange[0]!r}, which training never saw; "
                f"it saw {', '.join(labels)}"
            )
        digest.update(split.encode() + pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
        splits[split] = _tokenise(frame, labels, tokenizer, task.max_length)
    return TaskData(splits, labels, tokenizer, digest.hexdigest()[:16])


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch as row indices: a function of (seed, epoch) alone.

    Rows are shuffled, sorted by length within windows of some batches, cut into batches, and the
    batches shuffled again. Every row occurs once; the last batch drawn may be smaller.
    """
    draw = np.random.default_rng((seed, epoch))
    order = draw.permutation(len(lengths))
    window = _WINDOW * batch_size
    order = np.concatenate(
        [part[np.argsort(lengths[part], kind="stable")] for part in np.split(order, range(window, len(order), window))]
    )
    batches = np.split(order, range(batch_size, len(order), batch_size))
    return [batches[index] for index in draw.permutation(len(batches))]


def sorted_batches(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """All rows, longest first, for evaluation: little padding, and memory runs out at once or never."""
    order = np.argsort(-lengths, kind="stable")
    yield from np.split(order, range(batch_size, len(order), batch_size))


def _clean(task: Task, split: str, frame: pd.DataFrame) -> pd.DataFrame:
    absent = {*task.columns.values(), *task.minimum} - set(frame.columns)
    if absent:
        raise TaskError(
            f"task {task.name}: {task.paths[split]} has no column {', '.join(sorted(absent))}; "
            f"it has {', '.join(map(str, frame.columns))}"
        )
    for column, least in task.minimum.items():
        frame = frame[pd.to_numeric(frame[column], errors="coerce") >= least]
    frame = frame[list(task.columns.values())].dropna()
    frame.columns = pd.Index(list(task.columns))
    texts = [column for column in task.columns if column != "label"]
    frame["label"] = frame["label"].map(_label)
    return frame.astype(str).drop_duplicates(subset=texts)


def _label(value: Any) -> str:
    """Integers that a missing neighbour made floats are integers again."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _tokenise(frame: pd.DataFrame, labels: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Split:
    disable_progress_bars()

    def tokens(rows: Mapping[str, list[str]]) -> dict[str, Any]:
        return dict(tokenizer(rows["text"], rows.get("pair"), truncation=True, max_length=max_length))

    texts = Dataset.from_pandas(frame.drop(columns="label"), preserve_index=False)
    rows = texts.map(tokens, batched=True, keep_in_memory=True, remove_columns=texts.column_names)
    index = {label: number for number, label in enumerate(labels)}
    return Split(
        rows,
        torch.tensor([index[label] for label in frame["label"]]),
        np.array([len(row) for row in rows["input_ids"]]),
    )
