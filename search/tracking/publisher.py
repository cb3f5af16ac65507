"""The published record follows the durable one: what the driver has MLflow told, and when."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from petl.measurements import SCORES as MEASURED
from search.storage.folder import PREDICTIONS, TrialFolder, drop_states, read_json
from search.tracking.outbox import Told
from search.tracking.schema import ADAPTER
from search.trials.record import Replicate, SeedSummary, State, TrialRecord
from search.trials.records import Records
from search.trials.report import Report, Run, curve

_WEIGHED: Final = 10.0  # seconds between two weighings: a folder of thousands of trials takes a while


class Publisher:
    """A Listener that keeps MLflow in line with the records.

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

    def started(self, run: Run) -> None:
        """Create the trial's run; a replicate has one when it is over."""
        if isinstance(run, TrialRecord):
            self._tell(self._record(run))

    def reported(self, run: Run, report: Report) -> None:
        """Publish what the curves of a trial have gained."""
        if isinstance(run, TrialRecord):
            self._tell(self._record(run), *self._curves(run.number, report))

    def restarted(self, run: Run) -> None:
        pass

    def paused(self, run: Run) -> None:
        """Publish that a trial waits; what it was trained stays on the disk."""
        if isinstance(run, TrialRecord):
            self._tell(self._record(run))

    def ended(self, run: Run) -> None:
        """Publish all that there is of a run: of a trial its adapter too. Nothing that a resume needs is left of it."""
        if isinstance(run, Replicate):
            self._tell(self._replicate(run))
            TrialFolder(self.folder, run.number, run.seed).remove()
            return
        self._tell(*self._whole(run))
        TrialFolder(self.folder, run.number).drop_states()
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
        self._tell(*(self._replicate(run) for run in over))
        self.believed(self.records.summaries)
        # What is nobody's any more; an earlier driver may not have lived to remove it.
        drop_states(self.folder, [record.number for record in self.records.all() if not record.state.open])
        for run in over:
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
            if part := TrialFolder(self.folder, record.number).scored():
                measured = record.measurements.to_dict() if record.measurements else {}
                validation = {name: value for name, value in measured.items() if name in MEASURED}
                scores = {"validation": validation, **read_json(part.scores)}
                self._tell(
                    ("tested", {"number": record.number, "scores": scores}),
                    self._files(record.number, part.predictions, PREDICTIONS),
                )

    def _record(self, record: TrialRecord) -> Told:
        return "publish", {"record": record.to_dict(), "counts": dict(self.records.proposal(record.number).counts)}

    def _whole(self, record: TrialRecord) -> list[Told]:
        """All that there is of a trial: curves before the record, since a metric's last value is the measured one."""
        result = TrialFolder(self.folder, record.number).result() if record.state is State.COMPLETE else None
        if result is None:
            return [self._record(record)]
        curves = self._curves(record.number, Report.from_dict(read_json(result.report)))
        told = [("ensure", {"record": record.to_dict()}), *curves, self._record(record)]
        return [*told, self._files(record.number, result.adapter, ADAPTER)]

    def _replicate(self, run: Replicate) -> Told:
        result = TrialFolder(self.folder, run.number, run.seed).result()
        report = Report.from_dict(read_json(result.report)) if result else Report()
        return "replicate", {"run": run.to_dict(), "points": curve(report.points, report.validations)}

    def _curves(self, number: int, report: Report) -> list[Told]:
        """What a report has beyond the last one: each has all from the trial's beginning."""
        points, validations = report.points, report.validations
        at, validated = self._told.get(number, (0, 0))
        new = curve(points[at:], validations[validated:])
        if number not in self._told and report.startup_seconds is not None:
            new.insert(0, {"step": 0, "startup_seconds": report.startup_seconds})
        self._told[number] = (len(points), len(validations))
        return [("progress", {"number": number, "points": new})] if new else []

    def _files(self, number: int, folder: Path, name: str) -> Told:
        return "artifacts", {"number": number, "folder": str(folder.relative_to(self.folder)), "name": name}
