"""Where a study is published while it runs. MLflow is the one that readers ask too; another one needs only to write."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from search.storage.errors import StoreError
from search.trials.record import Replicate, Spent, TrialRecord


class Tracker(Protocol):
    """The published copy of one study, written by its driver.

    A call may be repeated, after a failure or by the next driver, and then changes nothing. `at` is the time of what
    is published, in seconds since the epoch, by default now. A trial's number is known from `publish` or `ensure` on.
    """

    def begin(self) -> None:
        """Mark the study as running, whatever an earlier driver ended it as."""

    def ensure(self, record: TrialRecord) -> None:
        """Create the trial where it is not there yet."""

    def publish(
        self, record: TrialRecord, counts: Mapping[str, float] | None = None, *, at: float | None = None
    ) -> Any:
        """Publish a trial's record; `counts` are the measurements known before training."""

    def progress(self, number: int, points: Iterable[Mapping[str, float]], *, at: float | None = None) -> None:
        """Publish points of a trial's curves: each has a `step`, perhaps a `time`, and values by their names."""

    def facts(self, number: int, facts: Mapping[str, Any], *, at: float | None = None) -> None:
        """Publish what is known of a trial beside its record: JSON values by the names in `schema.FACTS`."""

    def replicate(self, run: Replicate, points: Sequence[Mapping[str, float]] = (), *, at: float | None = None) -> None:
        """Publish a replicate that is over, with its curves."""

    def artifacts(self, number: int, folder: Path, name: str) -> None:
        """Upload the files of a folder to the folder `name` of a trial."""

    def withdraw(self, number: int, why: str) -> None:
        """Remove a trial's adapter, and publish why."""

    def disk(self, used: int, limit: int | None) -> None:
        """Publish the bytes that the study uses, and their limit."""

    def spent(self, spent: Spent) -> None:
        """Publish what the study has spent."""

    def front(
        self, rows: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]], files: Iterable[Path] = ()
    ) -> None:
        """Publish the front and the references beside it, as rows and as files."""

    def close(self, status: str) -> None:
        """End the study: FINISHED, FAILED or KILLED."""


def open_others(names: Sequence[str], study: str, folder: Path, info: Mapping[str, Any]) -> list[Tracker]:
    """Open the trackers that `tracking.also` names as package.module:function.

    Each function gets the study's name, its folder, and the study file with what was resolved, in JSON. Raises
    StoreError for one that cannot be imported.
    """
    trackers = []
    for name in names:
        module, _, function = name.partition(":")
        try:
            open_tracker = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError) as error:
            raise StoreError(
                f"tracking.also names functions that open a tracker, package.module:function; received {name} ({error})"
            ) from error
        trackers.append(open_tracker(study, folder, info))
    return trackers
