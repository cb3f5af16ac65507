"""The published record follows the durable one: what the driver has MLflow told, and when."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from petl.measurements import SCORES as MEASURED
from search.storage.folder import PREDICTIONS, SCORES, TrialFolder, read_json
from search.tracking.outbox import Told
from search.tracking.schema import ADAPTER
from search.trials.naming import curve
from search.trials.record import Replicate, SeedSummary, State, TrialRecord
from search.trials.records import Records

_WEIGHED: Final = 10.0  # seconds between two weighings: a folder of thousands of trials takes a while


class Publisher:
    """Keeps MLflow in line with the records: a Listener, and a RaceListener.

    `tell` takes what a Delivery does, and neither waits nor raises: MLflow is only the published copy, so that
    the search does not depend on it. `folder` is the study's, `used` tells the bytes that it uses, `limit` is theirs.
    """

    def __init__(
        self,
        tell: Callable[..., None],
        records: Records,
        folder: Path,
        used: Callable[[], int] = lambda: 0,
        limit: int | None = None,
    ) -> None:
        self.records, self.folder = records, folder
        self._tell, self._used, self._limit = tell, used, limit
        self._weighed = -math.inf  # when the disk was told of last
        self._told: dict[int, tuple[int, int]] = {}  # points and validations of a trial that were told of
        self._believed: set[int] = set()  # trials of which was told what replicates say

    def started(self, record: TrialRecord) -> None:
        """The trial's run exists from here on."""
        self._tell(self._record(record))

    def reported(self, record: TrialRecord, report: Mapping[str, Any]) -> None:
        """Curves over steps."""
        self._tell(self._record(record), *self._curves(record.number, report))

    def restarted(self, record: TrialRecord) -> None:
        """Nothing: the run goes on."""

    def paused(self, record: TrialRecord) -> None:
        """The run waits; what it was trained stays on the disk."""
        self._tell(self._record(record))

    def ended(self, record: TrialRecord) -> None:
        """The final state, and the adapter of a complete trial; a closed one keeps no training state."""
        self._tell(*self._whole(record))
        TrialFolder(self.folder, record.number).drop_states()
        if time.monotonic() - self._weighed >= _WEIGHED:
            self.weighed()

    def weighed(self) -> None:
        """The bytes that the study uses now, and what it has spent."""
        self._weighed = time.monotonic()
        self._tell(("disk", {"used": self._used(), "limit": self._limit}))
        self.spent()

    def spent(self) -> None:
        """The time that the study has taken."""
        self._tell(("spent", asdict(self.records.spent)))

    def withdrawn(self, number: int) -> None:
        """A trial's adapter goes, here and there, so that the study stays within its limit."""
        self._tell(("withdraw", {"number": number, "why": "removed to stay within storage.max_gb"}))

    def everything(self) -> None:
        """Whatever may not be there, since an earlier driver died or MLflow lost it. What is there costs little."""
        self._told.clear()
        self._tell(*(told for record in self.records.all() for told in self._whole(record)))
        over = [run for run in self.records.replicates if run.over]
        self._tell(*(self._replicate(run, ()) for run in over))
        self.believed(self.records.summaries)
        # What is nobody's any more; an earlier driver may not have lived to remove it.
        for record in self.records.all():
            if not record.state.open:
                TrialFolder(self.folder, record.number).drop_states()
        for run in over:
            TrialFolder(self.folder, run.number, run.seed).remove()

    def began(self, run: Replicate) -> None:
        """Nothing: a replicate has a run when it is over."""

    def died(self, run: Replicate) -> None:
        """Nothing: it goes on."""

    def over(self, run: Replicate, report: Mapping[str, Any]) -> None:
        """The replicate's run, whole; nothing more is needed of its folder."""
        self._tell(self._replicate(run, curve(report.get("points", ()), report.get("validations", ()))))
        TrialFolder(self.folder, run.number, run.seed).remove()

    def believed(self, beliefs: Mapping[int, SeedSummary]) -> None:
        """What replicates say of the trials, of those that have some or may be on the true front, or once might."""
        for number, item in beliefs.items():
            if item.seeds > 1 or item.failed or item.probability > 0 or number in self._believed:
                self._believed.add(number)
                self._tell(("believed", {"number": number, "what": asdict(item)}))

    def tested(self, records: Sequence[TrialRecord]) -> None:
        """Scores on whole splits, and predictions, of those that have them.

        With the scores of the validation split, which are not made again where training saw all of it.
        """
        for record in records:
            if part := TrialFolder(self.folder, record.number).find("test"):
                measured = record.measurements.to_dict() if record.measurements else {}
                validation = {name: value for name, value in measured.items() if name in MEASURED}
                scores = {"validation": validation, **read_json(part / SCORES)}
                self._tell(
                    ("tested", {"number": record.number, "scores": scores}),
                    self._files(record.number, part / PREDICTIONS, PREDICTIONS),
                )

    def _record(self, record: TrialRecord) -> Told:
        return "publish", {"record": record.to_dict(), "counts": dict(self.records.proposal(record.number).counts)}

    def _whole(self, record: TrialRecord) -> list[Told]:
        """All that there is of a trial: curves before the record, since a metric's last value is the measured one."""
        result = TrialFolder(self.folder, record.number).find("result") if record.state is State.COMPLETE else None
        if result is None:
            return [self._record(record)]
        curves = self._curves(record.number, read_json(result / "report.json"))
        told = [("ensure", {"record": record.to_dict()}), *curves, self._record(record)]
        return [*told, self._files(record.number, result / "adapter", ADAPTER)]

    def _replicate(self, run: Replicate, points: Sequence[Mapping[str, float]]) -> Told:
        return "replicate", {"run": run.to_dict(), "points": list(points)}

    def _curves(self, number: int, report: Mapping[str, Any]) -> list[Told]:
        """What a report has beyond the last one: each has all from the trial's beginning."""
        points, validations = report.get("points", ()), report.get("validations", ())
        at, validated = self._told.get(number, (0, 0))
        new = curve(points[at:], validations[validated:])
        if number not in self._told and "startup_seconds" in report:
            new.insert(0, {"step": 0, "startup_seconds": report["startup_seconds"]})
        self._told[number] = (len(points), len(validations))
        return [("progress", {"number": number, "points": new})] if new else []

    def _files(self, number: int, folder: Path, name: str) -> Told:
        return "artifacts", {"number": number, "folder": str(folder.relative_to(self.folder)), "name": name}
