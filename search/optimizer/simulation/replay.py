"""Run a search over curves that are known already, on a simulated clock: any number of workers, no training.

`search.optimizer.search` decides, as it does in production; only what a worker would measure is looked
up, in a table, in the trials of an earlier study, in a surrogate::

    clock = Clock()
    search = Search(Records.in_memory(), plan, clock)
    events = replay(search, curve, workers=16, clock=clock)

A trial's progress is read from its record, so a search that is recreated in the middle continues.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Protocol

from petl.measurements import Measurements
from search.optimizer.search import Search
from search.optimizer.steps import Decision, Resume, Start
from search.trials.record import TrialRecord


class Curve(Protocol):
    """What training would show."""

    def score(self, record: TrialRecord, epoch: float) -> float:
        """Return the trial's score after so many epochs."""
        ...

    def measured(self, record: TrialRecord) -> Measurements:
        """Return what a trial measures that is trained in full. That takes its `seconds`, evenly over `epochs`."""
        ...


@dataclass
class Clock:
    """Simulated time, in seconds."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@dataclass(frozen=True)
class Event:
    """A trial has reached a rung, or its end.

    `seconds` is when; `epochs` is what all trials have trained by then, what is under way elsewhere included.
    """

    seconds: float
    epochs: float
    trial: int
    epoch: float
    score: float | None  # None where its end measured none
    decision: Decision | None  # None at its end


def replay(
    search: Search, curve: Curve, *, workers: int = 1, clock: Clock | None = None, epochs: float = math.inf
) -> list[Event]:
    """Run the search to its end, and return what happened, in order.

    `clock` is the search's. `epochs` is a hard limit on what all trials train together: the first piece of training
    that would exceed it does not begin, and none after it. What is under way ends, and the others' trials stay open.
    """
    clock = clock or Clock()
    under_way: list[tuple[float, int, int, float]] = []  # (when it is there, order of beginning, trial, epoch)
    events: list[Event] = []
    spent, begun, over = 0.0, 0, False

    def begin(record: TrialRecord) -> None:
        """Begin a piece of training: to the next rung, or to the end."""
        nonlocal spent, begun, over
        if record.configuration is None:
            search.finish(record.number, curve.measured(record))
            return
        full = record.configuration.training.epochs
        reached = max(record.rungs, default=0.0)
        epoch = next((rung for rung in search.rungs(record.number) if rung > reached), full)
        over = over or spent + epoch - reached > epochs + 1e-9
        if over:
            return
        spent, begun = spent + epoch - reached, begun + 1
        seconds = curve.measured(record).seconds * (epoch - reached) / full
        heapq.heappush(under_way, (clock.seconds + seconds, begun, record.number, epoch))

    while True:
        while not over and len(under_way) < workers:
            step = search.next(workers - len(under_way))
            if not isinstance(step, Start | Resume):
                break
            begin(step.record)
        if not under_way:
            return events
        clock.seconds, _, number, epoch = heapq.heappop(under_way)
        record = search.records.get(number)
        if epoch not in search.rungs(number):
            measurements = curve.measured(record)
            reached = search.records.objectives[0].value(measurements)
            events.append(Event(clock.seconds, spent, number, epoch, reached, None))
            search.finish(number, measurements)
            continue
        score = curve.score(record, epoch)
        decision = search.report(number, epoch, score)
        events.append(Event(clock.seconds, spent, number, epoch, score, decision))
        if decision is Decision.STOP:
            search.finish(number, stopped=True)
        elif decision is Decision.CONTINUE and not over:
            begin(search.records.get(number))
