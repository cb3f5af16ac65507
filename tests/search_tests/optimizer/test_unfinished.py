"""What Optuna's samplers are told of trials that are not finished, on curves made by hand."""

from __future__ import annotations

import pytest
from loop import plan, score, searched

from petl.configuration import Configuration, Training
from petl.measurements import Measurements
from petl.presets import lora
from search.optimizer.budget import Budget
from search.optimizer.front.surrogate import gains
from search.optimizer.observations import UNFINISHED, expected_scores, observations
from search.optimizer.rungs import Halving
from search.optimizer.search import Search
from search.optimizer.steps import Start
from search.trials.record import Proposal, State
from search.trials.records import Records

CURVES = {0: (0.5, 0.7, 0.8), 1: (0.4, 0.5, 0.55), 2: (0.3, 0.5), 3: (0.6,), 4: (), 5: (0.2,)}


@pytest.fixture
def records() -> Records:
    """0 and 1 in full, 2 stopped after two epochs, 3 waiting after one, 4 stopped before any, 5 running."""
    made = Records.in_memory()
    for number, curve in CURVES.items():
        made.create(Configuration(lora(rank=number + 1), Training(epochs=3)))
        for epoch, value in enumerate(curve[:2], start=1):
            made.rung(number, float(epoch), value, pause=number == 3)
        if len(curve) == 3:
            made.close(number, State.COMPLETE, Measurements(accuracy=curve[2], stored_parameters=1, epochs=3))
    made.close(2, State.PRUNED)
    made.close(4, State.PRUNED)
    return made


def test_gains_are_those_of_trials_that_went_on() -> None:
    """From 1 to 2: 0.2, 0.1, 0.2. From 2 to 3: 0.1, 0.05. Not of their means, since those that went on were better."""
    curves = [dict(enumerate(curve, start=1)) for curve in CURVES.values()]
    assert gains([{float(at): value for at, value in curve.items()} for curve in curves]) == pytest.approx(
        {1.0: 0.2 + 0.075, 2.0: 0.075, 3.0: 0.0}
    )
    assert gains([]) == {}


@pytest.mark.parametrize(
    ("unfinished", "told"),
    [
        ("last", {2: 0.5, 3: 0.6}),
        ("ignored", {}),
        ("extrapolated", {2: 0.575, 3: 0.875}),
        ("predicted", {2: 0.5, 3: 0.6}),
    ],
)
def test_what_is_told(records: Records, unfinished: str, told: dict[int, float]) -> None:
    """Five trials are no model yet: the score as it is."""
    assert expected_scores(records, unfinished) == pytest.approx(told)


def test_the_model_knows_more_than_the_last_score() -> None:
    """Closer to what the trials would have come to than their scores at the first rung, by far."""
    records = searched(36, rule=Halving(epochs=3, eta=3, first_rung=1, trials=36, waves=1))
    errors = {}
    for unfinished in ("last", "extrapolated", "predicted"):
        told = expected_scores(records, unfinished)
        assert len(told) == 24
        errors[unfinished] = max(
            abs(value - score(configuration, 3))
            for number, value in told.items()
            if (configuration := records.get(number).configuration)
        )
    assert errors["predicted"] < 0.25 * errors["last"]
    assert errors["extrapolated"] < 0.25 * errors["last"]


@pytest.mark.parametrize("unfinished", UNFINISHED)
def test_a_sampler_is_told_so(unfinished: str) -> None:
    records = searched(16, rule=Halving(epochs=3, eta=2, first_rung=1, trials=16, waves=1, min_full=2))
    values = expected_scores(records, unfinished)
    rows = observations(records, Proposal(), records.objectives, {}, unfinished)
    complete = sum(record.state is State.COMPLETE for record in records.all())
    assert len(rows) == complete + len(values)
    told = [row.values[0] for row in rows if row.values]
    assert set(values.values()) <= set(told)
    chosen = plan(sampler="tpe", unfinished=unfinished, budget=Budget(trials=17))
    assert isinstance(Search(records, chosen).next(1), Start)
