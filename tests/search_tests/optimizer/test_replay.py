"""The search on a simulated clock, against times and choices that are worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from loop import TRAINING, facts, measured, plan, run, score

from petl.configuration import Configuration
from petl.design import Design
from petl.measurements import Measurements
from search.optimizer.budget import Budget
from search.optimizer.rungs import Asha, Dominated, Halving, Never, ParetoAsha, Rule
from search.optimizer.search import Search
from search.optimizer.simulation.replay import Clock, Event, replay
from search.optimizer.steps import Decision
from search.trials.record import State, TrialRecord
from search.trials.records import Records

RULES = (
    Never(),
    Asha(epochs=3, eta=2),
    ParetoAsha(epochs=3, eta=2),
    Dominated(epochs=3, eta=2),
    Halving(epochs=3, eta=2, trials=8, min_full=2),
)
NAMES = ("none", "asha", "pareto-asha", "dominated", "halving")


class Slower:
    """Trial n takes n + 1 seconds an epoch."""

    def score(self, record: TrialRecord, epoch: float) -> float:
        assert record.configuration
        return score(record.configuration, epoch)

    def measured(self, record: TrialRecord) -> Measurements:
        return replace(measured(record.configuration), seconds=3.0 * (record.number + 1))


def replayed(workers: int = 1, epochs: float = math.inf, **changes: object) -> tuple[Records, list[Event], Clock]:
    records, clock = Records.in_memory(), Clock()
    search = Search(records, plan(**changes), clock)
    return records, replay(search, Slower(), workers=workers, clock=clock, epochs=epochs), clock


def test_workers_share_the_trials_as_they_become_free() -> None:
    """3, 6, 9 and 12 seconds: one worker has the first and the third, the other the second and the fourth."""
    records, events, clock = replayed(workers=2, budget=Budget(trials=4, concurrent=2), rule=Never())
    assert [(event.seconds, event.trial) for event in events] == [(3, 0), (6, 1), (12, 2), (18, 3)]
    assert [event.epochs for event in events] == [6, 9, 12, 12]
    assert clock.seconds == 18
    assert {record.state for record in records.all()} == {State.COMPLETE}


class Even(Slower):
    """All trials take three seconds."""

    def measured(self, record: TrialRecord) -> Measurements:
        return replace(measured(record.configuration), seconds=3.0)


def test_of_those_that_arrive_together_the_one_begun_first_is_first() -> None:
    clock = Clock()
    chosen = plan(budget=Budget(trials=6, concurrent=3), rule=Asha(epochs=3, eta=3))
    events = replay(Search(Records.in_memory(), chosen, clock), Even(), workers=3, clock=clock)
    assert [event.trial for event in events if event.epoch == 1] == [0, 1, 2, 3, 4, 5]
    assert [event.seconds for event in events[:3]] == [1, 1, 1]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_one_worker_is_a_plain_loop(rule: Rule, sampler: str) -> None:
    plain, chosen = Records.in_memory(), {"rule": rule, "sampler": sampler, "budget": Budget(trials=8)}
    run(Search(plain, plan(**chosen)))
    records, events, _ = replayed(**chosen)

    def without_time(record: TrialRecord) -> Measurements | None:
        return replace(record.measurements, seconds=0.0) if record.measurements else None

    for own, other in zip(records.all(), plain.all(), strict=True):
        assert (own.state, own.configuration, own.rungs) == (other.state, other.configuration, other.rungs)
        assert own.state is State.PRUNED or without_time(own) == without_time(other)
    ends = {event.trial: event.score for event in events if event.decision is None}
    assert ends == {
        record.number: record.measurements.accuracy
        for record in records.all()
        if record.state is State.COMPLETE and record.measurements
    }


def test_a_reference_without_training_takes_no_time() -> None:
    records, _, clock = replayed(
        references={"majority": None, "head_only": Configuration(Design(), TRAINING)}, budget=Budget(trials=0)
    )
    assert [record.state for record in records.all()] == [State.COMPLETE] * 2
    assert clock.seconds == 6


def test_hours_are_those_of_the_simulated_clock() -> None:
    records, _, _ = replayed(budget=Budget(trials=8, hours=20 / 3600))
    assert len(records.all()) == 4  # begun after 0, 3, 9 and 18 seconds


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_epochs_are_trained_than_allowed(workers: int) -> None:
    chosen = {"budget": Budget(trials=8, concurrent=workers), "rule": Asha(epochs=3, eta=2)}
    _, whole, _ = replayed(workers, **chosen)
    records, events, _ = replayed(workers, epochs=10, **chosen)
    assert events[-1].epochs == 10
    assert events[-1].epochs < whole[-1].epochs
    assert sum(max(record.rungs, default=0.0) for record in records.all()) <= 10
    assert any(record.state is State.RUNNING for record in records.all())


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@pytest.mark.parametrize("workers", [1, 4])
def test_it_is_a_function_of_seed_and_workers_and_survives_restarts(rule: Rule, workers: int) -> None:
    """A limit cuts it anywhere; another search over the same records, with one worker, goes on as the first would."""
    chosen = {"budget": Budget(trials=8, concurrent=workers), "rule": rule}
    whole, events, _ = replayed(workers, **chosen)
    again, repeated, _ = replayed(workers, **chosen)
    assert repeated == events
    assert facts(again) == facts(whole)
    if workers == 1:
        cut, _, _ = replayed(epochs=7, **chosen)
        replay(Search(cut, plan(**chosen)), Slower())
        assert facts(cut) == facts(whole)


def test_a_trial_that_waited_is_charged_for_what_it_trains_only() -> None:
    """Quotas 8 - 4 - 2 of 1, 2 and 3 epochs: 8 + 4 + 2."""
    records, events, _ = replayed(budget=Budget(trials=8), rule=Halving(epochs=3, eta=2, trials=8, min_full=2, waves=1))
    assert events[-1].epochs == 8 + 4 + 2
    assert [event.decision for event in events].count(Decision.PAUSE) > 0
    assert sum(record.state is State.COMPLETE for record in records.all()) == 2
