"""What was understood of a task's rows: how many, which were dropped and why, classes, and what looks wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from petl.tasks import Task, TaskError

_MOST_CLASSES: Final = 10  # that are named
_LONGEST: Final = 70  # characters of a value that is shown
# Shares beyond which something is said.
_DROPPED: Final = 0.1
_REPEATED: Final = 0.1
_SEEN: Final = 0.01
_ONE_CLASS: Final = 0.95
_OWN: Final = 0.5  # labels for each row
_FEW: Final = 20  # rows of a split whose scores are then steps


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """Count a split's rows.

    `read` rows were in its file, 0 for one that was cut from train; `kept` are left. `dropped` has the number of the
    others by reason. `repeated` of those kept have the inputs of an earlier one, `seen` have those of a train row.
    `classes` counts the most frequent labels, of `labels` that occur. `unknown` is the share of unknown tokens.
    """

    read: int
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    repeated: int = 0
    seen: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)
    labels: int = 0
    unknown: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """Describe the splits, the first train row as it was understood, and what the reader notes."""

    splits: Mapping[str, SplitReport]
    sample: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON value that `from_dict` reads."""
        return {**asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DataReport:
        splits = {name: SplitReport(**part) for name, part in data["splits"].items()}
        return cls(splits=splits, sample=data["sample"], notes=tuple(data["notes"]))

    def with_unknown(self, shares: Mapping[str, float]) -> DataReport:
        """Return the same with the splits' shares of unknown tokens."""
        splits = {name: replace(part, unknown=shares[name]) for name, part in self.splits.items()}
        return replace(self, splits=splits)

    def require_known(self, task: Task) -> None:
        """Raise TaskError where a larger share of a split's tokens is unknown than the task allows."""
        for split, part in self.splits.items():
            if part.unknown > task.max_unknown:
                raise TaskError(
                    f"task {task.name}: {part.unknown:.1%} of the tokens of the {split} split are unknown to the "
                    f"tokenizer, and task.max_unknown is {task.max_unknown:.1%}; take a model of this language and "
                    f"script, or allow more. The first train row: {dict(self.sample)}"
                )

    def lines(self, columns: Mapping[str, str]) -> list[str]:
        """Return what is shown before anything is trained; `columns` are the source's names of the sample's."""
        return [
            *(f"  {name}: {_rows(part)}" for name, part in self.splits.items()),
            "  first train row: "
            + ", ".join(f"{_named(name, columns)} {_short(value)}" for name, value in self.sample.items()),
            *(f"  warning: {text}" for text in self.warnings()),
        ]

    def warnings(self) -> Iterator[str]:
        """Yield what looks as if the data were not what they are taken for."""
        yield from self.notes
        train = self.splits["train"]
        for name, part in self.splits.items():
            if sum(part.dropped.values()) > _DROPPED * part.read:
                yield f"{name}: {sum(part.dropped.values()):,} of {part.read:,} rows are not used"
            if part.repeated > _REPEATED * part.kept:
                yield f"{name}: {part.repeated:,} of {part.kept:,} rows repeat an earlier one"
            if part.seen > _SEEN * part.kept:
                yield (
                    f"{name}: {part.seen:,} of {part.kept:,} rows are in the train split too, so that its scores say "
                    "how well they are remembered"
                )
            if part.kept < _FEW:
                yield f"{name}: {part.kept} rows are few" + ("" if name == "train" else ", so scores move in steps")
            most = max(part.classes, key=lambda label: part.classes[label], default="")
            if most and part.classes[most] > _ONE_CLASS * part.kept:
                yield f"{name}: {_share(part.classes[most], part.kept)} of the rows have the label {most!r}"
            if part.labels > _OWN * part.kept:
                yield f"{name}: {part.kept:,} rows have {part.labels:,} labels; is that the column of the answer?"
            if part.labels < train.labels:
                yield f"{name}: {part.labels} of the {train.labels} labels of the train split occur"
        by_case: dict[str, str] = {}
        for label in train.classes:
            if (other := by_case.setdefault(label.casefold(), label)) != label:
                yield f"train: the labels {other!r} and {label!r} differ in upper and lower case alone"


def counted(classes: Mapping[str, int]) -> dict[str, int]:
    """Return the most frequent classes, of many."""
    return dict(sorted(classes.items(), key=lambda item: (-item[1], item[0]))[:_MOST_CLASSES])


def _rows(part: SplitReport) -> str:
    text = f"{part.kept:,} rows" + (f" of {part.read:,} read" if part.read else ", cut from train")
    if part.dropped:
        text += "; dropped: " + ", ".join(f"{count:,} {reason}" for reason, count in part.dropped.items())
    if part.classes:
        shares = ", ".join(f"{label} {_share(count, part.kept)}" for label, count in part.classes.items())
        more = part.labels - len(part.classes)
        text += f"; {part.labels} classes: {shares}" + (f", and {more:,} more" if more else "")
    if part.unknown >= 0.001:
        text += f"; {part.unknown:.1%} of the tokens are unknown"
    return text


def _share(count: int, whole: int) -> str:
    return f"{count / whole:.1%}"


def _named(name: str, columns: Mapping[str, str]) -> str:
    return name if columns.get(name, name) == name else f"{name} ({columns[name]})"


def _short(value: str) -> str:
    return repr(value if len(value) <= _LONGEST else value[: _LONGEST - 3] + "...")
