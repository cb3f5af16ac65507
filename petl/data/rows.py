"""The rows of a task's splits: its columns, labels, what is cut and drawn, and what was dropped and why."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from petl.data.report import DataReport, SplitReport, counted
from petl.data.sources import locate_data, sources
from petl.tasks import KINDS, SPLITS, Task, TaskError

_CUT: Final = 0.1  # share of the train split that becomes a split which the source lacks
_CUT_MOST: Final = 2_000
_HIDDEN: Final = "-1"  # the label of every row of a test split whose labels are kept secret


@dataclass(frozen=True)
class Rows:
    """Hold the rows of each split under the names of the kind's columns, the task's labels, and a report."""

    frames: Mapping[str, pd.DataFrame]
    labels: tuple[str, ...]
    report: DataReport


def read_splits(task: Task) -> dict[str, pd.DataFrame]:
    """Return the rows of each split under the names of the kind's columns: texts and label names, in file order.

    A split that the source lacks is cut from the train split before that is bounded, so that changing
    `train_rows` leaves validation and test as they are; only then are repeated inputs dropped, which
    would be in both. A test split whose labels are all hidden is left out. Raises TaskError for a
    missing column, an unknown label or an empty split.
    """
    return _read(task)[0]


def read_rows(task: Task) -> Rows:
    """Return what `read_splits` does, with the labels and a report. Raises TaskError as that does."""
    frames, read, dropped, notes = _read(task)
    labels = _labels(task, frames) if KINDS[task.kind].labelled else ()
    inputs = _inputs(task)
    keys = {split: pd.util.hash_pandas_object(frame[inputs], index=False) for split, frame in frames.items()}
    parts = {}
    for split, frame in frames.items():
        counts = {str(name): int(n) for name, n in frame["label"].value_counts().items()} if labels else {}
        parts[split] = SplitReport(
            read=read.get(split, 0),
            kept=len(frame),
            dropped=dropped.get(split, {}),
            repeated=int(keys[split].duplicated().sum()),
            seen=0 if split == "train" else int(keys[split].isin(keys["train"]).sum()),
            classes=counted(counts),
            labels=len(counts),
        )
    never = sorted(set(labels) - set(frames["train"]["label"])) if labels else []
    if never:
        shown = ", ".join(map(repr, never[:5])) + (f" and {len(never) - 5:,} more" if len(never) > 5 else "")
        notes.append(f"train: no row has the label {shown}, so that nothing can learn it")
    sample = {str(name): str(value) for name, value in frames["train"].iloc[0].items()}
    return Rows(frames, labels, DataReport(splits=parts, sample=sample, notes=tuple(notes)))


def drawn(rows: int, wanted: int | None, seed: int) -> np.ndarray:
    """Draw `wanted` of so many rows, ascending; all where None. A larger draw holds the smaller ones."""
    if wanted is None or wanted >= rows:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).permutation(rows)[:wanted])


def _read(task: Task) -> tuple[dict[str, pd.DataFrame], dict[str, int], dict[str, dict[str, int]], list[str]]:
    """Return the splits, the rows that were in each source, those dropped by reason, and the reader's notes."""
    task = locate_data(task)
    places = sources(task)
    frames: dict[str, pd.DataFrame] = {}
    read, dropped, notes = {}, {}, []
    for split, source in places.items():
        frame = source.read()
        clean, reasons = _clean(task, split, frame, str(source))
        notes += [f"{split}: {note}" for note in frame.attrs.get("notes", [])]
        if clean is not None:
            frames[split], read[split], dropped[split] = clean, len(frame), reasons
    lacking = [split for split in ("test", "validation") if split not in places]
    if lacking == ["test"]:  # two splits say what is trained on and what decides; nothing is set aside unasked
        lacking = []
    if lacking:
        whole = frames["train"]
        train = whole.drop_duplicates(subset=_inputs(task))
        if repeated := len(whole) - len(train):
            dropped["train"]["repeated"] = repeated
            if other := len(whole.drop_duplicates()) - len(train):
                notes.append(f"train: {other:,} of the repeated texts have another answer there; the first is kept")
        train = train.sample(frac=1.0, random_state=task.split_seed)
        for split in lacking:
            rows = getattr(task, f"{split}_rows") or min(int(_CUT * len(train)), _CUT_MOST)
            frames[split], train = train[:rows].sort_index(), train[rows:]
        frames["train"] = train.sort_index()
    for split, frame in frames.items():
        rows = getattr(task, f"{split}_rows")
        frames[split] = frame.iloc[drawn(len(frame), rows, task.split_seed)].reset_index(drop=True)
        if frames[split].empty:
            why = ", ".join(f"{count:,} {reason}" for reason, count in dropped.get("train", {}).items())
            raise TaskError(
                f"task {task.name}: no rows are left for the {split} split; add data or ask for fewer rows"
                + (f" (of {read['train']:,} train rows were dropped: {why})" if why else "")
            )
    return {split: frames[split] for split in SPLITS if split in frames}, read, dropped, notes


def _inputs(task: Task) -> list[str]:
    return [column for column in KINDS[task.kind].inputs if column in task.columns]


def _clean(task: Task, split: str, frame: pd.DataFrame, source: str) -> tuple[pd.DataFrame | None, dict[str, int]]:
    """Return the rows that can be used, None for a test split whose labels are hidden; and the others by reason."""
    columns = {name: _column(frame, name) for name in {*task.columns.values(), *task.minimum}}
    absent = sorted(name for name, column in columns.items() if column is None)
    if absent:
        raise TaskError(
            f"task {task.name}: {source} has no column {', '.join(absent)}; it has {', '.join(map(str, frame.columns))}"
        )
    unfit = {
        f"{column} below {least:g}, or no number": ~(pd.to_numeric(columns[column], errors="coerce") >= least)
        for column, least in task.minimum.items()
    }
    below = np.logical_or.reduce([*unfit.values(), np.zeros(len(frame), bool)])
    clean = pd.DataFrame({name: columns[column] for name, column in task.columns.items()})
    unfit |= {f"without {column}": clean[name].isna() for name, column in task.columns.items()}
    if task.reading != "lenient":
        for name, column in task.columns.items():
            _require_text(task, source, column, clean[name][~below])
    if "label" in clean:
        clean["label"] = _label_names(task, split, clean["label"][~below]).reindex(clean.index)
        unfit[f"with the label {_HIDDEN}, hidden"] = clean["label"].isna()
        if split == "test" and not below.all() and clean["label"].isna().all():
            return None, {}
    if task.kind == "causal-lm":  # files of running text have blank lines between paragraphs
        unfit["blank"] = clean["text"].astype(str).str.strip() == ""
    left, dropped = pd.Series(True, index=clean.index), {}
    for reason, rows in unfit.items():
        if lost := int((left & rows).sum()):
            dropped[reason] = lost
        left &= ~rows
    return clean[left].astype(str).reset_index(drop=True), dropped


def _column(frame: pd.DataFrame, name: str) -> Any:
    """Return a column by its name, a dotted path into nested ones, or the name in the one nested column that has it.

    Raises TaskError where two columns have the name.
    """
    if name in frame:
        if list(frame.columns).count(name) > 1:
            raise TaskError(f"two columns are named {name}; rename one. The columns are {', '.join(frame.columns)}")
        return frame[name]
    outer, _, inner = name.partition(".")
    flat = frame.loc[:, ~frame.columns.duplicated()]
    if inner and outer in flat and inner in _keys(flat[outer]):
        return flat[outer].map(lambda value: value.get(inner) if isinstance(value, Mapping) else None)
    nested = [column for column in flat if name in _keys(flat[column])]
    return _column(flat, f"{nested[0]}.{name}") if len(nested) == 1 else None


def _keys(column: pd.Series[Any]) -> Iterable[str]:
    """Return the keys of a nested column's first value; none of a flat one."""
    where = column.first_valid_index()
    return column[where].keys() if where is not None and isinstance(column[where], Mapping) else ()


def _require_text(task: Task, source: str, name: str, values: pd.Series[Any]) -> None:
    """Raise TaskError for a column with a value that is several, or bytes: its text would be Python's, not the data's.

    Numbers and truth values have a text of their own.
    """
    if values.dtype != object:
        return
    for place, value in enumerate(values):
        if isinstance(value, Mapping):
            what, remedy = (
                "has parts",
                f"name one of them, such as task.columns: {{...: {name}.{next(iter(value), 'KEY')}}}",
            )
        elif isinstance(value, list | tuple | set | np.ndarray):
            what, remedy = "is a list", "join it to one text, or give each of its entries a row"
        elif isinstance(value, bytes):
            what, remedy = "is bytes", "decode them to text"
        else:
            continue
        raise TaskError(
            f"task {task.name}: in {source} the column {name} of row {place + 1} {what}, received {str(value)[:60]}; "
            f"a value is one text. Please {remedy}"
        )


def _label_names(task: Task, split: str, values: pd.Series[Any]) -> pd.Series[Any]:
    """Return label names; missing where a label is hidden. Raises TaskError for one that is not among the task's.

    GLUE hides a label as -1. It is taken for that where no other label occurs in the split, or all of the task's do;
    where one of them is missing, the numbers may begin at -1.
    """
    texts = values.map(_text, na_action="ignore").astype(object)
    if task.labels is None:
        return texts
    names: dict[str, str | None] = {str(number): name for number, name in enumerate(task.labels)}
    names |= {name: name for name in task.labels}
    present = set(texts.dropna())
    known = {names[text] for text in present & set(names)}
    if task.reading == "lenient" or not known or known == set(task.labels):
        names = {_HIDDEN: None, **names}
    unknown = sorted(present - set(names))
    if unknown:
        begins = _HIDDEN in unknown and (
            f". {', '.join(sorted(set(task.labels) - known))} does not occur: do the numbers begin at -1? "
            f"Where -1 is no label, task.minimum: {{{task.columns['label']}: 0}} leaves its rows out"
        )
        raise TaskError(
            f"task {task.name}: the {split} split has the label {unknown[0]!r}; known are "
            f"{', '.join(task.labels)}, or 0 to {len(task.labels) - 1} in this order{begins or ''}"
        )
    return texts.map(names, na_action="ignore").astype(object)


def _text(value: Any) -> str:
    """Return a value as text; integers that a missing neighbour made floats are integers again."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _labels(task: Task, frames: Mapping[str, pd.DataFrame]) -> tuple[str, ...]:
    """Return the task's labels, or those of the train split. Raises TaskError for those that no model could tell."""
    if task.labels is not None:
        return task.labels
    labels = tuple(sorted(frames["train"]["label"].unique()))
    if len(labels) < 2:
        raise TaskError(f"task {task.name}: training needs two labels or more; its train split has {labels}")
    if task.reading != "lenient":
        _require_distinct(task, labels)
    for split, frame in frames.items():
        strange = sorted(set(frame["label"]) - set(labels))
        if strange:
            raise TaskError(
                f"task {task.name}: the {split} split has the label {strange[0]!r}, which training never saw; "
                f"it saw {', '.join(labels)}"
            )
    return labels


def _require_distinct(task: Task, labels: Iterable[str]) -> None:
    """Raise TaskError for two labels that look the same: blanks, invisible characters, other code points."""
    first: dict[str, str] = {}
    for label in labels:
        visible = "".join(sign for sign in unicodedata.normalize("NFKC", label) if unicodedata.category(sign) != "Cf")
        if (other := first.setdefault(" ".join(visible.split()), label)) != label:
            raise TaskError(
                f"task {task.name}: the labels {other!a} and {label!a} differ in blanks or invisible signs alone, "
                "which would make two classes of one; write them the same in each row"
            )
