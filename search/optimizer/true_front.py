"""Which members of a front are truly on it, where scores have the luck of their seeds in them.

A front is a choice of the best of many scores, so its members were lucky more often than not: some are not on the front
of true means, and the scores of all are too good. Both are mended by more seeds, of which a few members need many and
most need none. Functions of values: losses and costs go in, their posterior and what to train next come out.

A trial's true mean has as prior what the scores of trials of about its cost look like without their noise: the
non-parametric maximum likelihood estimate of that mixture, by a few steps of EM from a flat one (Laird 1978; Efron
2014, "Two modeling strategies for empirical Bayes estimation"). A trial at the edge of a steep crowd is likely to owe
its place to luck, one that stands apart is less so. How much a trial's score depends on its seed is known from a few
others only, and what was picked as the best is often of those that depend the most: so noise has the tails of Student's
t, the heavier the fewer seeds, and what is likely to be on the front has a second seed before anything is refined.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2
from scipy.stats import f as fisher

from search.trials.pareto import Floats

_Flags: TypeAlias = NDArray[np.bool_]

_SAMPLES: Final = 1_000  # of all true means together
_GRID: Final = 100  # values that a prior is made of
_BELOW: Final = 3.0  # how far it reaches around a score, in between-seed standard deviations
_ABOVE: Final = 8.0
_STEPS: Final = 30  # of EM: fewer leave it flatter
_NEIGHBOURS: Final = 0.1  # of all trials: the standard deviation in ranks of cost within which trials are alike
_POSSIBLE: Final = 0.002  # chance of being on the front below which a trial's prior is not worth its time
_FIRST: Final = 4  # members whose second seeds tell how much seeds matter
_LIKELY: Final = 0.5  # chance of being on the front from which a trial has a second seed, unless it is certain
_OUTLYING: Final = 12.0  # times the usual variance between seeds
_DRAWN: Final = 3.0  # degrees of freedom that the usual one is worth beside a trial's own
_FREEDOM: Final = np.geomspace(3.0, 100.0, 16)  # of the noise's tails: at the end trials are all alike
_DOUBT: Final = 2.5  # standard deviation of its logarithm, around that of _DRAWN, before anything is known


@dataclass(frozen=True)
class Membership:
    """The posterior of n trials: `samples` of their true losses, and the front of each sample (samples x n).

    `noise` is the standard deviation between seeds, of each trial.
    """

    samples: Floats
    on_front: _Flags
    noise: Floats

    @cached_property
    def probability(self) -> Floats:
        """The probability of being on the true front."""
        return np.asarray(self.on_front.mean(axis=0))

    @cached_property
    def corrected(self) -> Floats:
        """The expected true losses."""
        return np.asarray(self.samples.mean(axis=0))


def between_seeds(losses: Sequence[Sequence[float]]) -> Floats | None:
    """Return the standard deviation of each trial's losses over its seeds; None where none has two.

    The first loss of each is among them, which was picked for its luck: so it is rather too large than too small.

    A few seeds say little of it, so it is drawn to what is usual: the pooled one, in which no trial counts for more
    than a multiple of the median. Some designs are unstable, and those are not the ones that a front is made of.
    """
    squares, freedom = _squares(losses)
    if not freedom.any():
        return None
    several = freedom > 0
    variances, weights = squares[several] / freedom[several], freedom[several]
    usual = float(np.median(variances / chi2.median(weights) * weights))
    bounded = np.minimum(variances, _OUTLYING * usual) if usual else variances
    pooled = float(np.average(bounded, weights=weights))
    return np.sqrt((_DRAWN * pooled + squares) / (_DRAWN + freedom))


def _squares(losses: Sequence[Sequence[float]]) -> tuple[Floats, NDArray[np.int64]]:
    """Return each trial's sum of squares around its mean, and how many of these are free."""
    return np.array([float(np.var(own)) * len(own) for own in losses]), np.array([len(own) - 1 for own in losses])


def freedom_between_seeds(losses: Sequence[Sequence[float]]) -> float:
    """Return how alike trials are in their dependence on seeds: the degrees of freedom of an inverse chi-square.

    The more, the more alike. Variances of so many seeds are distributed as F then, which tells the most likely one
    (the model of Smyth 2004, "Linear models and empirical Bayes methods", of which the scale is found by medians).
    """
    squares, freedom = _squares(losses)
    several = (freedom > 0) & (squares > 0)
    variances, own = squares[several] / freedom[several], freedom[several]
    prior = -0.5 * ((np.log(_FREEDOM) - np.log(_DRAWN)) / _DOUBT) ** 2
    if not several.any():
        return float(_FREEDOM[prior.argmax()])
    usual = np.array([np.median(variances / fisher.median(own, free)) for free in _FREEDOM])
    density = fisher.logpdf(variances / usual[:, None], own, _FREEDOM[:, None]) - np.log(usual)[:, None]
    return float(_FREEDOM[(density.sum(axis=1) + prior).argmax()])


def membership(losses: Sequence[Sequence[float]], costs: ArrayLike, seed: int = 0) -> Membership | None:
    """Return what the losses of n trials, each with one seed or more, say of the true ones; None before any has two.

    `costs` are n numbers, or n rows of one a cost: the first cost says which trials are alike.
    """
    noise = between_seeds(losses)
    if noise is None:
        return None
    random, cost = np.random.default_rng(seed), _rows(costs)
    means, counts = np.array([np.mean(own) for own in losses]), np.array([len(own) for own in losses])
    noise = np.maximum(noise, max(1e-9 * float(np.ptp(means)), 1e-300))
    spread, freedom = noise / np.sqrt(counts), freedom_between_seeds(losses) + counts - 1
    samples = means + spread * random.standard_t(freedom, size=(_SAMPLES, len(means)))
    rank = np.argsort(np.argsort(cost[:, 0], kind="stable"), kind="stable")
    width = max(_NEIGHBOURS * len(means), 1.0)
    for index in np.flatnonzero(_fronts(samples, cost).mean(axis=0) > _POSSIBLE):
        weights = np.exp(-0.5 * ((rank - rank[index]) / width) ** 2)
        near = weights > 0.01
        grid = means[index] + noise[index] * np.linspace(-_BELOW, _ABOVE, _GRID)
        prior = _prior(np.minimum(means[near], grid[-1]), spread[near], freedom[near], weights[near], grid)
        posterior = np.cumsum(prior * _density((means[index] - grid) / spread[index], freedom[index]))
        drawn = np.searchsorted(posterior / posterior[-1], random.uniform(size=_SAMPLES))
        samples[:, index] = grid[drawn] + (grid[1] - grid[0]) * random.uniform(-0.5, 0.5, size=_SAMPLES)
    return Membership(samples, _fronts(samples, cost), noise)


def next_run(
    losses: Sequence[Sequence[float]],
    costs: ArrayLike,
    membership: Membership | None,
    running: Collection[int] = (),
    failed: Collection[int] = (),
    *,
    most: int,
    sure: float = 0.95,
) -> int | None:
    """Return which trial to train with another seed; None where `most` fresh seeds each would reveal nothing more.

    The one whose true mean, if it were known a little better, would make the most certain who is on the front: by the
    linear regression of memberships on it (as the knowledge gradient has it for means). Before that, those members
    whose lead is the least, then what is likely, but not certain, to be a member and has shown one seed only: the luck
    for which it was picked is in all that is said of it. A trial is `running` once for each of its seeds that are being
    trained, and `failed` for each that showed nothing.
    """
    known = np.array([len(own) for own in losses])
    seeds = known + _times(running, len(known))
    tried = seeds + _times(failed, len(known))
    open_ = tried <= most
    if (seeds > 1).sum() < _FIRST:
        first = next((index for index in _least_ahead(losses, costs) if tried[index] == 1), None)
        if first is not None:
            return first
    if membership is None:
        return None
    probability = membership.probability
    alone = np.where((seeds == 1) & open_ & (probability < 1), probability, 0.0)
    if alone.max() >= _LIKELY:
        return int(alone.argmax())
    contested = (probability > 1 - sure) & (probability < sure)
    if not (contested & open_).any():
        return None
    apart, member = (
        membership.samples - membership.corrected,
        membership.on_front[:, contested] - probability[contested],
    )
    covariance = member.T @ apart / len(apart)
    variance = apart.var(axis=0) * known / seeds  # once those that run are over
    gain = np.where(open_, (covariance**2).sum(axis=0) * variance / (variance + membership.noise**2), 0.0)
    return int(gain.argmax()) if gain.max() > 0 else None


def _times(numbers: Collection[int], count: int) -> NDArray[np.int64]:
    """Return how many times each of 0 to count - 1 is among the numbers."""
    return np.bincount(np.fromiter(numbers, np.int64, len(numbers)), minlength=count)


def _least_ahead(losses: Sequence[Sequence[float]], costs: ArrayLike) -> list[int]:
    """Return the members of the front, those first that are the least better than the best of what is as cheap."""
    means, cost = np.array([np.mean(own) for own in losses]), _rows(costs)
    as_cheap = [(cost <= own).all(axis=1) for own in cost]
    lead = {
        int(index): float(np.delete(np.where(as_cheap[index], means, np.inf), index).min(initial=np.inf))
        - float(means[index])
        for index in np.flatnonzero(_fronts(means[None], cost)[0])
    }
    return sorted(lead, key=lambda index: lead[index])


def _prior(means: Floats, spread: Floats, freedom: Floats, weights: Floats, grid: Floats) -> Floats:
    """Return the weights of the grid's values, of which these means are noisy draws."""
    apart = (means[:, None] - grid) / spread[:, None]
    likelihood = _density(apart, freedom[:, None]) / spread[:, None] + 1e-300
    prior = np.full(len(grid), 1 / len(grid))
    for _ in range(_STEPS):
        prior = prior * (likelihood.T @ (weights / (likelihood @ prior))) / weights.sum()
    return prior


def _density(apart: Floats, freedom: ArrayLike) -> Floats:
    """Return Student's density, up to a factor that the same freedom has in common."""
    freedom = np.asarray(freedom, dtype=np.float64)
    return np.asarray((1 + apart**2 / freedom) ** (-(freedom + 1) / 2))


def _rows(costs: ArrayLike) -> Floats:
    """Return the costs with a row a trial and a column a cost."""
    table = np.asarray(costs, dtype=np.float64)
    return table.reshape(len(table), -1)


def _fronts(samples: Floats, cost: Floats) -> _Flags:
    """Return who is non-dominated in each row of losses: better than all cheaper ones, not worse than any as cheap."""
    if cost.shape[1] > 1:
        return _fronts_of_many(samples, cost)
    ascending = cost[:, 0]
    order = np.argsort(ascending, kind="stable")
    ordered, ascending = samples[:, order], ascending[order]
    best = np.minimum.accumulate(ordered, axis=1)
    before = np.hstack([np.full((len(samples), 1), np.inf), best])
    cheaper, as_cheap = (np.searchsorted(ascending, ascending, side=side) for side in ("left", "right"))
    members = np.empty(samples.shape, dtype=np.bool_)
    members[:, order] = (ordered < before[:, cheaper]) & (ordered <= before[:, as_cheap])
    return members


def _fronts_of_many(samples: Floats, cost: Floats) -> _Flags:
    """Return what `_fronts` does for several costs, in the square of the trials."""
    members = np.empty(samples.shape, dtype=np.bool_)
    for index, own in enumerate(cost):
        as_cheap, same = (cost <= own).all(axis=1), (cost == own).all(axis=1)
        before = samples[:, as_cheap & ~same].min(axis=1, initial=np.inf)
        beside = samples[:, same].min(axis=1)
        members[:, index] = (samples[:, index] < before) & (samples[:, index] <= beside)
    return members
