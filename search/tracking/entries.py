"""What waits in the journal to be published, one class a kind. An entry applies itself to a tracker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Protocol

from search.storage.folder import RESULT, TrialFolder
from search.tracking.tracker import Tracker
from search.trials.record import Replicate, Spent, TrialRecord
from search.trials.upgrade import upgraded_entry


class Entry(Protocol):
    """A frozen dataclass whose fields JSON can hold, or that have `to_dict`."""

    def apply(self, tracker: Tracker, folder: Path, at: float) -> None:
        """Publish the entry, which was written at the time `at`.

        Its paths are relative to the study's `folder`, which may have moved since.
        """


@dataclass(frozen=True)
class Begin:
    def apply(self, tracker: Tracker, folder: Path, at: float) -> None:
        tracker.begin()


@dataclass(frozen=True)
class Ensure:
    record: TrialRecord

    def apply(self, tracker: Tracker, folder: Path, at: float) -> None:
        tracker.ensure(self.record)


@dataclass(frozen=True)
class Publish:
    record: TrialRecord
    counts: Mapping[str, float]

    def apply(self, tracker: Tracker, folder: Path, at: float) -> None:
        tracker.publish(self.record, self.counts, at=at)


@dataclass(frozen=True)
class Progress:
    number: int
    points: Sequence[Mapping[str, float]]

    def apply(self, tracker: Tracker, folder: Path, at: float) -> None:
        tracker.progress(self.number, self.points, at=at)


@dataclass(frozen=True)
class Facts:
    number: int
    facts: Mapping[str, Any]

    def apply(self, tracker: Tracker, folder: Path, at: float) -> None:
        tracker.facts(self.number, self.facts, at=at)


@dataclass(frozen=True)
class Replicated:
    run: Replicate
    points: Sequence[Mapping[str, float]] = ()

    def apply(self, tracker: Tracker, folder: Path, at: float) -> None:
        tracker.replicate(self.run, self.points, at=at)


@dataclass(frozen=True)
class Artifacts:
    number: int
    folder: str
    name: str

    def apply(self, tracker: Tracker, folder: Path, at: float) -> None:
        tracker.artifacts(self.number, folder / self.folder, self.name)


@dataclass(frozen=True)
class Withdraw:
    number: int
    why: str

    def apply(self, tracker: Tracker, folder: Path, at: float) -> None:
        tracker.withdraw(self.number, self.why)
        TrialFolder(folder, self.number).drop(RESULT)  # last: by it the trial is known to be still published


@dataclass(frozen=True)
class Disk:
    used: int
    limit: int | None

    def apply(self, tracker: Tracker, folder: Path, at: float) -> None:
        tracker.disk(self.used, self.limit)


@dataclass(frozen=True)
class Spending:
    hours: float
    device_hours: float

    def apply(self, tracker: Tracker, folder: Path, at: float) -> None:
        tracker.spent(Spent(hours=self.hours, device_hours=self.device_hours))


@dataclass(frozen=True)
class Front:
    rows: Sequence[Mapping[str, Any]]
    references: Sequence[Mapping[str, Any]]
    files: Sequence[str]

    def apply(self, tracker: Tracker, folder: Path, at: float) -> None:
        tracker.front(self.rows, self.references, [folder / file for file in self.files])


@dataclass(frozen=True)
class Close:
    status: str

    def apply(self, tracker: Tracker, folder: Path, at: float) -> None:
        tracker.close(self.status)


KINDS: Final[Mapping[str, type[Any]]] = {  # as the journal has them
    "begin": Begin,
    "ensure": Ensure,
    "publish": Publish,
    "progress": Progress,
    "facts": Facts,
    "replicate": Replicated,
    "artifacts": Artifacts,
    "withdraw": Withdraw,
    "disk": Disk,
    "spent": Spending,
    "front": Front,
    "close": Close,
}
_NAMES: Final = {kind: name for name, kind in KINDS.items()}
_PARSERS: Final[Mapping[str, Callable[[Any], Any]]] = {  # of fields that are more than JSON, by their names
    "record": TrialRecord.from_dict,
    "run": Replicate.from_dict,
}


def written(entry: Entry) -> tuple[str, dict[str, Any]]:
    """Return an entry's kind and its fields in JSON, which `parsed` reads."""
    values = {each.name: getattr(entry, each.name) for each in fields(entry)}  # type: ignore[arg-type]
    return _NAMES[type(entry)], {name: value.to_dict() if name in _PARSERS else value for name, value in values.items()}


def parsed(kind: str, values: Mapping[str, Any]) -> Entry:
    """Return the entry that was written. Raises LookupError or TypeError for one of a later version."""
    kind, values = upgraded_entry(kind, values)
    entry: Entry = KINDS[kind](
        **{name: _PARSERS[name](value) if name in _PARSERS else value for name, value in values.items()}
    )
    return entry
