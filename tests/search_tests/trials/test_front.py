"""The front of trial records."""

from __future__ import annotations

from typing import Any

from petl.measurements import Measurements
from search.trials.front import front_of
from search.trials.objectives import objectives
from search.trials.record import State, TrialRecord

OBJECTIVES = objectives("accuracy", "latency_ms")


def trial(number: int, state: State = State.COMPLETE, reference: str | None = None, **measured: Any) -> TrialRecord:
    measurements = Measurements(**measured) if measured else None
    return TrialRecord(number=number, state=state, reference=reference, measurements=measurements)


def numbers(*records: TrialRecord) -> list[int]:
    return [record.number for record in front_of(records, OBJECTIVES)]


def test_members_are_not_dominated_and_come_by_cost() -> None:
    dear, cheap = trial(0, accuracy=0.9, latency_ms=5.0), trial(1, accuracy=0.8, latency_ms=2.0)
    dominated = trial(2, accuracy=0.7, latency_ms=3.0)
    assert numbers(dear, cheap, dominated) == [1, 0]


def test_of_trials_that_measured_the_same_the_first_is_a_member() -> None:
    assert numbers(trial(0, accuracy=0.9, latency_ms=5.0), trial(1, accuracy=0.9, latency_ms=5.0)) == [0]


def test_what_was_not_measured_is_not_the_cheapest() -> None:
    unknown = trial(0, accuracy=0.9, latency_ms=None)
    assert numbers(unknown, trial(1, accuracy=0.8, latency_ms=2.0)) == [1]
    assert numbers(trial(0, accuracy=None, latency_ms=1.0)) == []
    assert numbers(trial(0)) == []


def test_references_and_unfinished_trials_are_no_members() -> None:
    best = {"accuracy": 0.9, "latency_ms": 1.0}
    others = [trial(0, state, **best) for state in State if state is not State.COMPLETE]
    assert numbers(trial(9, accuracy=0.1, latency_ms=9.0), *others, trial(8, reference="full", **best)) == [9]
