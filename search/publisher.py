"""The published record follows the durable one: what the driver does about MLflow, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from search.address import masked
from search.naming import curve
from search.record import Records, State, TrialRecord
from search.store import TrialFolder, read_json
from search.tracking import Tracker


class Publisher:
    """Keeps MLflow in line with the records: a Listener.

    MLflow is only the published copy, so that a failure of it does not end the search: it is said
    once, and everything is published again at the end.
    """

    def __init__(self, tracker: Tracker, records: Records, folder: Path, say: Callable[[str], None]) -> None:
        self.tracker, self.records, self.folder, self.say = tracker, records, folder, say
        self._behind = False

    def started(self, record: TrialRecord) -> None:
        """The trial's run exists from here on."""
        with self._tolerant():
            self._publish(record)

    def reported(self, record: TrialRecord, report: Mapping[str, Any]) -> None:
        """Curves over steps."""
        with self._tolerant():
            self._publish(record)
            self._curves(record.number, report)

    def restarted(self, record: TrialRecord) -> None:
        """Nothing: the run goes on."""

    def ended(self, record: TrialRecord) -> None:
        """The final state, and the adapter of a complete trial; a closed one keeps no training state."""
        with self._tolerant():
            self._publish_whole(record)
        TrialFolder(self.folder, record.number).drop_states()

    def everything(self) -> None:
        """Whatever is not there yet, since an earlier driver died or MLflow was away."""
        for record in self.records.all():
            if record.state is State.RUNNING:
                self._publish(record)
            else:
                self._publish_whole(record)
        self._behind = False

    def catch_up(self) -> None:
        """Publishes again what failed to arrive."""
        if self._behind:
            self.everything()

    def _publish(self, record: TrialRecord) -> None:
        self.tracker.publish(record, self.records.origin(record.number).counts)

    def _publish_whole(self, record: TrialRecord) -> None:
        self._publish(record)
        result = TrialFolder(self.folder, record.number).find("result") if record.state is State.COMPLETE else None
        if result:
            self._curves(record.number, read_json(result / "report.json"))
            if (result / "adapter").is_dir():
                self.tracker.artifacts(record.number, result / "adapter")

    def _curves(self, number: int, report: Mapping[str, Any]) -> None:
        start = [{"step": 0, "startup_seconds": report["startup_seconds"]}] if "startup_seconds" in report else []
        points = curve(report.get("points", ()), report.get("validations", ()))
        self.tracker.progress(number, [*start, *points])

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a store or a server of the user's raises
            if not self._behind:
                self.say(f"MLflow does not answer; the search goes on, and publishes at its end: {masked(error)}")
            self._behind = True
