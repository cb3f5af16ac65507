"""The sampler `front`: quality is modelled, cost is counted, and what is proposed is to move the front the most.

A Gaussian process over the coordinates and the logarithm of the epochs learns from every rung of every trial, so that
trials which wait, were stopped, or still run teach as well as those that were trained in full. The cost of a design is
known exactly before training. So the expected gain in hypervolume is a sum of one-dimensional expected improvements,
one for each stretch of the cost axis on which the design would be affordable:

    EHVI(x) = sum over stretches beyond cost(x) of  length x EI(mu(x), sigma(x); best quality known there)

in logarithms, since far from the front it underflows (Ament et al., NeurIPS 2023). "Known" is what the model believes
of the trials there are, at full epochs, those that run included: so noise is averaged out, and workers do not pile up
on one idea. All that is here is a function of the records and a seed: a search made anew proposes the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import median
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize
from scipy.special import erfcx, log_ndtr, logsumexp

from search.objectives import Objective, ruling
from search.pareto import MAXIMIZE, MINIMIZE
from search.pareto import front as non_dominated
from search.record import Records, State, TrialRecord

_Floats: TypeAlias = NDArray[np.float64]
_Number: TypeAlias = IntDistribution | FloatDistribution

FIRST: Final = 10  # trials that have shown something before the model is asked
_MOST: Final = 200  # observations that the model stands on
_FITTED: Final = 80  # of them, those that its hyperparameters are fitted to
_STEPS: Final = 15  # of that fit
_SHOWN: Final = 60  # trials whose costs tell about those of candidates, until they are counted
_CANDIDATES: Final = 400  # drawn anywhere, as many near the believed front, and as many in each round near the best
_ROUNDS: Final = 2
_STARTS: Final = 10  # the best, near which a round looks
_COUNTED: Final = 8  # of them, the best, that are counted; more where none of these is allowed
_LOOKS: Final = 8  # at most so many times
_BEYOND: Final = 0.02  # of the range of costs: how far the reference lies beyond the dearest, so that it counts too
_FAR: Final = 1e9  # below any logarithm of a gain
_JITTER: Final = 1e-6


# --- coordinates ---------------------------------------------------------------------------------


class Encoding:
    """Coordinates as rows of numbers: from 0 to 1 in each dimension, its index for a category."""

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        self.distributions: dict[str, CategoricalDistribution | _Number] = dict(sorted(distributions.items()))  # type: ignore[arg-type]

    def rows(self, points: Sequence[Mapping[str, Any]]) -> _Floats:
        """n x dimensions; the middle of a dimension that a point does not have."""
        table = np.where(self._categorical, 0.0, np.full((len(points), len(self.distributions)), 0.5))
        for column, (name, distribution) in enumerate(self.distributions.items()):
            there = [row for row, point in enumerate(points) if name in point]
            values = [points[row][name] for row in there]
            if isinstance(distribution, CategoricalDistribution):
                table[there, column] = [distribution.choices.index(value) for value in values]
            else:
                table[there, column] = _positions(distribution, np.array(values, dtype=np.float64))
        return table

    def point(self, row: _Floats) -> dict[str, Any]:
        """The coordinates of a row, each the nearest that its dimension has."""
        found: dict[str, Any] = {}
        for position, (name, distribution) in zip(row, self.distributions.items(), strict=True):
            if isinstance(distribution, CategoricalDistribution):
                found[name] = distribution.choices[int(position)]
            else:
                value = float(_values(distribution, position))
                found[name] = round(value) if isinstance(distribution, IntDistribution) else value
        return found

    def draw(self, random: np.random.Generator, count: int) -> _Floats:
        """Rows anywhere."""
        table = random.uniform(size=(count, len(self.distributions)))
        return self._snapped(table * self._ends)

    def near(self, random: np.random.Generator, rows: _Floats, count: int) -> _Floats:
        """Rows beside these: about two dimensions are moved, a fifth of their length on average, or drawn anew."""
        table = rows[random.integers(len(rows), size=count)]
        moved = random.uniform(size=table.shape) < min(1.0, 2 / table.shape[1])
        moved[np.arange(count), random.integers(table.shape[1], size=count)] = True
        step = np.clip(table + random.normal(scale=0.2, size=table.shape), 0.0, 1.0)
        anew = random.uniform(size=table.shape) * self._ends
        return self._snapped(np.where(moved, np.where(self._categorical, anew, step), table))

    def along(self, row: _Floats, column: int) -> _Floats:
        """Rows that differ from this one in one dimension: at its ends and its thirds, or all its categories."""
        distribution = list(self.distributions.values())[column]
        categories = isinstance(distribution, CategoricalDistribution)
        places = np.arange(self._ends[column]) if categories else np.linspace(0.0, 1.0, 4)
        table = np.repeat(row[None], len(places), axis=0)
        table[:, column] = places
        return self._snapped(table)

    def features(self, rows: _Floats) -> _Floats:
        """What the model sees: a category as one of several columns, so that all differ alike."""
        columns = []
        for column, distribution in enumerate(self.distributions.values()):
            if isinstance(distribution, CategoricalDistribution):
                columns.append(np.eye(len(distribution.choices))[rows[:, column].astype(int)] / math.sqrt(2))
            else:
                columns.append(rows[:, [column]])
        return np.hstack(columns)

    @cached_property
    def _categorical(self) -> NDArray[np.bool_]:
        return np.array([isinstance(each, CategoricalDistribution) for each in self.distributions.values()])

    @cached_property
    def _ends(self) -> _Floats:
        """The upper end of each dimension's numbers; that of a category is not reached."""
        return np.array(
            [
                len(each.choices) if isinstance(each, CategoricalDistribution) else 1.0
                for each in self.distributions.values()
            ]
        )

    def _snapped(self, table: _Floats) -> _Floats:
        for column, distribution in enumerate(self.distributions.values()):
            if isinstance(distribution, CategoricalDistribution):
                table[:, column] = np.minimum(np.floor(table[:, column]), len(distribution.choices) - 1)
            elif distribution.step:
                table[:, column] = _positions(distribution, _values(distribution, table[:, column]))
        return table


def _positions(distribution: _Number, values: _Floats) -> _Floats:
    low, high, values = (_scaled(distribution, each) for each in (distribution.low, distribution.high, values))
    return (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)


def _values(distribution: _Number, positions: _Floats) -> _Floats:
    low, high = (_scaled(distribution, each) for each in (distribution.low, distribution.high))
    values = low + positions * (high - low)
    values = np.exp(values) if distribution.log else values
    if distribution.step:
        values = distribution.low + np.round((values - distribution.low) / distribution.step) * distribution.step
    return np.clip(values, distribution.low, distribution.high)


def _scaled(distribution: _Number, values: Any) -> _Floats:
    values = np.asarray(values, dtype=np.float64)
    return np.asarray(np.log(values)) if distribution.log else values


# --- the model -----------------------------------------------------------------------------------


class Surrogate:
    """A Gaussian process with a Matern-5/2 kernel and a length scale a column (MAP estimate).

    `inputs` n x columns, `values` n, about standardised. Length scales have a log-normal prior around 0.5 x
    sqrt(columns), the variances around 1 and, for noise, around 0.01. `fitted` rows decide on them.
    """

    def __init__(
        self,
        inputs: _Floats,
        values: _Floats,
        fitted: NDArray[np.intp] | None = None,
        *,
        parameters: _Floats | None = None,
        mean: float | None = None,
    ) -> None:
        self._inputs, self._values = inputs, values
        self._mean = float(values.mean()) if mean is None else mean
        chosen = np.arange(len(values)) if fitted is None else fitted
        self.parameters = _fit(inputs[chosen], values[chosen] - self._mean) if parameters is None else parameters
        kernel = _matern(inputs, inputs, self.parameters)
        kernel[np.diag_indices_from(kernel)] += math.exp(self.parameters[-1]) + _JITTER
        self._factor = cho_factor(kernel, lower=True, overwrite_a=True, check_finite=False)
        self._weights = cho_solve(self._factor, values - self._mean, check_finite=False)

    def with_believed(self, inputs: _Floats) -> Surrogate:
        """The same, as if what it expects at these inputs had been observed: less uncertain there."""
        if not len(inputs):
            return self
        values = np.concatenate([self._values, self.predict(inputs)[0]])
        return Surrogate(np.vstack([self._inputs, inputs]), values, parameters=self.parameters, mean=self._mean)

    def predict(self, inputs: _Floats) -> tuple[_Floats, _Floats]:
        """Mean and standard deviation at m x columns, without noise."""
        kernel = _matern(inputs, self._inputs, self.parameters)
        mean = kernel @ self._weights + self._mean
        spread = solve_triangular(self._factor[0], kernel.T, lower=True, overwrite_b=True, check_finite=False)
        variance = math.exp(self.parameters[-2]) - np.einsum("ij,ij->j", spread, spread)
        return mean, np.sqrt(np.maximum(variance, 1e-10))


def _matern(one: _Floats, other: _Floats, parameters: _Floats) -> _Floats:
    scales = np.exp(parameters[:-2])
    distance = _distances(one / scales, other / scales)
    kernel = _rise(distance)
    kernel *= np.exp(parameters[-2] - distance)
    return kernel


def _rise(distance: _Floats) -> _Floats:
    """The polynomial of the kernel, 1 + d + d²/3; in place, as most of a proposal's time goes to such arrays."""
    rise = distance / 3
    rise += 1
    rise *= distance
    rise += 1
    return rise


def _distances(one: _Floats, other: _Floats) -> _Floats:
    """Between all pairs of rows, times the square root of 5, as the kernel wants them."""
    squares = (-10 * one) @ other.T
    squares += 5 * (one**2).sum(axis=1)[:, None]
    squares += 5 * (other**2).sum(axis=1)
    np.maximum(squares, 0.0, out=squares)
    return np.sqrt(squares, out=squares)


def _fit(inputs: _Floats, values: _Floats) -> _Floats:
    """The logarithms of the length scales, the variance and the noise, by `_STEPS` of L-BFGS from the prior's means."""
    centre, width = _prior(inputs.shape[1])
    bounds = [(middle - 4 * each, middle + 4 * each) for middle, each in zip(centre, width, strict=True)]
    loss = _loss(inputs, values)
    found = minimize(loss, centre, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS})
    return np.asarray(found.x)


def _prior(columns: int) -> tuple[_Floats, _Floats]:
    """Means and standard deviations of the parameters."""
    centre = np.array([math.log(0.5 * math.sqrt(columns))] * columns + [0.0, math.log(0.01)])
    return centre, np.array([1.5] * columns + [1.0, 1.5])


def _loss(inputs: _Floats, values: _Floats) -> Callable[[_Floats], tuple[float, _Floats]]:
    """The negative logarithm of the posterior density of the parameters, up to a constant, and its gradient."""
    count, columns = inputs.shape
    centre, width = _prior(columns)

    def loss(parameters: _Floats) -> tuple[float, _Floats]:
        scaled = inputs / np.exp(parameters[:-2])
        distance = _distances(scaled, scaled)
        decay = np.exp(parameters[-2] - distance)
        kernel = decay * _rise(distance)
        noise = math.exp(parameters[-1])
        factor = cho_factor(kernel + (noise + _JITTER) * np.eye(count), lower=True, check_finite=False)
        weights = cho_solve(factor, values, check_finite=False)
        triangle = np.tril(dpotri(factor[0], lower=1)[0])  # of the inverse: cheaper than to solve for it
        inverse = triangle + np.tril(triangle, -1).T
        inner = inverse - np.outer(weights, weights)  # of the gradient's trace
        pull = inner * decay * (1 + distance) * (5 / 3)
        # the sum of pull x (difference in a column)² over all pairs, without an array of pairs and columns
        by_scale = 2 * ((scaled**2).T @ pull.sum(axis=1) - (scaled * (pull @ scaled)).sum(axis=0))
        gradient = 0.5 * np.array([*by_scale, (inner * kernel).sum(), noise * np.trace(inner)])
        fit = 0.5 * values @ weights + np.log(np.diag(factor[0])).sum()
        prior = (parameters - centre) / width
        return float(fit + 0.5 * prior @ prior), gradient + prior / width

    return loss


# --- improvement ---------------------------------------------------------------------------------


def log_improvement(mean: _Floats, deviation: _Floats, best: _Floats) -> _Floats:
    """The logarithm of the expected improvement below `best`, also where it underflows; shapes broadcast."""
    u = (best - mean) / deviation
    log_density = -0.5 * u**2 - 0.5 * math.log(2 * math.pi)
    near = np.maximum(u, -1.0)
    direct = np.log(np.exp(-0.5 * near**2) / math.sqrt(2 * math.pi) + near * np.exp(log_ndtr(near)))
    far = np.minimum(u, -1.0)
    # 1 - |u| x Mills' ratio, which is about 1/u² where it cancels
    rest = 1 + far * math.sqrt(math.pi / 2) * erfcx(-far / math.sqrt(2))
    tail = log_density + np.where(far > -1e3, np.log(np.maximum(rest, 1e-300)), -2 * np.log(-far))
    found: _Floats = np.where(u > -1.0, direct, tail) + np.log(deviation)
    return found


def log_ehvi(
    mean: _Floats, deviation: _Floats, cost: _Floats, front: _Floats, reference: tuple[float, float]
) -> _Floats:
    """The logarithm of the expected hypervolume improvement of n candidates with exactly known costs.

    `front` is k x 2, (loss, cost); only its non-dominated points within the reference (loss, cost) count.
    """
    inside = front[(front < reference).all(axis=1)]
    order = inside[np.argsort(inside[:, 1], kind="stable")]
    best = np.minimum.accumulate(np.array([reference[0], *order[:, 0]]))  # on the stretch right of each point
    edges = np.array([-np.inf, *order[:, 1], reference[1]])
    length = np.clip(edges[None, 1:] - np.maximum(edges[None, :-1], cost[:, None]), 0.0, None)
    with np.errstate(divide="ignore"):
        terms = np.log(length) + log_improvement(mean[:, None], deviation[:, None], best[None])
    return np.asarray(logsumexp(terms, axis=1))


# --- what the records teach ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Observation:
    trial: int
    share: float  # of the full epochs
    loss: float


@dataclass(frozen=True)
class _Known:
    """The trials that have coordinates, and what is known of them."""

    cost: Objective
    records: list[TrialRecord]
    coordinates: list[Mapping[str, Any]]
    costs: _Floats
    observations: list[_Observation]

    @property
    def unit(self) -> float:
        """What a model takes costs in: in logarithms they are as it wants them, others are standardised."""
        return 1.0 if self.cost.logarithmic else float(self.costs.std()) or 1.0


def _known(records: Records, news: TrialRecord | None = None, rungs: Collection[float] | None = None) -> _Known:
    """Costs are as a sampler sees them: known before training, or measured, or the usual one.

    Of the scores those at the rungs count, and the last of a trial: what lies between says little that they do not.
    """
    score, cost = records.objectives[0], ruling(records.objectives)
    sign = -1.0 if score.direction == MAXIMIZE else 1.0
    trials: list[TrialRecord] = []
    costs: list[float] = []
    observations: list[_Observation] = []
    failed: list[int] = []
    for kept in records.all():
        record = news if news and news.number == kept.number else kept
        origin = records.origin(record.number)
        if record.reference or not origin.coordinates or record.configuration is None:
            continue
        full = record.configuration.training.epochs
        reached = {epoch: value for epoch, value in record.rungs.items() if math.isfinite(value)}
        if record.state is State.COMPLETE and record.measurements:
            reached[full] = score.value(record.measurements) or 0.0
        if rungs is not None:
            last = max(reached, default=0.0)
            reached = {epoch: value for epoch, value in reached.items() if epoch in rungs or epoch == last}
        if record.state is State.FAIL:
            failed.append(len(trials))
        else:
            observations += [
                _Observation(len(trials), epoch / full, sign * value) for epoch, value in sorted(reached.items())
            ]
        spent = origin.counts.get(cost.name) if cost.known else None
        if spent is None and record.measurements:
            spent = cost.value(record.measurements)
        trials.append(record)
        costs.append(math.nan if spent is None else cost.seen(spent))
    worst = max([each.loss for each in observations], default=0.0)
    observations += [_Observation(index, 1.0, worst) for index in failed]
    spent_ = np.array(costs)
    usual = float(np.nanmedian(spent_)) if np.isfinite(spent_).any() else 0.0
    coordinates = [records.origin(record.number).coordinates for record in trials]
    return _Known(cost, trials, coordinates, np.where(np.isnan(spent_), usual, spent_), observations)


class Belief:
    """What the model makes of the trials of a study; see `believe`."""

    def __init__(self, known: _Known, encoding: Encoding, dearest: float) -> None:
        self.known, self.encoding = known, encoding
        self.rows = encoding.rows(known.coordinates)
        kept = _telling(known)
        kept.sort(key=lambda each: (each.trial, each.share))
        shares = np.array([each.share for each in kept])
        self._first = math.log(shares.min())
        curves: dict[int, dict[float, float]] = {}
        for each in kept:
            curves.setdefault(each.trial, {})[each.share] = each.loss
        gained = gains(list(curves.values()))
        losses = np.array([each.loss + gained[each.share] for each in kept])
        self._middle, self._spread = _location(losses)
        values = self._scaled(losses)
        inputs = self._inputs(self.rows[[each.trial for each in kept]], shares)
        fitted = np.unique(np.linspace(0, len(kept) - 1, min(len(kept), _FITTED)).astype(int))
        full = np.flatnonzero(shares > 1 - 1e-6)[-_FITTED // 2 :]
        model = Surrogate(inputs, values, np.union1d(fitted, full))
        running = [index for index, record in enumerate(known.records) if record.state is State.RUNNING]
        under_way = self.rows[running[-_MOST:]]
        self.model = model.with_believed(self._inputs(under_way, np.ones(len(under_way))))
        self.mean, self.deviation = self.predict(self.rows)
        dearest = max(dearest, float(known.costs.max()))
        beyond = _BEYOND * (dearest - float(known.costs.min())) or 1.0
        self.reference = (float(np.quantile(values, 0.9)), dearest + beyond)

    def predict(self, rows: _Floats) -> tuple[_Floats, _Floats]:
        """The loss at full epochs, scaled, and its standard deviation."""
        return self.model.predict(self._inputs(rows, np.ones(len(rows))))

    def members(self) -> _Floats:
        """The rows of the believed front."""
        values = np.column_stack([self.mean, self.known.costs])
        return self.rows[non_dominated(values, (MINIMIZE, MINIMIZE))]

    def most_promising(self, waiting: Collection[int], taken: Collection[int], first: int) -> int:
        """Of the trials that wait the one that is expected to add most to what those that were `taken` come to.

        It is `first`, the one that scores alone would have, where the model does not know that one: a design from
        outside the space has no coordinates.
        """
        place = {record.number: index for index, record in enumerate(self.known.records)}
        if first not in place:
            return first
        known, there = ([number for number in sorted(numbers) if number in place] for numbers in (waiting, taken))
        own = [place[number] for number in known]
        front = np.column_stack([self.mean, self.known.costs])[[place[number] for number in there]]
        gain = log_ehvi(self.mean[own], self.deviation[own], self.known.costs[own], front, self.reference)
        return known[int(np.argmax(gain))]

    def _inputs(self, rows: _Floats, shares: _Floats) -> _Floats:
        time = np.log(shares) / self._first if self._first < 0 else np.zeros(len(shares))
        return np.column_stack([self.encoding.features(rows), time])

    def _scaled(self, losses: _Floats) -> _Floats:
        """Standardised, those worse than the median in logarithms: outliers teach little."""
        values = (losses - self._middle) / self._spread
        return np.where(values > 0, np.log1p(np.maximum(values, 0.0)), values)

    def losses(self) -> _Floats:
        """What the trials are believed to come to, in the unit of their losses."""
        values = np.where(self.mean > 0, np.expm1(np.maximum(self.mean, 0.0)), self.mean)
        return values * self._spread + self._middle


def _telling(known: _Known) -> list[_Observation]:
    """The observations that the model stands on: those of the front in full, then the longest and latest."""
    full = [each for each in known.observations if each.share > 1 - 1e-6]
    values = np.array([(each.loss, known.costs[each.trial]) for each in full]).reshape(-1, 2)
    first = {full[index].trial for index in np.flatnonzero(non_dominated(values, (MINIMIZE, MINIMIZE)))}
    return sorted(
        known.observations,
        key=lambda each: (each.share <= 1 - 1e-6 or each.trial not in first, -each.share, -each.trial),
    )[:_MOST]


def gains(curves: Sequence[Mapping[float, float]]) -> dict[float, float]:
    """What is gained between each epoch and the last one: the medians of those that went on, step by step."""
    epochs = sorted({epoch for curve in curves for epoch in curve})
    found = {epochs[-1]: 0.0} if epochs else {}
    for earlier, later in reversed(list(pairwise(epochs))):
        apart = [curve[later] - curve[earlier] for curve in curves if earlier in curve and later in curve]
        found[earlier] = found[later] + (median(apart) if apart else 0.0)
    return found


def _location(losses: _Floats) -> tuple[float, float]:
    """Median, and standard deviation by the quartiles."""
    spread = float(np.subtract(*np.quantile(losses, (0.75, 0.25)))) / 1.35
    least = 1e-9 * float(np.abs(losses).max())  # less is rounding
    return float(np.median(losses)), next((each for each in (spread, float(losses.std())) if each > least), 1.0)


def losses(records: Records, rungs: Collection[float] | None = None) -> dict[int, float]:
    """What each trial is believed to come to at full epochs; empty while too few have shown anything."""
    belief = believe(records, dimensions(records), rungs=rungs)
    if belief is None:
        return {}
    numbers = [record.number for record in belief.known.records]
    return dict(zip(numbers, belief.losses().tolist(), strict=True))


def dimensions(records: Records) -> dict[str, BaseDistribution]:
    """All that the trials have; a space that branches has more than any one of them."""
    found: dict[str, BaseDistribution] = {}
    for record in records.all():
        found |= records.origin(record.number).distributions
    return found


def believe(
    records: Records,
    distributions: Mapping[str, BaseDistribution],
    news: TrialRecord | None = None,
    dearest: float = -math.inf,
    rungs: Collection[float] | None = None,
) -> Belief | None:
    """What is believed of a study's trials, once FIRST of them have shown something. `news` is not on record yet.

    `dearest` is the largest cost of interest, as a sampler sees it, where there is none among the trials. Of the
    scores those at the `rungs` count, and the last of each trial; all of them, where none are given.
    """
    known = _known(records, news, rungs)
    if len({each.trial for each in known.observations}) < FIRST:
        return None
    return Belief(known, Encoding(distributions), dearest)


def share_of_cost(index: int) -> float:
    """How far the first points go along the cost axis: 0, 1/2, 1/4, 3/4, 1/8 ... (van der Corput's sequence)."""
    return float(int(f"{index:b}"[::-1], 2) / 2 ** index.bit_length())


def toward(
    target: float,
    start: Mapping[str, Any],
    encoding: Encoding,
    random: np.random.Generator,
    cost: Callable[[Mapping[str, Any]], float],
) -> Mapping[str, Any]:
    """Coordinates of about this cost, which differ from the start no more than that takes.

    One dimension after the other, in a random order, moves to where the cost comes nearest; none does that the cost
    does not depend on. The cost is NaN for coordinates that the space does not hold.
    """

    def distance(row: _Floats) -> float:
        found = cost(encoding.point(row))
        return math.inf if math.isnan(found) else abs(found - target)

    row = encoding.rows([start])[0]
    apart = distance(row)
    for column in random.permutation(len(row)):
        if apart <= _JITTER:
            break
        for moved in encoding.along(row, int(column)):
            if (nearer := distance(moved)) < apart - _JITTER:
                row, apart = moved, nearer
    return encoding.point(row)


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


def propose(
    belief: Belief,
    random: np.random.Generator,
    count: Callable[[Mapping[str, Any]], Counted],
    over: _Floats | None = None,
) -> Mapping[str, Any] | None:
    """The coordinates of the largest expected gain; None where none of those that were counted is allowed.

    `over` says of each trial how far it is beyond the limits, None that there are none: what is expected to lie beyond
    them comes last.
    """
    encoding = belief.encoding
    rows = np.vstack([encoding.draw(random, _CANDIDATES), encoding.near(random, belief.members(), _CANDIDATES)])
    everyone = np.column_stack([belief.mean, belief.known.costs])
    front = everyone[non_dominated(everyone, (MINIMIZE, MINIMIZE))]

    def gain(mean: _Floats, deviation: _Floats, cost: _Floats, beyond: _Floats) -> _Floats:
        return np.where(beyond > 0, -_FAR * (1 + beyond), log_ehvi(mean, deviation, cost, front, belief.reference))

    inputs, unit = encoding.features(belief.rows[-_SHOWN:]), belief.known.unit
    scaled = belief.known.costs / unit
    counts = np.column_stack([scaled] if over is None else [scaled, over])[-_SHOWN:]
    usual = [Surrogate(inputs, counts[:, 0])]
    # What is over is a count less its limit, in logarithms, as known costs are: nearly always the same plus a constant.
    alike = usual[0].parameters if belief.known.cost.known else None
    usual += [Surrogate(inputs, column, parameters=alike) for column in counts.T[1:]]

    def counted_about(rows: _Floats) -> tuple[_Floats, _Floats]:
        """What rows are expected to cost, and how far they are expected to be beyond the limits."""
        about = [each.predict(encoding.features(rows))[0] for each in usual]
        return about[0] * unit, about[1] if over is not None else np.full(len(rows), -np.inf)

    def expected(rows: _Floats) -> _Floats:
        """A row for each: mean, deviation, about what it costs, and the gain by that."""
        mean, deviation = belief.predict(rows)
        about, beyond = counted_about(rows)
        return np.column_stack([mean, deviation, about, gain(mean, deviation, about, beyond)])

    table = expected(rows)
    for _ in range(_ROUNDS):
        near = encoding.near(random, rows[np.argsort(-table[:, 3], kind="stable")[:_STARTS]], _CANDIDATES)
        rows, table = np.vstack([rows, near]), np.vstack([table, expected(near)])
        kept = list({row.tobytes(): index for index, row in enumerate(rows)}.values())  # those that differ
        rows, table = rows[kept], table[kept]
    mean, deviation, about, gained = table.T
    left = np.ones(len(rows), dtype=np.bool_)
    for _ in range(_LOOKS):
        best = [index for index in np.argsort(-gained, kind="stable") if left[index]][:_COUNTED]
        left[best] = False
        points = [encoding.point(rows[index]) for index in best]
        counted = [count(point) for point in points]
        cost = np.array([each.cost for each in counted])
        exact = np.where(np.isnan(cost), about[best], cost)
        if allowed := [place for place, each in enumerate(counted) if each.allowed]:
            gains = gain(mean[best], deviation[best], exact, np.full(len(best), -np.inf))
            return points[max(allowed, key=lambda place: gains[place])]
        if not left.any():
            break
        if over is None:
            continue
        # These are not where they were thought to be: with them, the others are expected anew.
        beyond = np.array([each.over for each in counted])
        held = ~np.isnan(beyond)
        inputs = np.vstack([inputs, encoding.features(rows[best])[held]])
        counts = np.vstack([counts, np.column_stack([exact / unit, beyond])[held]])
        usual = [
            Surrogate(inputs, column, parameters=each.parameters) for each, column in zip(usual, counts.T, strict=True)
        ]
        gained = gain(mean, deviation, *counted_about(rows))
    return None
