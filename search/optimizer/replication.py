"""Decide which trials of a finished search train once more with another seed, and conclude what all are worth then.

Driven like a Search: by Ray in production, by a plain loop in tests. Replicates are no Optuna trials; what became of
each is on record with the study, where the next driver finds it and continues.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from petl.configuration import Configuration
from petl.measurements import Measurements
from search.optimizer.budget import Budget, Meter
from search.optimizer.steps import DIVERGED, DONE, WAIT, Decision, Resume, Start, Step
from search.optimizer.true_front import Membership, membership, next_run
from search.trials.record import Replicate, SeedSummary, State, epochs_trained
from search.trials.records import Records


class Replication:
    """The replicates of a search that is over: a Source. They have its budget, and at most `concurrent` run at once.

    Each trial has at most `seeds` fresh ones, and all together train for at most `extra` of the epochs that the
    search's trials took. `rungs` are those of the trials, at which replicates validate as they did. `lacking` says why
    a configuration cannot be trained beside the trials whose replicates run, a number once for each of them, or "".
    `note` says why it ended early, if it did.
    """

    def __init__(
        self,
        records: Records,
        budget: Budget,
        meter: Meter,
        *,
        seeds: int,
        extra: float,
        rungs: Sequence[float] = (),
        seed: int = 0,
        lacking: Callable[[Configuration, Sequence[int]], str] = lambda configuration, running: "",
    ) -> None:
        self.records, self.meter, self._rungs, self.note = records, meter, tuple(rungs), ""
        self._budget, self._seeds, self._extra, self._seed, self._lacking = budget, seeds, extra, seed, lacking
        self._runs = {(run.number, run.seed): run for run in records.replicates}
        self._active: set[tuple[int, int]] = set()
        self._halted = False
        self._field = [
            record
            for record in records.all()
            if record.state is State.COMPLETE and record.reference is None and record.measurements
        ]
        self._score, *self._own_costs = records.objectives

    @property
    def runs(self) -> Sequence[Replicate]:
        """All that were begun, in their order."""
        return list(self._runs.values())

    @property
    def active(self) -> Collection[tuple[int, int]]:
        """Those that were handed out and are not over: number and seed."""
        return frozenset(self._active)

    @property
    def done(self) -> bool:
        """Whether nothing runs and nothing is left to hand out."""
        return not self._active and (
            not self._seeds or self._halted or bool(self.meter.spent()) or self._choice() is None
        )

    @cached_property
    def left(self) -> float:
        """The epochs that new replicates may take."""
        return self._extra * epochs_trained(self.records.all()) - sum(self._epochs(number) for number, _ in self._runs)

    def next(self, free_workers: int = 1) -> Step[Replicate]:
        """Return what to do with a free worker. Every answer of Start or Resume takes one."""
        self.meter.tick()
        over = WAIT if self._active else DONE
        if free_workers < 1 or len(self._active) >= self._budget.concurrent:
            return WAIT
        if self._over or (key := self._choice()) is None:
            return over
        if lacking := self._lacking(self.configuration(key), [number for number, _ in self._active]):
            if not self._active:
                self._halted, self.note = True, lacking
            return over
        begun = key in self._runs
        if not begun:
            self._runs[key] = Replicate(number=key[0], seed=key[1])
            self._keep()
        self._active.add(key)
        self.meter.runs(len(self._active))
        return (Resume if begun else Start)(self._runs[key])

    def get(self, key: tuple[int, int]) -> Replicate:
        """Return a replicate as it is on record now."""
        return self._runs[key]

    def rungs(self, key: tuple[int, int]) -> tuple[float, ...]:
        """Return the epochs at which a replicate validates: those of the trials."""
        return self._rungs

    def configuration(self, key: tuple[int, int]) -> Configuration:
        """Return what a replicate trains: the trial's own with another seed."""
        number, seed = key
        configuration = self.records.get(number).configuration
        assert configuration is not None
        return replace(configuration, seed=seed)

    def report(self, key: tuple[int, int], epoch: float, score: float, *, over: bool = False) -> Decision:
        """Return PAUSE where the budget is spent, and the replicate is left for a resume. Its score decides nothing."""
        self.meter.tick()
        if over or key not in self._active or not self.meter.spent():
            return Decision.CONTINUE
        self._release(key)
        return Decision.PAUSE

    def finish(
        self,
        key: tuple[int, int],
        measurements: Measurements | None = None,
        failure: str | None = None,
        *,
        stopped: bool = False,
    ) -> Replicate:
        """End a replicate, and return it. Scores that are no numbers are a failure; nobody stops one."""
        score = self._score.value(measurements) if measurements else None
        if failure is None and (score is None or not math.isfinite(score)):
            failure = DIVERGED
        run = self._runs[key] = replace(
            self._runs[key],
            measurements=None if failure else measurements,
            failure=failure,
            ended=time.time(),
        )
        self._keep()
        self._release(key)
        return run

    def take_closed(self) -> Sequence[Replicate]:
        """Return nothing: every replicate ends with its worker."""
        return ()

    def _release(self, key: tuple[int, int]) -> None:
        """Take a replicate's worker from it; one that is not over is left for a resume."""
        self._active.discard(key)
        self.meter.runs(len(self._active))
        self.meter.keep()

    def conclude(self) -> dict[int, SeedSummary]:
        """Put on record what the seeds say of all trials, and return it; nothing before any has a second seed."""
        posterior = self._membership
        if posterior is None:
            return {}
        failed = Counter(run.number for run in self._runs.values() if run.failure)
        found = {
            record.number: SeedSummary(
                mean=float(np.mean(scores := [self._score.of_loss(loss) for loss in losses])),
                spread=float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
                seeds=len(scores),
                failed=failed[record.number],
                probability=float(posterior.probability[index]),
                corrected=self._score.of_loss(float(posterior.corrected[index])),
            )
            for index, (record, losses) in enumerate(zip(self._field, self._losses, strict=True))
        }
        self.records.summaries = found
        return found

    @property
    def _over(self) -> bool:
        """Whether nothing more is handed out, whatever remains to be known."""
        return not self._seeds or self._halted or bool(self.meter.spent())

    def _choice(self) -> tuple[int, int] | None:
        """Return what to train next: what was begun, else what reveals the most; None for nothing."""
        begun = next((key for key, run in self._runs.items() if not run.over and key not in self._active), None)
        if begun:
            return begun
        if len(self._field) < 2:
            return None  # nothing is contested
        index_of = {record.number: index for index, record in enumerate(self._field)}
        running = [index_of[run.number] for run in self._runs.values() if not run.over]
        failed = [index_of[run.number] for run in self._runs.values() if run.failure]
        index = next_run(self._losses, self._costs, self._membership, running, failed, most=self._seeds)
        if index is None or self._epochs(self._field[index].number) > self.left:
            return None
        record = self._field[index]
        tried = sum(number == record.number for number, _ in self._runs)
        assert record.configuration is not None
        return record.number, record.configuration.seed + 1 + tried

    @cached_property
    def _costs(self) -> list[list[float]]:
        return [
            [cost.value(record.measurements) or 0.0 for cost in self._own_costs]
            for record in self._field
            if record.measurements
        ]

    @cached_property
    def _losses(self) -> list[list[float]]:
        """The losses of each trial, by its seeds."""
        scores = {record.number: [self._value(record.measurements)] for record in self._field}
        for run in self._runs.values():
            if run.measurements:
                scores[run.number].append(self._value(run.measurements))
        return [[self._score.loss(score) for score in scores[record.number]] for record in self._field]

    @cached_property
    def _membership(self) -> Membership | None:
        return membership(self._losses, self._costs, self._seed)

    def _value(self, measurements: Measurements | None) -> float:
        value = self._score.value(measurements) if measurements else None
        return math.nan if value is None else value

    def _epochs(self, number: int) -> float:
        configuration = self.records.get(number).configuration
        return configuration.training.epochs if configuration else 0.0

    def _keep(self) -> None:
        """Put the runs on record, and forget what followed from them before."""
        self.records.replicates = list(self._runs.values())
        for name in ("left", "_losses", "_membership"):
            self.__dict__.pop(name, None)
