"""A search driven by a plain loop over a made-up objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import tiny
from transformers import BertConfig

from petl.configuration import Configuration, Training
from petl.measurements import Measurements
from search.optimizer.budget import Budget
from search.optimizer.search import Plan, Search
from search.optimizer.simulation.replay import Clock, replay
from search.optimizer.steps import DONE, Decision, Resume, Start
from search.trials.record import State, TrialRecord
from search.trials.records import Records
from spaces.space import resolve

OPTIONS = {"sizes": [0, 4, 16, 64], "lengths": [0, 4, 16], "parts": None}


TRAINING = Training(epochs=3)


BACKBONE = tiny.described(BertConfig(num_hidden_layers=4, hidden_size=32, intermediate_size=64, num_attention_heads=4))


def count(configuration: Configuration) -> Mapping[str, float]:
    """A made-up count: 10 parameters a unit of size and layer, of a backbone of 100,000."""
    stored = sum(
        10 * (part.size or 5) * len(part.layers_of(BACKBONE.depth)) for part in configuration.design.modifications
    )
    return {"stored_parameters": float(stored), "stored_percent": stored / 1000}


def score(configuration: Configuration, epochs: float) -> float:
    """Better with size, with diminishing returns, with a learning rate near 1e-3, and with epochs."""
    size = math.log1p(count(configuration)["stored_parameters"]) / 12
    rate = abs(math.log10(configuration.training.learning_rate / 1e-3))
    return (0.5 + 0.4 * size - 0.1 * rate) * (1 - 0.3 * math.exp(-epochs))


def plan(**changes: object) -> Plan:
    values = {
        "space": resolve("unified", OPTIONS, TRAINING),
        "backbone": BACKBONE,
        "count": count,
        "budget": Budget(trials=8),
        "sampler": "random",
    }
    return Plan(**{**values, **changes})


def measured(configuration: Configuration | None, **changes: float) -> Measurements:
    if configuration is None:
        return Measurements(accuracy=0.3)
    values = {
        "accuracy": score(configuration, 3),
        "stored_parameters": int(count(configuration)["stored_parameters"]),
        "epochs": 3.0,
    }
    return Measurements(**{**values, **changes})


def train(search: Search, record: TrialRecord, after: Callable[[], None] = lambda: None) -> None:
    """One trial as a worker would run it; `after` is called after every call of the search."""
    for epoch in search.rungs(record.number):
        assert record.configuration
        known = epoch in search.records.get(record.number).rungs
        decision = search.report(record.number, epoch, score(record.configuration, epoch))
        if not known:  # else a search that is killed after every call would never get further
            after()
        if decision is Decision.PAUSE:
            return
        if decision is Decision.STOP:
            search.finish(record.number, measured(record.configuration, epochs=epoch), stopped=True)
            return after()
    search.finish(record.number, measured(record.configuration))
    return after()


def share(search: Search, record: TrialRecord, twin: int, after: Callable[[], None] = lambda: None) -> None:
    """Give a trial the result of its twin, as a worker would; `after` as in `train`."""
    other = search.get(twin)
    for epoch, reached in other.rungs.items():
        known = epoch in search.get(record.number).rungs
        assert search.report(record.number, epoch, reached, over=True) is Decision.CONTINUE
        if not known:
            after()
    search.finish(record.number, other.measurements)
    after()


def hand(
    search: Search, step: Start[TrialRecord] | Resume[TrialRecord], after: Callable[[], None] = lambda: None
) -> None:
    """Do what one worker does with a step."""
    train(search, step.record, after) if step.twin is None else share(search, step.record, step.twin, after)


def run(search: Search) -> list[TrialRecord]:
    """One worker until the search is over."""
    while isinstance(step := search.next(1), Start | Resume):
        hand(search, step)
    assert step is DONE
    return search.records.all()


def facts(records: Records) -> list[object]:
    """All of a study but the times, and but what a stopped trial measured: its rungs are what counts."""
    return [
        (
            replace(
                record,
                started=None,
                ended=None,
                measurements=None if record.state is State.PRUNED else record.measurements,
            ),
            records.proposal(record.number),
            records.stopped_at(record.number),
        )
        for record in records.all()
    ]


def searched(trials: int, **changes: Any) -> Records:
    class Curve:
        def score(self, record: Any, epoch: float) -> float:
            return score(record.configuration, epoch)

        def measured(self, record: Any) -> Measurements:
            return measured(record.configuration)

    records, clock = Records.in_memory(), Clock()
    replay(Search(records, plan(budget=Budget(trials=trials), **changes), clock), Curve(), clock=clock)
    return records
