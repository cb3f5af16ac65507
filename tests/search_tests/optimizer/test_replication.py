"""Replicates without workers: who trains again, within what bounds, and how another driver continues."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from petl.configuration import Configuration, Training
from petl.measurements import Measurements
from petl.presets import parse
from search.optimizer.budget import Budget, Meter
from search.optimizer.replication import Replication
from search.optimizer.steps import DONE, WAIT, Decision, Resume, Start
from search.tracking.publisher import Publisher
from search.trials.record import Replicate, SeedSummary, State, discoveries
from search.trials.records import Records

TRIALS, EPOCHS, SPREAD = 24, 3.0, 0.01
TRAINING = Training(epochs=EPOCHS)


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def measured(score: float, cost: int, latency: float = 1.0) -> Measurements:
    return Measurements(accuracy=score, stored_parameters=cost, epochs=EPOCHS, latency_ms=latency)


class Searched:
    """A search that is over: trials of known true scores, of which each training shows one with noise."""

    def __init__(self, objectives: Sequence[str] = ("accuracy", "stored_parameters")) -> None:
        self.random = np.random.default_rng(0)
        self.true = [0.5 + 0.4 * index / TRIALS + self.random.normal(0, 0.02) for index in range(TRIALS)]
        self.records = Records.in_memory(objectives)
        for index in range(TRIALS):
            design = parse(f"lora:rank={index + 1}")
            record = self.records.create(Configuration(design, TRAINING, seed=7), reference=None)
            self.records.close(record.number, State.COMPLETE, self.score(index))
        stopped = self.records.create(Configuration(parse("bitfit"), TRAINING, seed=7))
        self.records.rung(stopped.number, 1.0, 0.4, stop=True)
        self.records.close(stopped.number, State.PRUNED)
        reference = self.records.create(Configuration(parse("full"), TRAINING, seed=7), reference="full")
        self.records.close(reference.number, State.COMPLETE, measured(0.99, 10**6))
        self.clock = Clock()

    def score(self, index: int) -> Measurements:
        return measured(self.true[index] + self.random.normal(0, SPREAD), 10 * (index + 1), float(index % 3))

    def replication(self, seeds: int = 5, extra: float = 0.5, concurrent: int = 2, **budget: float) -> Replication:
        spend = Budget(trials=TRIALS, concurrent=concurrent, **budget)
        return Replication(
            self.records, spend, Meter(spend, self.records, self.clock), seeds=seeds, extra=extra, rungs=(1.0,)
        )

    def drive(self, replication: Replication, most: int = 10**6) -> None:
        """Two at once, the older one over first; `most` are."""
        running: list[Replicate] = []
        while most:
            step = replication.next()
            if isinstance(step, Start | Resume):
                running.append(step.record)
                continue
            if step is DONE:
                break
            first = running.pop(0)
            replication.finish(first.key, self.score(first.number))
            most -= 1


@pytest.fixture
def searched() -> Searched:
    return Searched()


def test_complete_trials_alone_are_replicated_each_seed_once_and_within_bounds(searched: Searched) -> None:
    replication = searched.replication(seeds=3, extra=0.5)
    assert replication.left == pytest.approx(0.5 * (TRIALS * EPOCHS + 1.0))  # the stopped trial had an epoch
    searched.drive(replication)
    runs = replication.runs
    assert replication.done
    assert replication.left >= 0
    assert all(run.over and run.number < TRIALS for run in runs)
    assert 4 <= len(runs) <= 0.5 * (TRIALS * EPOCHS + 1.0) / EPOCHS
    of = {number: [run.seed for run in runs if run.number == number] for number in {run.number for run in runs}}
    assert all(seeds == [8, 9, 10][: len(seeds)] for seeds in of.values())  # fresh ones: the trials' own is 7


def test_a_replicate_trains_what_its_trial_did_but_for_the_seed(searched: Searched) -> None:
    replication = searched.replication()
    step = replication.next()
    assert isinstance(step, Start)
    run = step.record
    own = searched.records.get(run.number).configuration
    again = replication.configuration(run.key)
    assert own is not None
    assert (again.design, again.training, again.seed) == (own.design, own.training, 8)


def test_no_more_run_than_may(searched: Searched) -> None:
    replication = searched.replication(concurrent=2)
    assert all(isinstance(replication.next(), Start) for _ in range(2))
    assert replication.next() is WAIT
    assert len(replication.active) == 2


@pytest.mark.parametrize("killed_after", [1, 4, 7])
def test_another_driver_continues_the_replicates(killed_after: int) -> None:
    """What ran when the driver died is handed out again, with its seed, and nothing is trained twice."""
    whole = Searched()
    whole.drive(whole.replication())
    assert len(whole.replication().runs) > killed_after + 2
    killed = Searched()
    first = killed.replication()
    killed.drive(first, killed_after)
    left = {(run.number, run.seed) for run in first.runs if not run.over}
    assert left
    second = killed.replication()
    assert second.runs == first.runs
    again = [second.next() for _ in left]
    assert {step.record.key for step in again if isinstance(step, Resume)} == left
    third = killed.replication()
    killed.drive(third)
    keys = [(run.number, run.seed) for run in third.runs]
    assert len(set(keys)) == len(keys)
    assert all(run.over for run in third.runs)


def test_what_is_said_of_a_trial_is_of_all_its_seeds(searched: Searched) -> None:
    replication = searched.replication()
    assert replication.conclude() == {}
    searched.drive(replication)
    beliefs = replication.conclude()
    assert beliefs == searched.records.summaries
    assert sorted(beliefs) == list(range(TRIALS))
    for number, belief in beliefs.items():
        own = searched.records.get(number).measurements
        scores = [own.accuracy, *(run.measurements.accuracy for run in replication.runs if run.number == number)]
        assert belief.mean == pytest.approx(np.mean(scores))
        assert belief.seeds == len(scores)
        assert belief.spread == pytest.approx(np.std(scores, ddof=1) if len(scores) > 1 else 0.0)
        assert belief.failed == 0
        assert 0 <= belief.probability <= 1
        assert belief.corrected == pytest.approx(belief.mean, abs=4 * SPREAD)
    # Of many trials ascending in cost and score, the noise decides: the named ones are on the front of true scores.
    best = np.maximum.accumulate([-math.inf, *searched.true[:-1]])
    sure = discoveries(beliefs, 0.05)
    assert len(sure) >= 3
    assert np.mean([searched.true[number] > best[number] for number in sure]) >= 0.8


def test_failures_are_counted_and_not_tried_for_ever(searched: Searched) -> None:
    memory = "out of memory: 9 GB"
    replication = searched.replication(seeds=3, extra=10.0)
    while not replication.done:
        step = replication.next()
        assert isinstance(step, Start)
        run = step.record
        if (run.number + run.seed) % 3 == 0:
            replication.finish(run.key, failure=memory)
        elif (run.number + run.seed) % 3 == 1:
            replication.finish(run.key, measured(math.nan, 1))
        else:
            replication.finish(run.key, searched.score(run.number))
    assert {run.failure for run in replication.runs} == {None, memory, "diverged"}
    assert max(run.seed for run in replication.runs) == 7 + 3
    for number, belief in replication.conclude().items():
        failures = [run.failure is not None for run in replication.runs if run.number == number]
        assert (belief.failed, belief.seeds) == (sum(failures), 1 + len(failures) - sum(failures))


def test_budgets_are_hard(searched: Searched) -> None:
    replication = searched.replication(hours=1.0)
    assert isinstance(replication.next(), Start)
    searched.clock.now = 3601
    assert replication.next() is WAIT
    [key] = replication.active
    assert replication.report(key, 1.0, 0.5) is Decision.PAUSE
    assert replication.next() is DONE
    assert replication.done
    assert [run.over for run in searched.records.replicates] == [False]
    longer = searched.replication(hours=2.0)
    assert not longer.done
    again = longer.next()
    assert isinstance(again, Resume)
    assert again.record.key == key


def test_replicates_hold_devices(searched: Searched) -> None:
    replication = searched.replication(device_hours=1.0)
    replication.next(), replication.next()
    searched.clock.now = 1800
    assert replication.meter.device_hours == pytest.approx(1.0)
    assert replication.meter.spent() == "1 device-hours"


def test_without_room_it_ends_and_says_why(searched: Searched) -> None:
    asked: list[list[int]] = []

    def lacking(configuration: Configuration, running: Sequence[int]) -> str:
        asked.append(list(running))
        return "no room" if len(asked) > 1 else ""

    spend = Budget(trials=TRIALS, concurrent=2)
    replication = Replication(
        searched.records, spend, Meter(spend, searched.records), seeds=2, extra=1.0, lacking=lacking
    )
    step = replication.next()
    assert isinstance(step, Start)
    first = step.record
    assert replication.next() is WAIT
    replication.finish(first.key, searched.score(first.number))
    assert replication.next() is DONE
    assert (replication.note, replication.done) == ("no room", True)
    assert asked == [[], [first.number], []]


@pytest.mark.parametrize(("seeds", "extra"), [(0, 1.0), (5, 0.01)])
def test_nothing_trains_again_unless_asked_and_paid_for(searched: Searched, seeds: int, extra: float) -> None:
    replication = searched.replication(seeds=seeds, extra=extra)
    assert replication.done
    assert replication.next() is DONE


def test_two_costs() -> None:
    searched = Searched(("accuracy", "stored_parameters", "latency_ms"))
    replication = searched.replication()
    searched.drive(replication)
    beliefs = replication.conclude()
    for number in discoveries(beliefs):
        mine = beliefs[number]
        for other, theirs in beliefs.items():
            if other < number and other % 3 <= number % 3 and theirs.seeds > 2 and mine.seeds > 2:
                assert theirs.mean < mine.mean + 3 * SPREAD


def test_records_of_replicates_come_back() -> None:
    for run in (
        Replicate(number=3, seed=8, started=5.0),
        Replicate(number=3, seed=8, started=5.0, ended=7.5, measurements=measured(0.5, 10)),
        Replicate(number=3, seed=9, started=5.0, ended=7.5, failure="diverged"),
    ):
        assert Replicate.from_dict(run.to_dict()) == run


def test_who_is_named() -> None:
    def of(probability: float) -> SeedSummary:
        return SeedSummary(mean=0, spread=0, seeds=1, failed=0, probability=probability, corrected=0)

    beliefs = {4: of(0.99), 7: of(0.5), 9: of(0.93)}
    assert discoveries(beliefs, 0.05) == {4, 9}
    assert discoveries(beliefs, 0.005) == set()
    assert discoveries({}) == set()


def test_who_might_have_been_on_the_front_is_told_of_again(tmp_path: Path) -> None:
    """When it is not any more; of who never was there is nothing to tell."""
    told: list[Any] = []
    publisher = Publisher(lambda *news: told.extend(news), Records.in_memory(), tmp_path)
    likely = SeedSummary(mean=0.5, spread=0.0, seeds=1, failed=0, probability=0.4, corrected=0.5)
    never = replace(likely, probability=0.0)
    publisher.summaries({1: likely, 2: never})
    publisher.summaries({1: never, 2: never})
    assert [(entry.number, entry.facts["believed"]["probability"]) for entry in told] == [(1, 0.4), (1, 0.0)]
