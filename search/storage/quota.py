"""The limit on what a study keeps on the disk, and which results are evicted so that further trials fit.

A trial starts where all that is on the disk, with all that the running trials and itself may write at most, is within
`storage.max_gb`. So the limit holds at every moment, not only when somebody looks. Counted are the bytes of files: the
study's folder, and its artifacts, which have a copy each of a trial's adapter and predictions.

`estimate` and `eviction` decide, from values alone; `Usage` measures; `Quota` asks them, and has results removed.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from petl.backbones.count import count, stored_shapes
from petl.configuration import LAST, Configuration
from petl.design import Design
from petl.errors import UserError
from search.storage.folder import ADAPTER, RESULT, SCORED, TRIALS, TrialFiles, TrialFolder, files_in, replicate_folder
from search.storage.listing import trial_files
from search.trials import pareto
from search.trials.formats import bytes_text
from search.trials.objectives import values
from search.trials.record import State, TrialRecord
from search.trials.records import Records
from search.trials.report import Report, Run
from search.trials.resolved import Resolved

GB: Final = 10**9
# Upper limits of what is written beside tensors, in bytes: twice and more of the most that was seen.
_HEADER: Final = 256  # of a tensor in a safetensors file: its name, type, shape and place
_POINT: Final = 256  # of a training curve
_VALIDATION: Final = 1_024
_RECORD: Final = 8_192  # a trial's record, which waits for MLflow on the disk
_SMALL: Final = 65_536  # of a trial: its design, manifests, and the line for people
# Of a study: up to a megabyte of its journal that has arrived but not gone; and, in the folder and as artifacts, the
# front as a table and picture, and the page, which has some 2 MB for 2,000 trials.
SPARE: Final = 8_000_000
_BRIEFLY: Final = 2.0  # seconds in which the driver hears of no trial


class DiskError(UserError):
    """A study that cannot be within its limit on the disk. The message has the numbers, and what to change."""


@dataclass(frozen=True)
class Estimate:
    """The most bytes that a trial takes: at any moment of its life, and once it is over, scored and published."""

    peak: int
    left: int


@dataclass(frozen=True)
class Result:
    """What the eviction of a complete trial would free.

    `values` are those of its objectives; `spare` says that nothing needs the result any more.
    """

    number: int
    size: int
    values: tuple[float, ...]
    spare: bool = True
    reference: bool = False


def estimate(configuration: Configuration | None, resolved: Resolved) -> Estimate:
    """Return the bytes that a trial of this study takes at most; without a configuration, those of a baseline."""
    backbone, labels = resolved.backbone, len(resolved.labels)
    design, pooling = (configuration.design, configuration.head.pooling) if configuration else (Design(), "mean")
    counted = count(design, backbone, labels, pooling)
    tensors = 2 * len(stored_shapes(design, backbone, labels, pooling)) + 64  # a reparameterised prefix has some more
    curves, validations = _curves(configuration, resolved)
    adapter = 4 * (counted.stored + counted.head) + _HEADER * tensors + resolved.written.fixed
    if configuration is None:  # a linear probe, at most: as a baseline and as an adapter
        adapter, state = adapter + 8 * counted.head, 0
    else:
        copies = 3 + (configuration.training.keep != LAST)  # the weights, AdamW's two moments, the best weights
        state = copies * (4 * counted.trained + _HEADER * tensors) + curves
    result = adapter + 2 * curves  # indented
    left = result + adapter + 2 * resolved.written.texts + _SMALL
    waiting = curves + _RECORD * (validations + 4)
    # A training state is written before the older one goes, and the result before the last one.
    return Estimate(max(2 * state, state + result, left) + waiting + _SMALL, left)


def _curves(configuration: Configuration | None, resolved: Resolved) -> tuple[int, int]:
    """Return the size of a trial's curves as JSON, and how many validations are in them."""
    if configuration is None:
        return _VALIDATION, 1
    training, rows = configuration.training, resolved.rows["train"]
    batches = rows if training.batch_tokens else math.ceil(rows / training.batch_size)
    validations = math.ceil(training.epochs / training.validate_every) + 16  # at rungs too
    points = training.epochs * batches / training.accumulation / 10 + validations
    return math.ceil(_POINT * points + _VALIDATION * validations), validations


def eviction(shortfall: int, results: Sequence[Result], directions: Sequence[str]) -> list[int] | None:
    """Return the trials whose results go so that `shortfall` bytes are freed; None where even all are not enough.

    The worst go first: by the front that they would be on if all fronts before it were removed, then by the first
    objective. Results of references go last, and those on the front never.
    """
    searched = [result for result in results if not result.reference]
    rank = dict(zip(searched, pareto.ranks([result.values for result in searched], directions).tolist(), strict=True))
    kept = dict(
        zip(searched, pareto.non_dominated([result.values for result in searched], directions).tolist(), strict=True)
    )
    sign = pareto.SIGNS[directions[0]]
    order = sorted(
        (result for result in searched if result.spare and not kept[result]),
        key=lambda result: (-rank[result], -sign * result.values[0], -result.number),
    )
    chosen, left = [], shortfall
    for result in [*order, *(result for result in results if result.reference and result.spare)]:
        if left <= 0:
            break
        if result.size:
            chosen.append(result.number)
            left -= result.size
    return chosen if left <= 0 else None


def require_fit(
    limit: int, references: Mapping[str, Configuration | None], smallest: Configuration, resolved: Resolved
) -> None:
    """Raise DiskError where the references of a study, whose results all stay, and one trial do not fit."""
    kept, asked = SPARE, []
    for name, configuration in [*references.items(), ("a trial", smallest)]:
        need = estimate(configuration, resolved)
        asked.append((name, kept + need.peak, need.left))
        kept += need.left
    least = max(peak for _, peak, _ in asked)
    if least > limit:
        parts = ", ".join(f"{name} {bytes_text(left)}" for name, _, left in asked)
        raise DiskError(
            f"the references and one trial need up to {bytes_text(least)} while they train, and storage.max_gb is "
            f"{limit / GB:g}. What each leaves, adapter and artifact: {parts}, beside {bytes_text(SPARE)} for the "
            "study. Give more, or leave out references"
        )


class Usage:
    """The bytes that a study has on the disk: listed once in full, and then trial by trial, as their files change.

    A Listener: the files of a trial are listed again once it has paused or ended. What running trials write meanwhile
    is not seen; `Quota` reserves their estimates instead. `artifacts` is the folder of the study's artifacts where it
    is known.
    """

    def __init__(self, study: Path, artifacts: Path | None, records: Records) -> None:
        self._study, self._artifacts, self._records = study, artifacts, records
        self._trials: dict[int, TrialFiles] | None = None
        self._changed: set[int] = set()
        self._unaccounted = 0  # bytes among the artifacts beyond the copies of what trials have

    def started(self, run: Run) -> None:
        pass

    def reported(self, run: Run, report: Report) -> None:
        pass

    def restarted(self, run: Run) -> None:
        self.changed(run.number)

    def paused(self, run: Run) -> None:
        self.changed(run.number)

    def ended(self, run: Run) -> None:
        self.changed(run.number)

    def changed(self, *numbers: int) -> None:
        """Have these trials listed again when a size is asked for next."""
        self._changed.update(numbers)

    def relist(self) -> None:
        """Have everything listed again when a size is asked for next."""
        self._trials = None

    @property
    def used(self) -> int:
        """All bytes, with copies among the artifacts that are still to arrive."""
        trials = self._listed()
        beside = sum(files_in(self._study, skip=(TRIALS,)).values())
        return beside + sum(files.size() for files in trials.values()) + self._copies() + self._unaccounted

    def of(self, number: int, part: str = "") -> int:
        """Return the bytes of a trial, or of one of its folders."""
        return self.files(number).size(part)

    def files(self, number: int) -> TrialFiles:
        return self._listed().get(number, _NO_FILES)

    def copied(self, record: TrialRecord) -> int:
        """Return the bytes that are, or will be, copied of a trial to the artifacts."""
        adapter = self.of(record.number, ADAPTER) if record.state is State.COMPLETE else 0
        return adapter + self.of(record.number, SCORED)

    def scored(self, number: int) -> bool:
        """Return whether a trial has its scores on whole splits."""
        return self.files(number).has(SCORED)

    def _copies(self) -> int:
        return sum(map(self.copied, self._records.all()))

    def _listed(self) -> dict[int, TrialFiles]:
        if self._trials is None:
            self._trials, self._changed = trial_files(self._study), set()
            present = sum(files_in(self._artifacts).values()) if self._artifacts else 0
            self._unaccounted = max(0, present - self._copies())
        while self._changed:
            number = self._changed.pop()
            self._trials[number] = TrialFolder(self._study, number).stored_files()
        return self._trials


_NO_FILES: Final = TrialFiles({})


class Quota:
    """The limit of a study: whether one more trial fits, for which results are evicted where that helps.

    `limit` is in bytes, None for no limit. `shown` returns the trials that are scored when the search ends.
    `withdraw` has the result of a trial removed, after everything that waits for MLflow before it;
    `settle(patience, limit)` waits for that, up to `patience` seconds while MLflow is away and `limit` in any case.
    """

    def __init__(
        self,
        limit: int | None,
        usage: Usage,
        study: Path,
        records: Records,
        shown: Callable[[], Sequence[TrialRecord]],
        withdraw: Callable[[int], None],
        settle: Callable[[float, float], bool],
        patience: float,
    ) -> None:
        self.limit, self._usage, self._study, self._records = limit, usage, study, records
        self._shown, self._withdraw, self._settle, self._patience = shown, withdraw, settle, patience
        self._resolved = records.resolved
        self._withdrawn: set[int] = set()
        self._refused: tuple[object, float, str] = (None, -math.inf, "")

    def refusal(self, configuration: Configuration | None, active: Collection[int], number: int | None = None) -> str:
        """Return why a trial cannot start beside the active ones, "" where it can. `number` is that of a resumed one.

        A complete trial is in `active` once for each of its replicates that run. Evicts results, and waits for MLflow
        to let go of them: briefly where others run.
        """
        if self.limit is None:
            return ""
        peak = 0 if number is not None else estimate(configuration, self._resolved).peak
        peak = max(0, peak - self._resumed(configuration))
        question = (tuple(sorted(active)), number, peak)
        asked, when, reason = self._refused
        if active and question == asked and time.monotonic() - when < 1.0:
            return reason  # Tune asks again and again until one of them ends
        running = [*active, *([] if number is None else [number])]
        reason = self._made(peak, running, (_BRIEFLY, _BRIEFLY) if active else (self._patience, math.inf))
        if reason:  # a trial that was accepted runs: the next one is weighed beside it
            self._refused = question, time.monotonic(), reason
        return reason

    def _made(self, peak: int, running: Collection[int], patience: tuple[float, float]) -> str:
        """Make so many bytes free beside what is stored and what the running trials may take, or return why not."""
        assert self.limit is not None
        self._usage.changed(*self._withdrawn)
        if self._reserved(running) + peak <= self.limit:
            return ""
        self._usage.relist()
        self._tidy(running)
        shortfall = self._reserved(running) + peak - self.limit
        results = self._results(running)
        expected = sum(result.size for result in results if result.number in self._withdrawn)
        chosen = eviction(shortfall - expected, results, [each.direction for each in self._records.objectives])
        if chosen is not None and shortfall > 0:
            for number in chosen:
                self._withdrawn.add(number)
                self._withdraw(number)
            self._settle(*patience)
            self._usage.relist()
            shortfall = self._reserved(running) + peak - self.limit
        return "" if shortfall <= 0 else self._explained(shortfall, waiting=chosen is not None)

    def _resumed(self, configuration: Configuration | None) -> int:
        """Return the bytes that an interrupted replicate with this configuration has stored: its peak includes them."""
        for run in self._records.replicates:
            trained = self._records.get(run.number).configuration
            if trained and not run.over and replace(trained, seed=run.seed) == configuration:
                return self._usage.of(run.number, replicate_folder(run.seed))
        return 0

    def _reserved(self, running: Collection[int]) -> int:
        """Return what is used, and what running trials and the scores of those that are shown may add to it."""
        usage = self._usage
        texts = 2 * self._resolved.written.texts + _SMALL
        reserved = SPARE + usage.used + texts * sum(not self._scored(record.number) for record in self._shown())
        for number, times in Counter(running).items():
            record = self._records.get(number)
            stored = usage.of(number) if record.state.open else 0  # what a complete one has is not its replicates'
            reserved += times * max(0, estimate(record.configuration, self._resolved).peak - stored)
        return reserved

    def _scored(self, number: int) -> bool:
        return not self._resolved.final or self._usage.scored(number)

    def _results(self, running: Collection[int]) -> list[Result]:
        shown = {record.number for record in self._shown()}
        unfinished = [record.configuration for record in self._records.all() if record.state.open]
        awaited = {configuration.key for configuration in unfinished if configuration}
        return [
            Result(
                record.number,
                self._usage.of(record.number, RESULT) + self._usage.of(record.number, ADAPTER),
                values(self._records.objectives, record.measurements),
                spare=record.number not in self._withdrawn
                and (record.number not in shown or self._scored(record.number))
                and not (record.configuration and record.configuration.key in awaited),
                reference=record.reference is not None,
            )
            for record in self._records.all()
            if record.state is State.COMPLETE and record.number not in running
        ]

    def _tidy(self, running: Collection[int]) -> None:
        """Remove what nobody needs: interrupted parts, training states of closed trials, results of failed ones."""
        for record in self._records.all():
            if record.number in running:
                continue
            files = self._usage.files(record.number)
            parts = {*files.interrupted}
            if not record.state.open:
                parts |= {*files.states}
                if record.state is not State.COMPLETE:
                    parts |= {RESULT}
            for part in sorted(parts):
                if files.size(part):
                    TrialFolder(self._study, record.number).drop(part)
                    self._usage.changed(record.number)

    def _explained(self, shortfall: int, *, waiting: bool) -> str:
        assert self.limit is not None
        usage = self._usage
        front = {record.number for record in self._shown() if not record.reference}
        sums = {"references": 0, "the front": 0}
        for record in self._records.all():
            if record.reference or record.number in front:
                name = "references" if record.reference else "the front"
                sums[name] += usage.of(record.number) + usage.copied(record)
        used = usage.used
        sums["the rest"] = max(0, used - sum(sums.values()))
        parts = ", ".join(f"{name} {bytes_text(size)}" for name, size in sums.items())
        return (
            f"storage.max_gb {self.limit / GB:g} leaves no room for another trial: used are {bytes_text(used)} "
            f"({parts}), and what it may write lacks {bytes_text(shortfall)}"
            f"{'; MLflow, which does not answer, holds adapters that are to go' * waiting}. Resume with "
            f"--set storage.max_gb={math.ceil((self.limit + shortfall) / GB * 10_000) / 10_000:g} or more to continue"
        )
