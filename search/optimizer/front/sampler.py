"""Propose the design that is expected to add the most to the front."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from petl.measurements import MINIMIZE
from search.optimizer.front import surrogate as surrogates
from search.optimizer.front.covering import Axis, covering
from search.optimizer.front.gp import GaussianProcess, log_ehvi
from search.optimizer.front.surrogate import Surrogate
from search.trials.limits import over
from search.trials.objectives import Objective
from search.trials.pareto import Floats, non_dominated
from search.trials.record import Proposal, TrialRecord
from search.trials.records import Records
from spaces.dimensions import SpaceError
from spaces.space import Point, Space, decode

if TYPE_CHECKING:
    from petl.backbones.model import Backbone
    from petl.configuration import Configuration

_COVERING: Final = 8  # points that are tried for one of the first proposals
_DRAWN: Final = 200  # at random for one proposal, before one outside the limits is proposed
_SHOWN: Final = 60  # trials whose costs tell about those of candidates, until they are counted
_CANDIDATES: Final = 400  # drawn anywhere, as many near the expected front, and as many in each round near the best
_ROUNDS: Final = 2
_STARTS: Final = 10  # the best, near which a round looks
_COUNTED: Final = 8  # of them, the best, that are counted; more where none of these is allowed
_LOOKS: Final = 8  # at most so many times
_FAR: Final = 1e9  # below any logarithm of a gain


class Counted(NamedTuple):
    """What is known of coordinates before training.

    `cost` is as a sampler sees it, NaN where only training tells. `over` is how far they are beyond the limits, at most
    0 within, NaN for coordinates that the space does not hold. `new` ones mean what no trial does.
    """

    cost: float
    over: float
    new: bool

    @property
    def allowed(self) -> bool:
        """Whether they may be proposed."""
        return self.over <= 0 and self.new


@dataclass(frozen=True, kw_only=True)
class FrontSampler:
    """The sampler of a study with one cost: see `search.optimizer.samplers.Proposer` for what it is given.

    `draw` gives random points of the space, for a seed, so many.
    """

    space: Space
    backbone: Backbone
    cost: Objective
    count: Callable[[Configuration], Mapping[str, float]]
    draw: Callable[[int, int], Iterator[Point]]
    limits: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    rungs: Collection[float] | None = None
    _latest: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def ask(self, records: Records, proposal: Proposal, seed: int) -> Point:
        """Return the point of the largest expected gain, new and within the limits; at first one that covers the cost.

        Where there is none, it is one that is refused, so that more is known of the limits.
        """
        random = np.random.default_rng(seed)
        trained = {each.configuration.key for each in records.all() if each.configuration and not each.reference}

        def count(coordinates: Mapping[str, Any]) -> Counted:
            return self._counted(coordinates, trained)

        if surrogate := self._surrogate(records):
            best = propose(surrogate, random, count, self._excess_of_trials(records, surrogate))
            if best is not None:
                return decode(self.space, best, self.backbone)
        points = chain(self._first(records, proposal, seed, random), self.draw(seed, _DRAWN))
        first = next(points)  # there is one: what is drawn is either something or an error
        return next((each for each in chain([first], points) if count(each.coordinates).allowed), first)

    def most_promising(
        self, records: Records, news: TrialRecord | None, waiting: Collection[int], taken: Collection[int], first: int
    ) -> int:
        """Return what `Proposer.most_promising` does."""
        surrogate = self._surrogate(records, news)
        return surrogate.most_promising(waiting, taken, first) if surrogate else first

    def _surrogate(self, records: Records, news: TrialRecord | None = None) -> Surrogate | None:
        """Return what is expected of the trials, fitted once until the records change."""
        key = (records.changes, news)
        if self._latest.get("key") != key:
            dearest = self._axis.reach if self.cost.counted else -math.inf
            dimensions = surrogates.dimensions(records)
            self._latest.update(
                key=key, surrogate=surrogates.fit(records, dimensions, news, dearest, self.rungs, self._axis.absent)
            )
        latest: Surrogate | None = self._latest["surrogate"]
        return latest

    def _first(self, records: Records, proposal: Proposal, seed: int, random: np.random.Generator) -> Iterable[Point]:
        """Return points that cover the axis of what is known before training; none where nothing is."""
        if not (self.cost.counted or self.limits):
            return ()
        # Enqueued designs have a name; they are where the user wants them.
        sampled = [record for record in records.all() if not record.name]
        earlier = [each for record in sampled if (each := records.proposal(record.number)).coordinates]
        occupied = {self._axis.along(each.counts) for each in earlier}
        starts = self.draw(seed, _COVERING)
        return covering(self._axis, starts, len(earlier) + len(proposal.rejected), occupied, random)

    @cached_property
    def _axis(self) -> Axis:
        return Axis(
            space=self.space,
            backbone=self.backbone,
            cost=self.cost,
            count=self.count,
            draw=self.draw,
            limits=self.limits,
            seed=self.seed,
        )

    def _counted(self, coordinates: Mapping[str, Any], trained: Collection[str]) -> Counted:
        """Return what is known of coordinates, beside the keys of the configurations that trials have."""
        try:
            configuration = decode(self.space, coordinates, self.backbone).configuration
        except SpaceError:  # of a space that branches: it asks for more here than it has shown yet
            return Counted(math.nan, math.nan, False)
        counts = self.count(configuration)
        cost = self._axis.along(counts) if self.cost.counted else math.nan
        return Counted(cost, over(counts, self.limits), configuration.key not in trained)

    def _excess_of_trials(self, records: Records, surrogate: Surrogate) -> Floats | None:
        """Return how far each of the surrogate's trials is beyond the limits; None where there are none."""
        if not self.limits:
            return None
        numbers = [record.number for record in surrogate.known.records]
        return np.array([over(records.proposal(number).counts, self.limits) for number in numbers])


def propose(
    surrogate: Surrogate,
    random: np.random.Generator,
    count: Callable[[Mapping[str, Any]], Counted],
    over: Floats | None = None,
) -> Mapping[str, Any] | None:
    """Return the coordinates of the largest expected gain; None where none of those that were counted is allowed.

    `over` says of each trial how far it is beyond the limits, None that there are none: what is expected to lie beyond
    them comes last.
    """
    encoding, gains = surrogate.encoding, _Gains(surrogate, over)
    rows, expected = _candidates(surrogate, gains, random)
    gain = expected.gain
    open_ = np.ones(len(rows), dtype=np.bool_)
    for _ in range(_LOOKS):
        best = [index for index in np.argsort(-gain, kind="stable") if open_[index]][:_COUNTED]
        open_[best] = False
        points = [encoding.point(rows[index]) for index in best]
        counted = [count(point) for point in points]
        costs = np.array([each.cost for each in counted])
        costs = np.where(np.isnan(costs), expected.cost[best], costs)
        if allowed := [place for place, each in enumerate(counted) if each.allowed]:
            exact = gains.of(expected.mean[best], expected.deviation[best], costs, np.full(len(best), -np.inf))
            return points[max(allowed, key=lambda place: exact[place])]
        if not open_.any():
            break
        if over is not None:  # what was counted is not where it was expected: with it, the rest is expected once more
            gains.learn(rows[best], costs, np.array([each.over for each in counted]))
            gain = gains.of(expected.mean, expected.deviation, *gains.counts(rows))
    return None


def _candidates(surrogate: Surrogate, gains: _Gains, random: np.random.Generator) -> tuple[Floats, _Expected]:
    """Return rows drawn anywhere and near the expected front, then near the best of these, and what is expected."""
    encoding = surrogate.encoding
    rows = np.vstack([encoding.draw(random, _CANDIDATES), encoding.near(random, surrogate.members(), _CANDIDATES)])
    table = np.column_stack(gains.expected(rows))
    for _ in range(_ROUNDS):
        best = np.argsort(-table[:, -1], kind="stable")[:_STARTS]
        near = encoding.near(random, rows[best], _CANDIDATES)
        rows, table = np.vstack([rows, near]), np.vstack([table, np.column_stack(gains.expected(near))])
        distinct = list({row.tobytes(): index for index, row in enumerate(rows)}.values())
        rows, table = rows[distinct], table[distinct]
    return rows, _Expected(*table.T)


class _Expected(NamedTuple):
    """What is expected of rows: the loss with its standard deviation, the cost, and the gain by that."""

    mean: Floats
    deviation: Floats
    cost: Floats
    gain: Floats


class _Gains:
    """The logarithm of what candidates are expected to add to the front, by models of loss, cost and limits."""

    def __init__(self, surrogate: Surrogate, over: Floats | None) -> None:
        self._surrogate, self._limited = surrogate, over is not None
        self._unit = surrogate.known.unit
        trials = np.column_stack([surrogate.mean, surrogate.known.costs])
        self._front = trials[non_dominated(trials, (MINIMIZE, MINIMIZE))]
        self._inputs = surrogate.encoding.features(surrogate.rows[-_SHOWN:])
        scaled = surrogate.known.costs / self._unit
        self._counts = np.column_stack([scaled] if over is None else [scaled, over])[-_SHOWN:]
        cost = GaussianProcess(self._inputs, self._counts[:, 0])
        # What is over is a count less its limit, in logarithms, as known costs are: nearly always the same plus a
        # constant.
        alike = cost.parameters if surrogate.known.cost.counted else None
        self._models = [
            cost,
            *(GaussianProcess(self._inputs, column, parameters=alike) for column in self._counts.T[1:]),
        ]

    def expected(self, rows: Floats) -> _Expected:
        """Return what is expected of n rows."""
        mean, deviation = self._surrogate.predict(rows)
        cost, over = self.counts(rows)
        return _Expected(mean, deviation, cost, self.of(mean, deviation, cost, over))

    def of(self, mean: Floats, deviation: Floats, cost: Floats, over: Floats) -> Floats:
        """Return the gains; of what is beyond the limits far below all others, the farther the lower."""
        within = log_ehvi(mean, deviation, cost, self._front, self._surrogate.reference)
        return np.where(over > 0, -_FAR * (1 + over), within)

    def counts(self, rows: Floats) -> tuple[Floats, Floats]:
        """Return what rows are expected to cost, and how far they are expected to be beyond the limits."""
        features = self._surrogate.encoding.features(rows)
        cost, *over = (model.predict(features)[0] for model in self._models)
        return cost * self._unit, over[0] if self._limited else np.full(len(rows), -np.inf)

    def learn(self, rows: Floats, costs: Floats, over: Floats) -> None:
        """Learn what rows were counted to be; those are left out whose `over` is NaN."""
        held = ~np.isnan(over)
        self._inputs = np.vstack([self._inputs, self._surrogate.encoding.features(rows)[held]])
        self._counts = np.vstack([self._counts, np.column_stack([costs / self._unit, over])[held]])
        self._models = [
            GaussianProcess(self._inputs, column, parameters=model.parameters)
            for model, column in zip(self._models, self._counts.T, strict=True)
        ]
