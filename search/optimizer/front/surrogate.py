"""The sampler `front`: quality is modelled, cost is counted, and what is proposed is to move the front the most.

A Gaussian process over the coordinates and the logarithm of the epochs learns from every rung of every trial, so that
trials which wait, were stopped, or still run count as well as those that were trained in full. The cost of a design is
known exactly before training. So the expected gain in hypervolume is a sum of one-dimensional expected improvements,
one for each stretch of the cost axis on which the design would be affordable:

    EHVI(x) = sum over stretches beyond cost(x) of  length x EI(mu(x), sigma(x); best quality known there)

in logarithms, since far from the front it underflows (Ament et al., NeurIPS 2023). "Known" is what the model expects
of the trials there are, at full epochs, those that run included: so noise is averaged out, and workers do not pile up
on one idea. All that is here is a function of the records and a seed: a search that is recreated proposes the same.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Final

import numpy as np
from optuna.distributions import BaseDistribution

from petl.measurements import MINIMIZE
from search.optimizer.front.encoding import Encoding
from search.optimizer.front.gp import GaussianProcess, log_ehvi
from search.trials.objectives import Objective, ruling
from search.trials.pareto import Floats, non_dominated
from search.trials.record import State, TrialRecord
from search.trials.records import Records

FIRST: Final = 10  # trials that have shown something before the model is asked
_MOST: Final = 200  # scores that the model is fitted to
_FITTED: Final = 80  # of them, those that its hyperparameters are fitted to
_BEYOND: Final = 0.02  # of the range of costs: how far the reference lies beyond the dearest, so that it counts too


@dataclass(frozen=True)
class _Scored:
    trial: int
    share: float  # of the full epochs
    loss: float


@dataclass(frozen=True)
class _Known:
    """The trials that have coordinates, and what is known of them."""

    cost: Objective
    records: list[TrialRecord]
    coordinates: list[Mapping[str, Any]]
    costs: Floats
    scores: list[_Scored]

    @property
    def unit(self) -> float:
        """What a model takes costs in: in logarithms they are as it wants them, others are standardised."""
        return 1.0 if self.cost.logarithmic else float(self.costs.std()) or 1.0


def _known(records: Records, news: TrialRecord | None = None, rungs: Collection[float] | None = None) -> _Known:
    """Return what the trials show. `news` replaces what is on record of its trial.

    Costs are as a sampler sees them: known before training, or measured, or the usual one. A failed trial counts as
    the worst score in full.
    """
    score, cost = records.objectives[0], ruling(records.objectives)
    trials = [news if news and news.number == record.number else record for record in records.all()]
    trials = [
        record
        for record in trials
        if record.configuration and not record.reference and records.proposal(record.number).coordinates
    ]
    scores: list[_Scored] = []
    for index, record in enumerate(trials):
        if record.state is not State.FAIL:
            scores += [_Scored(index, share, score.loss(value)) for share, value in _reached(record, score, rungs)]
    worst = max([each.loss for each in scores], default=0.0)
    scores += [_Scored(index, 1.0, worst) for index, record in enumerate(trials) if record.state is State.FAIL]
    costs = np.array([_spent(records, record, cost) for record in trials])
    usual = float(np.nanmedian(costs)) if np.isfinite(costs).any() else 0.0
    coordinates = [records.proposal(record.number).coordinates for record in trials]
    return _Known(cost, trials, coordinates, np.where(np.isnan(costs), usual, costs), scores)


def _reached(record: TrialRecord, score: Objective, rungs: Collection[float] | None) -> list[tuple[float, float]]:
    """Return the scores of a trial by the share of its full epochs that it had by then.

    Those at the rungs count, and the last of a trial: what lies between says little that they do not.
    """
    assert record.configuration
    full = record.configuration.training.epochs
    reached = {epoch: value for epoch, value in record.rungs.items() if math.isfinite(value)}
    if record.state is State.COMPLETE and record.measurements:
        reached[full] = score.value(record.measurements) or 0.0
    last = max(reached, default=0.0)
    counting = sorted(epoch for epoch in reached if rungs is None or epoch in rungs or epoch == last)
    return [(epoch / full, reached[epoch]) for epoch in counting]


def _spent(records: Records, record: TrialRecord, cost: Objective) -> float:
    """Return what a trial costs, as a sampler sees it; NaN where nobody knows."""
    spent = records.proposal(record.number).counts.get(cost.name) if cost.counted else None
    if spent is None and record.measurements:
        spent = cost.value(record.measurements)
    return math.nan if spent is None else cost.seen(spent)


class Surrogate:
    """The model of a study's trials: see `fit`."""

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
        model = GaussianProcess(inputs, values, np.union1d(fitted, full))
        running = [index for index, record in enumerate(known.records) if record.state is State.RUNNING]
        under_way = self.rows[running[-_MOST:]]
        self.model = model.with_fantasies(self._inputs(under_way, np.ones(len(under_way))))
        self.mean, self.deviation = self.predict(self.rows)
        dearest = max(dearest, float(known.costs.max()))
        beyond = _BEYOND * (dearest - float(known.costs.min())) or 1.0
        self.reference = (float(np.quantile(values, 0.9)), dearest + beyond)

    def predict(self, rows: Floats) -> tuple[Floats, Floats]:
        """Return the loss at full epochs, scaled, and its standard deviation."""
        return self.model.predict(self._inputs(rows, np.ones(len(rows))))

    def members(self) -> Floats:
        """Return the rows of the expected front."""
        values = np.column_stack([self.mean, self.known.costs])
        return self.rows[non_dominated(values, (MINIMIZE, MINIMIZE))]

    def most_promising(self, waiting: Collection[int], taken: Collection[int], first: int) -> int:
        """Return which of the trials that wait is expected to add most to what those that were `taken` come to.

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

    def _inputs(self, rows: Floats, shares: Floats) -> Floats:
        time = np.log(shares) / self._first if self._first < 0 else np.zeros(len(shares))
        return np.column_stack([self.encoding.features(rows), time])

    def _scaled(self, losses: Floats) -> Floats:
        """Return the losses standardised, those worse than the median in logarithms: outliers say little."""
        values = (losses - self._middle) / self._spread
        return np.where(values > 0, np.log1p(np.maximum(values, 0.0)), values)

    def losses(self) -> Floats:
        """Return the expected losses of the trials, in their own unit."""
        values = np.where(self.mean > 0, np.expm1(np.maximum(self.mean, 0.0)), self.mean)
        return values * self._spread + self._middle


def _telling(known: _Known) -> list[_Scored]:
    """Return the scores that the model is fitted to: those of the front in full, then the longest and latest."""
    full = [each for each in known.scores if each.share > 1 - 1e-6]
    values = np.array([(each.loss, known.costs[each.trial]) for each in full]).reshape(-1, 2)
    first = {full[index].trial for index in np.flatnonzero(non_dominated(values, (MINIMIZE, MINIMIZE)))}
    return sorted(
        known.scores,
        key=lambda each: (each.share <= 1 - 1e-6 or each.trial not in first, -each.share, -each.trial),
    )[:_MOST]


def gains(curves: Sequence[Mapping[float, float]]) -> dict[float, float]:
    """Return what is gained between each epoch and the last one: medians of those that trained on, step by step."""
    epochs = sorted({epoch for curve in curves for epoch in curve})
    found = {epochs[-1]: 0.0} if epochs else {}
    for earlier, later in reversed(list(pairwise(epochs))):
        apart = [curve[later] - curve[earlier] for curve in curves if earlier in curve and later in curve]
        found[earlier] = found[later] + (median(apart) if apart else 0.0)
    return found


def _location(losses: Floats) -> tuple[float, float]:
    """Return the median, and the standard deviation by the quartiles."""
    spread = float(np.subtract(*np.quantile(losses, (0.75, 0.25)))) / 1.35
    least = 1e-9 * float(np.abs(losses).max())  # less is rounding
    return float(np.median(losses)), next((each for each in (spread, float(losses.std())) if each > least), 1.0)


def expected_losses(
    records: Records, rungs: Collection[float] | None = None, absent: Mapping[str, int] | None = None
) -> dict[int, float]:
    """Return the expected loss of each trial at full epochs; empty while too few have shown anything."""
    surrogate = fit(records, dimensions(records), rungs=rungs, absent=absent)
    if surrogate is None:
        return {}
    numbers = [record.number for record in surrogate.known.records]
    return dict(zip(numbers, surrogate.losses().tolist(), strict=True))


def dimensions(records: Records) -> dict[str, BaseDistribution]:
    """Return all dimensions of the trials; a space that branches has more than any one of them."""
    found: dict[str, BaseDistribution] = {}
    for record in records.all():
        found |= records.proposal(record.number).distributions
    return found


def fit(
    records: Records,
    distributions: Mapping[str, BaseDistribution],
    news: TrialRecord | None = None,
    dearest: float = -math.inf,
    rungs: Collection[float] | None = None,
    absent: Mapping[str, int] | None = None,
) -> Surrogate | None:
    """Return the model of a study's trials, None before FIRST of them have shown something.

    `news` replaces what is on record of its trial.

    `dearest` is the largest cost of interest, as a sampler sees it, where there is none among the trials. Of the
    scores those at the `rungs` count, and the last of each trial; all of them, where none are given. `absent` is that
    of the space: see `Encoding`.
    """
    known = _known(records, news, rungs)
    if len({each.trial for each in known.scores}) < FIRST:
        return None
    return Surrogate(known, Encoding(distributions, absent), dearest)
