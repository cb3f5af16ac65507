"""Keep the published copy of a study in line with its records: what is published, and when."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from petl.measurements import SCORES as MEASURED
from search.storage.errors import DamagedStoreError
from search.storage.folder import PREDICTIONS, RESULT, ResultPart, TrialFolder, read_json
from search.storage.listing import drop_states
from search.tracking.entries import (
    Artifacts,
    Disk,
    Ensure,
    Entry,
    Facts,
    Progress,
    Publish,
    Replicated,
    Spending,
    Withdraw,
)
from search.tracking.schema import ADAPTER
from search.trials.record import Replicate, SeedSummary, State, TrialRecord
from search.trials.records import Records
from search.trials.report import Report, Run, curve

_EVERY: Final = 10.0  # seconds between two measurements: to add up a folder of thousands of trials takes a while


class Publisher:
    """Publish what a Listener hears.

    `send` takes entries as a Delivery does, and neither waits nor raises: the search does not depend on the published
    copy. `folder` is the study's; `used` returns the bytes that the study uses, and `limit` is the most it may use.
    """

    def __init__(
        self,
        send: Callable[..., None],
        records: Records,
        folder: Path,
        used: Callable[[], int] = lambda: 0,
        limit: int | None = None,
    ) -> None:
        self.records, self.folder = records, folder
        self._send, self._used, self._limit = send, used, limit
        self._measured = -math.inf  # when the disk's use was published last
        self._progress: dict[int, tuple[int, int]] = {}  # points and validations of a trial that are published
        self._summarised: set[int] = set()  # trials whose summary over seeds is published

    def started(self, run: Run) -> None:
        """Create the trial's run; a replicate has one when it is over."""
        if isinstance(run, TrialRecord):
            self._send(self._record(run))

    def reported(self, run: Run, report: Report) -> None:
        """Publish what the curves of a trial have gained."""
        if isinstance(run, TrialRecord):
            self._send(self._record(run), *self._reported(run.number, report))

    def restarted(self, run: Run) -> None:
        pass

    def paused(self, run: Run) -> None:
        """Publish that a trial waits; what it was trained stays on the disk."""
        if isinstance(run, TrialRecord):
            self._send(self._record(run))

    def ended(self, run: Run) -> None:
        """Publish all that there is of a run, a trial's adapter too, and remove what only a resume would need."""
        if isinstance(run, Replicate):
            self._send(self._replicate(run))
            TrialFolder(self.folder, run.number, run.seed).remove()
            return
        folder = TrialFolder(self.folder, run.number)
        self._send(*self._whole(run, folder.result() if run.state is State.COMPLETE else None))
        folder.drop_states()
        if time.monotonic() - self._measured >= _EVERY:
            self.usage()

    def usage(self) -> None:
        """Publish the bytes that the study uses now, and what it has spent."""
        self._measured = time.monotonic()
        self._send(Disk(self._used(), self._limit))
        self.spent()

    def spent(self) -> None:
        """Publish what the study has spent."""
        self._send(Spending(**asdict(self.records.spent)))

    def withdraw(self, number: int) -> None:
        """Remove a trial's adapter, published and on disk, so that the study stays within its limit."""
        self._send(Withdraw(number, "removed to stay within storage.max_gb"))

    def everything(self) -> list[int]:
        """Publish all that is on record, of which some may be missing after a driver died or MLflow lost it.

        What is published already costs little. Return the trials that completed and whose result on disk is damaged:
        their adapters stay as they are published. Raises DamagedStoreError, and publishes nothing, where a trial's
        record is not what its result says.
        """
        self._progress.clear()
        complete = [record for record in self.records.all() if record.state is State.COMPLETE]
        results = {record.number: TrialFolder(self.folder, record.number).result() for record in complete}
        for record in complete:
            _require_agreement(record, results[record.number])
        records = self.records.all()
        self._send(*(entry for record in records for entry in self._whole(record, results.get(record.number))))
        finished = [run for run in self.records.replicates if run.over]
        self._send(*(self._replicate(run) for run in finished))
        self.summaries(self.records.summaries)
        # What nobody needs any more: an earlier driver may have died before it removed this.
        drop_states(self.folder, [record.number for record in self.records.all() if not record.state.open])
        for run in finished:
            TrialFolder(self.folder, run.number, run.seed).remove()
        return [
            number
            for number, result in results.items()
            if result is None and TrialFolder(self.folder, number).stored_files().has(RESULT)
        ]

    def summaries(self, summaries: Mapping[int, SeedSummary]) -> None:
        """Publish the summaries of trials that have replicates or may be on the true front, or once might."""
        for number, summary in summaries.items():
            if summary.seeds > 1 or summary.failed or summary.probability > 0 or number in self._summarised:
                self._summarised.add(number)
                self._send(Facts(number, {"believed": asdict(summary)}))

    def tested(self, records: Sequence[TrialRecord]) -> None:
        """Publish the scores on whole splits, and the predictions, of the trials that have them.

        Where the validations of training were on the whole validation split, its scores are those.
        """
        for record in records:
            if part := TrialFolder(self.folder, record.number).scored():
                measured = record.measurements.to_dict() if record.measurements else {}
                validation = {name: value for name, value in measured.items() if name in MEASURED}
                scores = {"validation": validation, **read_json(part.scores)}
                self._send(
                    Facts(record.number, {"final": scores}),
                    self._files(record.number, part.predictions, PREDICTIONS),
                )

    def _record(self, record: TrialRecord) -> Publish:
        return Publish(record, dict(self.records.proposal(record.number).counts))

    def _whole(self, record: TrialRecord, result: ResultPart | None) -> list[Entry]:
        """Return all that there is of a trial: its curves first, so that each metric ends with the measured value."""
        if result is None:
            return [self._record(record)]
        reported = self._reported(record.number, Report.from_dict(read_json(result.report)))
        adapter = self._files(record.number, result.adapter, ADAPTER)
        return [Ensure(record), *reported, self._record(record), adapter]

    def _replicate(self, run: Replicate) -> Replicated:
        result = TrialFolder(self.folder, run.number, run.seed).result()
        report = Report.from_dict(read_json(result.report)) if result else Report()
        return Replicated(run, curve(report.points, report.validations))

    def _reported(self, number: int, report: Report) -> list[Entry]:
        """Return what a report has beyond the last one: each has all from the trial's beginning."""
        points, validations = report.points, report.validations
        known_points, known_validations = self._progress.get(number, (0, 0))
        new = curve(points[known_points:], validations[known_validations:])
        if number not in self._progress and report.startup_seconds is not None:
            new.insert(0, {"step": 0, "startup_seconds": report.startup_seconds})
        self._progress[number] = (len(points), len(validations))
        facts = [Facts(number, report.facts)] if report.facts else []
        return [*([Progress(number, new)] if new else []), *facts]

    def _files(self, number: int, folder: Path, name: str) -> Artifacts:
        return Artifacts(number, str(folder.relative_to(self.folder)), name)


def _require_agreement(record: TrialRecord, result: ResultPart | None) -> None:
    """Raise DamagedStoreError where a trial's record has other measurements than its committed result."""
    reported = Report.from_dict(read_json(result.report)).measurements if result else None
    if reported is None or record.measurements is None:
        return
    stored, kept = (measured.to_dict() for measured in (record.measurements, reported))
    # as text, in which a score that is no number equals itself
    if differing := [name for name, value in stored.items() if str(value) != str(kept.get(name))]:
        values = ", ".join(f"{name} {stored[name]} and {kept.get(name)}" for name in differing[:3])
        raise DamagedStoreError(
            f"the record of trial {record.number} and its result {result and result.report} say different things "
            f"({values}), so that one of them was changed; nothing was published. The result has the hash that it was "
            f"committed with: put a copy of the database back, and resume"
        )
