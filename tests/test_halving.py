"""Rung rules as decisions on drawn tables."""

from __future__ import annotations

import math

import pytest

from search.halving import RULES, Asha, Never, rule
from search.pareto import MAXIMIZE, MINIMIZE


@pytest.mark.parametrize(
    ("epochs", "eta", "first", "rungs"),
    [
        (3, 3, 1, (1.0,)),
        (52, 3, 2, (2.0, 6.0, 18.0)),
        (27, 3, 1, (1.0, 3.0, 9.0)),  # the last would be the full budget
        (3, 2, 0.5, (0.5, 1.0, 2.0)),
        (1, 3, 1 / 9, (1 / 9, 1 / 3)),
        (0.3, 3, 0.1, (0.1,)),  # 0.1 x 3 is above 0.3 in floating point
        (1, 3, 1, ()),
        (0.5, 3, 1, ()),
    ],
)
def test_rungs_are_geometric_and_below_the_full_budget(
    epochs: float, eta: float, first: float, rungs: tuple[float, ...]
) -> None:
    assert Asha(epochs=epochs, eta=eta, first=first).rungs == pytest.approx(rungs)


@pytest.mark.parametrize(
    ("score", "others", "eta", "expected"),
    [
        (0.5, [], 3, True),  # at least one
        (0.5, [0.6], 3, False),
        (0.5, [0.4], 3, True),
        (0.5, [0.5, 0.5], 3, True),  # nobody is better
        (0.5, [0.6, 0.4, 0.3, 0.2], 3, False),  # one of five
        (0.5, [0.6, 0.4, 0.3, 0.2, 0.1], 3, True),  # two of six
        (0.5, [0.6, 0.7, 0.3, 0.2, 0.1], 3, False),
        (0.5, [0.6, 0.4, 0.3], 2, True),  # two of four
        (0.5, [0.6, 0.7, 0.3, 0.2, 0.1], 1.5, True),  # four of six
        (0.5, [math.nan, math.inf], 3, True),  # what is not finite is no peer
        (math.nan, [], 3, False),
        (math.inf, [], 3, False),
    ],
)
def test_asha_keeps_the_best_share(score: float, others: list[float], eta: float, expected: bool) -> None:
    asha = Asha(epochs=9, eta=eta)
    assert asha.goes_on(score, others, MAXIMIZE) is expected
    assert asha.goes_on(-score, [-other for other in others], MINIMIZE) is expected


@pytest.mark.parametrize("name", RULES)
def test_every_rule_lets_the_only_trial_go_on_and_stops_a_nan(name: str) -> None:
    chosen = rule(name, 3.0)
    assert all(0 < rung < 3 for rung in chosen.rungs)
    assert chosen.goes_on(0.1, [], MAXIMIZE)
    assert not chosen.goes_on(math.nan, [], MAXIMIZE)


def test_none_has_no_rungs() -> None:
    assert rule("none", 3.0) == Never()
    assert Never().rungs == ()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hyperband", {}, "one of none, asha; received 'hyperband'"),
        ("asha", {"eta": 1}, "eta is greater than 1; received 1"),
        ("asha", {"first": 0}, "first rung in epochs, is positive; received 0"),
        ("asha", {"grace": 2}, "scheduler asha: .*grace"),
        ("none", {"eta": 3}, "takes no options; received eta"),
    ],
)
def test_errors_say_the_rule(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(name, 3.0, **options)
