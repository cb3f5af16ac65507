"""Rung rules: which trials are worth their full budget. Pure decisions on recorded scores.

A rung is a number of epochs, fractions allowed, below the full budget. At each one a trial reports its
score. Two kinds of rules decide what that means:

- a stopping rule says at once whether the trial trains on or ends: `Never`, `Asha`, `ParetoAsha`, `Dominated`;
- Pareto halving (`Halving`, played by a `Ladder`) lets it wait, and promotes some of those that wait.

Another rule is a class here with a row in RULES. Nothing is kept that is not on record: a decision depends on what the
trials have reached alone, so a search that is restarted decides as it would have.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Final, Protocol

import numpy as np

from petl.measurements import MINIMIZE
from search.trials.pareto import ranks

_BOTH: Final = (MINIMIZE, MINIMIZE)
_LEAST_ETA: Final = 1.1  # nearer to 1 there would be no end of rungs


@dataclass(frozen=True)
class Standing:
    """A trial at a rung. Both values are losses: smaller is better. Where the cost is not known yet it is 0."""

    number: int
    score: float
    cost: float = 0.0


def best(standings: Sequence[Standing], taken: Collection[int] = ()) -> Standing:
    """Return the trial that is next to train on, after those that are `taken`.

    It is of the first non-dominated rank that has one left. Within the rank the best score comes first, then
    the one that is farthest from all of the rank that are taken: the front is covered, not its middle.
    Raises ValueError where none is left.
    """
    open_ = np.array([standing.number not in taken for standing in standings], dtype=bool)
    if not open_.any():
        raise ValueError("all standings are taken")
    values = np.array([(standing.score, standing.cost) for standing in standings])
    rank = ranks(values, _BOTH)
    layer = np.flatnonzero(rank == rank[open_].min())
    points = values[layer] - values[layer].min(axis=0)
    points /= np.where(points.max(axis=0) > 0, points.max(axis=0), 1.0)
    taken_points, left = points[~open_[layer]], np.flatnonzero(open_[layer])
    if len(taken_points):
        apart = np.linalg.norm(points[left][:, None] - taken_points[None], axis=2).min(axis=1)
        keys = np.lexsort((points[left, 0], -apart))
    else:
        keys = np.lexsort((points[left, 1], points[left, 0]))
    return standings[int(layer[left[keys[0]]])]


def _option(default: Any, meaning: str, *, whole: bool = False) -> Any:
    """Return a field that is an option of a rule: study files and `replay` have it by its name. `whole`: an integer."""
    return field(default=default, metadata={"option": Option(meaning, whole)})


@dataclass(frozen=True)
class Option:
    """An option of a rule: its meaning, for people, and whether it is a `whole` number."""

    meaning: str
    whole: bool = False


@dataclass(frozen=True)
class Rule(ABC):
    """What is trained on, and how far. At its rungs a rule stops trials, or lets them wait for a promotion."""

    @property
    @abstractmethod
    def rungs(self) -> tuple[float, ...]:
        """The epochs at which it decides, ascending, all below the full budget."""

    @abstractmethod
    def continues(self, own: Standing, others: Sequence[Standing]) -> bool:
        """Return whether a trial trains on at once, beside the `others` recorded at the same rung so far.

        All scores are finite. It is not asked of a rule that promotes.
        """

    def promotions(self) -> Promotions | None:
        """Return who lets trials wait and promotes them, of a search that begins; None for a rule that stops them."""
        return None

    @property
    def total(self) -> float | None:
        """The epochs that all trials come to, where the rule fixes them."""
        return None

    def suited(self, sampler: str) -> Rule:
        """Return the rule for a sampler, where what is not set depends on it."""
        return self


class Promotions(Protocol):
    """Where the trials of a rule that promotes stand, and whose turn it is: see Ladder."""

    def know(
        self, number: int, scores: Sequence[float], cost: float, *, level: int, waits: bool = False, runs: bool = False
    ) -> None:
        """Take in a trial as it is now."""
        ...

    def next(self, *, fresh: bool, choose: Callable[[Collection[int], Collection[int], int], int]) -> int | None:
        """Return the waiting trial to promote, or NEW; None where all depends on those that run."""
        ...

    @property
    def hopeless(self) -> Sequence[int]:
        """Waiting trials that cannot be promoted any more."""
        ...

    @property
    def waiting(self) -> Sequence[int]:
        """The paused trials, the most promising first."""
        ...


@dataclass(frozen=True)
class Never(Rule):
    """Every trial gets its full budget."""

    rungs: ClassVar[tuple[float, ...]] = ()

    def continues(self, own: Standing, others: Sequence[Standing]) -> bool:
        return True


@dataclass(frozen=True)
class _Geometric(Rule):
    """Rungs at first_rung, first_rung x eta, first_rung x eta² ... Raises ValueError, naming the rule and the value."""

    epochs: float
    eta: float = _option(3.0, "one in eta trains on from a rung, and the next is at eta times the epochs")
    first_rung: float = _option(1.0, "epochs at the first rung")

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epochs) and self.epochs > 0):
            raise ValueError(f"epochs is positive; received {self.epochs}")
        if not _LEAST_ETA <= self.eta < math.inf:
            raise ValueError(f"eta is at least {_LEAST_ETA}; received {self.eta}")
        if not 0 < self.first_rung < math.inf:
            raise ValueError(f"first_rung, in epochs, is positive; received {self.first_rung}")

    @cached_property
    def rungs(self) -> tuple[float, ...]:
        """The first rung and its multiples by eta."""
        levels: list[float] = []
        level = float(self.first_rung)
        while level < self.epochs * (1 - 1e-9):  # 0.1 x 3 x 10 must not become a rung below 3
            levels.append(level)
            level *= self.eta
        return tuple(levels)

    def share(self, peers: int) -> int:
        """Return how many of so many train on: 1/eta of them, at least one."""
        return max(1, int(peers / self.eta))


@dataclass(frozen=True)
class Asha(_Geometric):
    """Asynchronous successive halving, stopping type (Li et al., MLSys 2020), on the score alone.

    A trial trains on if it is among the best 1/eta of all scores recorded at the rung so far, itself included.
    Equal scores are equally good.
    """

    def continues(self, own: Standing, others: Sequence[Standing]) -> bool:
        return sum(other.score < own.score for other in others) < self.share(len(others) + 1)


@dataclass(frozen=True)
class ParetoAsha(_Geometric):
    """Asha on both objectives: by non-dominated rank, and within one by the spread over the front (see `best`)."""

    def continues(self, own: Standing, others: Sequence[Standing]) -> bool:
        everyone, share = [*others, own], self.share(len(others) + 1)
        rank = ranks([(each.score, each.cost) for each in everyone], _BOTH)
        layer = [each for each, level in zip(everyone, rank, strict=True) if level == rank[-1]]
        left = share - int((rank < rank[-1]).sum())  # for those of its own rank
        if left >= len(layer):
            return True
        taken: set[int] = set()
        for _ in range(left):
            taken.add(best(layer, taken).number)
        return own.number in taken


@dataclass(frozen=True)
class Dominated(_Geometric):
    """A trial ends where more than half of its peers dominate it."""

    def continues(self, own: Standing, others: Sequence[Standing]) -> bool:
        above = sum(
            other.score <= own.score and other.cost <= own.cost and (other.score, other.cost) != (own.score, own.cost)
            for other in others
        )
        return above <= len(others) / 2


@dataclass(frozen=True)
class Halving(_Geometric):
    """Pareto halving by promotion: one in eta trains on from each rung, the others wait.

    It knows the budget: of `trials` so many are trained to each rung as `quotas` says, and at least `min_full`
    in full, or all where there are fewer. The quotas are filled in `waves`: with one wave every trial reaches
    the first rung before any goes beyond, which is synchronous halving; with many, full scores are known early,
    from which a sampler learns. None: as many as have eta^rungs trials each. Where there are several, a small one
    comes first: of eta trials the best is at once trained in full.
    """

    trials: int = 0
    waves: int | None = _option(None, "in how many waves the rungs are filled", whole=True)
    min_full: int = _option(8, "how many trials at least are trained in full", whole=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("trials", self.trials), ("min_full", self.min_full)):
            if value < 0:
                raise ValueError(f"{name} is at least 0; received {value}")
        if self.waves is not None and self.waves < 1:
            raise ValueError(f"waves is at least 1; received {self.waves}")

    @cached_property
    def quotas(self) -> tuple[int, ...]:
        """How many trials are trained at all, beyond the first rung, the second ..., and so in full."""
        kept = (round(self.trials / self.eta**level) for level in range(len(self.rungs) + 1))
        return tuple(max(quota, min(self.min_full, self.trials), 0) for quota in kept)

    @cached_property
    def targets(self) -> tuple[tuple[int, int, int], ...]:
        """What is to be done, in order: (level, how many are to have entered it, and the level below it by then).

        Level 0 is to begin, level 1 to be let beyond the first rung.
        """
        waves = self.waves or max(1, int(self.trials / self.eta ** len(self.rungs)))
        due = [[-(-quota * wave // waves) for quota in self.quotas] for wave in range(1, waves + 1)]
        if waves > 1:
            due.insert(0, [min(math.ceil(self.eta), self.trials), *(1 for _ in self.rungs)])
        return tuple((level, row[level], row[max(level - 1, 0)]) for row in due for level in range(len(row)))

    def continues(self, own: Standing, others: Sequence[Standing]) -> bool:
        return False  # it waits, and may be promoted

    def promotions(self) -> Promotions:
        return Ladder(self)

    def suited(self, sampler: str) -> Rule:
        """Return the rule with one wave for a sampler that learns nothing, which gains nothing by several."""
        return replace(self, waves=1) if self.waves is None and sampler == "random" else self

    @property
    def total(self) -> float:
        ends = (*self.rungs, self.epochs)
        return sum(quota * (end - begin) for quota, begin, end in zip(self.quotas, (0.0, *ends), ends, strict=False))


NEW: Final = -1  # begin another trial


class Ladder:
    """Where the trials of a halving stand, and whose turn it is. See `next`."""

    def __init__(self, rule: Halving) -> None:
        self.rule = rule
        levels = len(rule.rungs) + 1
        self._at: list[dict[int, Standing]] = [{} for _ in rule.rungs]
        self._waiting: list[set[int]] = [set() for _ in rule.rungs]
        self._under_way: list[set[int]] = [set() for _ in range(levels)]  # in training at this level
        self._entered = [0] * levels
        self._levels: dict[int, int] = {}  # trial -> the level that it was let into

    def know(
        self, number: int, scores: Sequence[float], cost: float, *, level: int, waits: bool = False, runs: bool = False
    ) -> None:
        """Take in a trial as it is now, in place of what was known of it.

        `scores` are its losses at the first rungs, finite; `level` is how many rungs it was let beyond, 0 of one that
        failed: another takes its place. It `waits` at the next one, `runs`, or has ended.
        """
        before = self._levels.get(number, -1)
        for entered in range(before + 1, level + 1):
            self._entered[entered] += 1
        for left in range(level + 1, before + 1):
            self._entered[left] -= 1
        self._levels[number] = level
        for rung, score in enumerate(scores):
            self._at[rung][number] = Standing(number, score, cost)
        for rung, waiting in enumerate(self._waiting):
            (waiting.add if waits and rung == level else waiting.discard)(number)
        for at, under_way in enumerate(self._under_way):
            (under_way.add if runs and at == level else under_way.discard)(number)

    def next(
        self, *, fresh: bool, choose: Callable[[Collection[int], Collection[int], int], int] = lambda *of: of[-1]
    ) -> int | None:
        """Return the waiting trial to promote, or NEW; None where all depends on those that run.

        `fresh`: NEW is possible.

        `choose` picks one of those that wait at a rung, beside those that have left it and the one that is first by
        its score there (see `best`), which it is without a choice.

        The targets are filled in their order, each when as many have reported as its wave needs. Rather than to
        leave a worker idle the best of those that have reported so far is promoted.
        """
        unmet = [(level, due) for level, target, due in self.rule.targets if self._entered[level] < target]
        for settled in (True, False):
            for level, due in unmet:
                if level == 0:
                    if fresh:
                        return NEW
                elif self._waiting[level - 1] and (not settled or self._arrived(level - 1) >= due):
                    return self._best(level - 1, choose)
        return None

    @property
    def hopeless(self) -> list[int]:
        """Waiting trials that cannot be promoted any more: all that their level takes are through with it.

        And with the levels beyond that take as many, where one that fails can only be replaced from here.
        """
        return sorted(
            number
            for rung, waiting in enumerate(self._waiting)
            if waiting and self._through(rung + 1) >= self.rule.quotas[rung + 1]
            for number in waiting
        )

    @property
    def waiting(self) -> list[int]:
        """The paused trials, the most promising first: beyond most rungs, then by the order of promotion."""
        order: list[int] = []
        for rung in reversed(range(len(self._waiting))):
            left = set(self._waiting[rung])
            while left:
                order.append(best(list(self._at[rung].values()), self._at[rung].keys() - left).number)
                left.discard(order[-1])
        return order

    def _arrived(self, level: int) -> int:
        """Return how many have entered a level and are through with it, failed ones included."""
        return self._entered[level] - len(self._under_way[level])

    def _through(self, level: int) -> int:
        """Return how many have entered a level and cannot make way by a failure any more."""
        quotas = self.rule.quotas
        alike = [at for at in range(level, len(quotas)) if quotas[at] == quotas[level]]
        return self._entered[level] - sum(len(self._under_way[at]) for at in alike)

    def _best(self, rung: int, choose: Callable[[Collection[int], Collection[int], int], int]) -> int:
        at, waiting = self._at[rung], self._waiting[rung]
        taken = at.keys() - waiting
        return choose(waiting, taken, best(list(at.values()), taken).number)


RULES: Final[Mapping[str, type[Rule]]] = {
    "none": Never,
    "asha": Asha,
    "pareto-asha": ParetoAsha,
    "dominated": Dominated,
    "halving": Halving,
}


def options(name: str) -> Mapping[str, Option]:
    """Return the options of the rule of this name. Raises ValueError where there is no such rule."""
    if name not in RULES:
        raise ValueError(f"a scheduler is one of {', '.join(RULES)}; received {name!r}")
    return {each.name: each.metadata["option"] for each in fields(RULES[name]) if "option" in each.metadata}


OPTIONS: Final[Mapping[str, Option]] = {name: option for each in RULES for name, option in options(each).items()}


def rule(name: str, epochs: float, trials: int = 0, **values: Any) -> Rule:
    """Return the rule of this name for `trials` trials of `epochs` epochs.

    Raises ValueError for an option that the rule does not have, or a value that it does not take.
    """
    known = options(name)
    if unknown := [option for option in values if option not in known]:
        raise ValueError(f"scheduler {name} takes {', '.join(known) or 'no options'}; received {', '.join(unknown)}")
    for option, value in values.items():
        if known[option].whole and not float(value).is_integer():
            raise ValueError(f"{option} is a whole number; received {value}")
    converted = {option: int(value) if known[option].whole else value for option, value in values.items()}
    study = {"epochs": epochs, "trials": trials}
    own = {each.name: study[each.name] for each in fields(RULES[name]) if each.name in study}
    try:
        return RULES[name](**own, **converted)
    except TypeError as error:
        raise ValueError(f"scheduler {name}: {error}") from error
