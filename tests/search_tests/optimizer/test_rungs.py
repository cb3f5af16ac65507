"""Rung rules as decisions on drawn tables."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
from loop import searched

from search.optimizer.rungs import (
    NEW,
    RULES,
    Asha,
    Dominated,
    Halving,
    Ladder,
    Never,
    ParetoAsha,
    Rule,
    Standing,
    best,
    options,
    rule,
)
from search.trials.pareto import ranks
from search.trials.record import State


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
    assert Asha(epochs=epochs, eta=eta, first_rung=first).rungs == pytest.approx(rungs)


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
    ],
)
def test_asha_keeps_the_best_share(score: float, others: list[float], eta: float, expected: bool) -> None:
    peers = [Standing(number, -other, cost=-other) for number, other in enumerate(others)]
    assert Asha(epochs=9, eta=eta).continues(Standing(9, -score), peers) is expected


@pytest.mark.parametrize("name", sorted({*RULES} - {"halving"}))
def test_every_stopping_rule_lets_the_only_trial_go_on(name: str) -> None:
    chosen = rule(name, 3.0)
    assert all(0 < rung < 3 for rung in chosen.rungs)
    assert not isinstance(chosen, Halving)
    assert chosen.continues(Standing(0, 0.1, 5.0), [])


def drawn(count: int, seed: int = 0) -> list[Standing]:
    """Of a few values each, so that many are equal."""
    random = np.random.default_rng(seed)
    return [Standing(number, *map(float, random.integers(0, 9, 2))) for number in range(count)]


def dominates(one: Standing, other: Standing) -> bool:
    return one.score <= other.score and one.cost <= other.cost and (one.score, one.cost) != (other.score, other.cost)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_are_taken_layer_by_layer(seed: int) -> None:
    """Each one that is taken is dominated by nobody but those before it."""
    standings, taken = drawn(40, seed), []
    while len(taken) < len(standings):
        taken.append(best(standings, {standing.number for standing in taken}))
    for index, standing in enumerate(taken):
        assert not any(dominates(later, standing) for later in taken[index + 1 :])


def test_within_a_layer_the_front_is_covered() -> None:
    """The best score, then the smallest, then the middle of the widest gap."""
    front = [Standing(number, score=10.0 - cost, cost=cost) for number, cost in enumerate((0, 1, 2, 6, 9, 10))]
    taken: list[int] = []
    while len(taken) < 4:
        taken.append(best(front, taken).number)
    assert taken == [5, 0, 3, 2]


def test_stopping_rules_on_two_objectives() -> None:
    front = [Standing(0, 0.1, 9.0), Standing(1, 0.5, 5.0), Standing(2, 0.9, 1.0)]
    small, bad = Standing(3, 1.0, 0.5), Standing(4, 0.6, 6.0)
    pareto, half = ParetoAsha(epochs=9, eta=2), Dominated(epochs=9)
    assert pareto.continues(small, front)  # two of four: the best score, and the one that is farthest from it
    assert not pareto.continues(bad, front)
    assert not Asha(epochs=9, eta=2).continues(small, front)
    assert half.continues(bad, front)  # one of three
    assert half.continues(bad, [front[1], front[0]])  # one of two: half, not more
    assert not half.continues(bad, [front[1]])
    assert half.continues(front[1], [front[1]] * 5)  # equals do not dominate


# --- promotion ---


@dataclass
class Race:
    """Trials of fixed standings on a ladder with some workers; epochs take a second each."""

    rule: Halving
    standings: list[Standing]
    workers: int = 1
    fails: set[int] = field(default_factory=set)
    reached: dict[int, int] = field(default_factory=dict)  # trial -> level
    epochs: float = 0.0

    def __post_init__(self) -> None:
        self.ladder, self.full = Ladder(self.rule), []
        ends, running, now = (0.0, *self.rule.rungs, self.rule.epochs), [], 0.0
        while True:
            while len(running) < self.workers:
                turn = self.ladder.next(fresh=len(self.reached) < len(self.standings))
                if turn is None:
                    break
                number = len(self.reached) if turn == NEW else turn
                level = self.reached[number] = 0 if turn == NEW else self.reached[number] + 1
                self._know(number, level, runs=True)
                self.epochs += ends[level + 1] - ends[level]
                heapq.heappush(running, (now + ends[level + 1] - ends[level], number))
            if not running:
                return
            now, number = heapq.heappop(running)
            level = self.reached[number]
            if number in self.fails:
                self._know(number, level)
            elif level == len(self.rule.rungs):
                self.full.append(number)
                self._know(number, level)
            else:
                self._know(number, level, passed=level + 1, waits=True)

    def _know(self, number: int, level: int, passed: int | None = None, **state: bool) -> None:
        own = self.standings[number]
        scores = [own.score] * (level if passed is None else passed)
        self.ladder.know(number, scores, own.cost, level=level, **state)


def continuous(count: int, seed: int) -> list[Standing]:
    random = np.random.default_rng(seed)
    return [Standing(number, *map(float, random.uniform(size=2))) for number in range(count)]


def synchronous(standings: Sequence[Standing], keep: Sequence[int]) -> set[int]:
    """Rung by rung, each when all have reached it."""
    for count in keep:
        taken: list[Standing] = []
        while len(taken) < count:
            taken.append(best(standings, {standing.number for standing in taken}))
        standings = sorted(taken, key=lambda standing: standing.number)
    return {standing.number for standing in standings}


def test_quotas_know_the_budget() -> None:
    """243 - 81 - 27 - 9 of 2, 6, 18 and 52 epochs: 1,440."""
    chosen = Halving(epochs=52, first_rung=2, trials=243)
    assert chosen.quotas == (243, 81, 27, 9)
    assert chosen.total == 1_440
    assert Halving(epochs=52, first_rung=2, trials=24).quotas == (24, 8, 8, 8)
    assert Halving(epochs=52, first_rung=2, trials=5).quotas == (5, 5, 5, 5)
    assert Halving(epochs=52, first_rung=2, trials=0).quotas == (0, 0, 0, 0)
    assert Halving(epochs=1, first_rung=2, trials=24).quotas == (24,)


@pytest.mark.parametrize("seed", range(3))
def test_one_worker_and_one_wave_are_the_synchronous_rule(seed: int) -> None:
    race = Race(Halving(epochs=52, first_rung=2, trials=243, waves=1), continuous(243, seed))
    assert set(race.full) == synchronous(race.standings, (81, 27, 9))
    assert race.epochs == 1_440


@pytest.mark.parametrize("workers", [1, 4, 16])
@pytest.mark.parametrize("waves", [1, 3, None])
def test_any_number_of_workers_spends_the_budget_to_the_epoch(workers: int, waves: int | None) -> None:
    race = Race(Halving(epochs=52, first_rung=2, trials=243, waves=waves), continuous(243, 7), workers)
    assert race.epochs == 1_440
    assert len(race.full) == 9
    assert race.ladder.hopeless == sorted(set(range(243)) - set(race.full))
    rank = ranks([(one.score, one.cost) for one in race.standings], ("minimize", "minimize"))
    assert sum(rank[number] == 0 for number in race.full) >= min(7, sum(rank == 0))


def test_in_waves_the_first_full_score_comes_early() -> None:
    """Of three trials the best is at once trained in full, and then a ninth of all begins, for nine waves."""
    ladder = Ladder(Halving(epochs=52, first_rung=2, trials=243))
    assert sum(ladder_step(ladder, number) for number in range(243)) == 3
    for level in (1, 2, 3):
        assert ladder.next(fresh=True) == 0
        ladder.know(0, [0.0] * min(level + 1, 3), 0.0, level=level, waits=level < 3, runs=level == 3)
    assert sum(ladder_step(ladder, number) for number in range(3, 243)) == 27 - 3


def ladder_step(ladder: Ladder, number: int) -> bool:
    """Begins a trial and lets it wait at the first rung, if it is time for a new one."""
    if ladder.next(fresh=True) != NEW:
        return False
    ladder.know(number, [float(number)], 0.0, level=0, waits=True)
    return True


def test_failures_hold_nobody_up() -> None:
    race = Race(Halving(epochs=52, first_rung=2, trials=60), continuous(60, 3), workers=4, fails=set(range(0, 60, 3)))
    assert len(race.reached) == 60
    assert race.ladder.next(fresh=False) is None
    assert 4 <= len(race.full) <= 8
    assert not race.fails & set(race.full)


def test_a_space_that_ends_early_is_trained_as_far_as_quotas_go() -> None:
    race = Race(Halving(epochs=52, first_rung=2, trials=243), continuous(20, 3))
    assert len(race.full) == 9
    assert len([level for level in race.reached.values() if level >= 2]) == 20


def test_no_worker_idles_while_something_may_be_done() -> None:
    """One wave: the last trials are still on their way to the rung, and the best so far is promoted."""
    ladder = Ladder(Halving(epochs=9, first_rung=3, trials=3, waves=1, min_full=1))
    for number, score in enumerate((0.5, 0.4)):
        ladder.know(number, [score], 0.0, level=0, waits=True)
    ladder.know(2, [], 0.0, level=0, runs=True)
    assert ladder.next(fresh=False) == 1
    ladder.know(1, [0.4], 0.0, level=1, runs=True)
    assert ladder.next(fresh=False) is None
    assert ladder.hopeless == []
    assert ladder.waiting == [0]
    ladder.know(1, [0.4], 0.0, level=1)
    assert ladder.hopeless == [0]


def test_who_fails_makes_way() -> None:
    """At each of two levels that take one of three: for one that waits where it began, or where it was."""
    ladder = Ladder(Halving(epochs=9, first_rung=1, trials=3, waves=1, min_full=1))
    assert ladder.rule.quotas == (3, 1, 1)
    for number in range(3):
        ladder.know(number, [float(number)], 0.0, level=0, waits=True)
    ladder.know(0, [0.0, 0.0], 0.0, level=2, runs=True)
    assert ladder.next(fresh=False) is None
    assert ladder.hopeless == []
    ladder.know(0, [0.0, 0.0], 0.0, level=0)
    assert ladder.next(fresh=False) == 1
    ladder.know(1, [1.0], 0.0, level=1, runs=True)
    ladder.know(1, [1.0, 1.0], 0.0, level=2, runs=True)
    assert ladder.hopeless == []
    ladder.know(1, [1.0, 1.0], 0.0, level=2)
    assert ladder.hopeless == [2]
    assert ladder.next(fresh=False) is None


def test_none_has_no_rungs() -> None:
    assert rule("none", 3.0) == Never()
    assert Never().rungs == ()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("halving", {"waves": 0}, "waves is at least 1; received 0"),
        ("halving", {"min_full": -1}, "min_full is at least 0; received -1"),
        ("hyperband", {}, "one of none, asha, .*; received 'hyperband'"),
        ("asha", {"eta": 1}, "eta is at least 1.1; received 1"),
        ("halving", {"eta": math.nan}, "eta is at least 1.1; received nan"),
        ("asha", {"first_rung": 0}, "first_rung, in epochs, is positive; received 0"),
        ("asha", {"grace": 2, "waves": 3}, "scheduler asha takes eta, first_rung; received grace, waves"),
        ("none", {"eta": 3}, "scheduler none takes no options; received eta"),
    ],
)
def test_errors_say_the_rule(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(name, 3.0, **options)


def test_options_are_what_a_rule_declares() -> None:
    assert {name: list(options(name)) for name in RULES} == {
        "none": [],
        "asha": ["eta", "first_rung"],
        "pareto-asha": ["eta", "first_rung"],
        "dominated": ["eta", "first_rung"],
        "halving": ["eta", "first_rung", "waves", "min_full"],
    }
    with pytest.raises(ValueError, match=r"waves is a whole number; received 1\.5"):
        rule("halving", 9.0, 9, waves=1.5)
    assert rule("halving", 9.0, 9, waves=2.0) == Halving(epochs=9.0, trials=9, waves=2)


@dataclass(frozen=True)
class OneOfAll(Rule):
    """A rule that promotes, of the user's own: all train an epoch, and then the best of them in full."""

    trials: int
    rungs: ClassVar = (1.0,)

    def continues(self, own: Standing, others: Sequence[Standing]) -> bool:
        return False

    def promotions(self) -> BestOfAll:
        return BestOfAll(self.trials)


class BestOfAll:
    def __init__(self, trials: int) -> None:
        self.trials, self.losses, self.waits = trials, dict[int, float](), set[int]()

    def know(self, number: int, scores: Sequence[float], cost: float, **now: Any) -> None:
        if scores:
            self.losses[number] = scores[0]
        (self.waits.add if now["waits"] else self.waits.discard)(number)

    def next(self, *, fresh: bool, choose: Any) -> int | None:
        best = min(self.losses, key=lambda number: self.losses[number], default=NEW)
        return NEW if fresh else best if len(self.losses) == self.trials and best in self.waits else None

    @property
    def hopeless(self) -> list[int]:
        over = (
            len(self.losses) == self.trials and min(self.losses, key=lambda each: self.losses[each]) not in self.waits
        )
        return sorted(self.waits) if over else []

    @property
    def waiting(self) -> list[int]:
        return sorted(self.waits, key=lambda number: self.losses[number])


def test_another_rule_that_promotes_is_played_as_halving_is() -> None:
    records = searched(6, rule=OneOfAll(6))
    scores = {record.number: record.rungs[1.0] for record in records.all()}
    best = max(scores, key=lambda number: scores[number])
    assert [record.number for record in records.all() if record.state is State.COMPLETE] == [best]
    assert sum(record.state is State.PRUNED for record in records.all()) == 5
