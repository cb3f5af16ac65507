"""What Optuna's samplers observe of a study: its trials, unfinished ones too, and the proposals that were rejected."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from search.optimizer.front.surrogate import expected_losses, gains
from search.trials.limits import excess
from search.trials.objectives import Objective, Objectives
from search.trials.record import Proposal, Rejected, State, TrialRecord
from search.trials.records import Records

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


MOST_REJECTED: Final = 100  # the latest, that a sampler observes: enough to learn a limit from, and bounded
UNFINISHED: Final = ("last", "ignored", "extrapolated", "predicted")  # the score of a trial that was stopped or waits
DEFAULT_UNFINISHED: Final = "predicted"  # the best on LCBench: `tests/benchmarks/lcbench.py`


@dataclass(frozen=True)
class Observation:
    """One trial or rejected proposal as a sampler observes it: running without `values`, else finished with them."""

    coordinates: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    constraints: Mapping[str, float]  # at most 0 where the limit is kept
    values: tuple[float, ...] | None = None


def observations(
    records: Records,
    proposal: Proposal,
    objectives: Objectives,
    limits: Mapping[str, float],
    unfinished: str = DEFAULT_UNFINISHED,
    rungs: Collection[float] | None = None,
    absent: Mapping[str, int] | None = None,
) -> list[Observation]:
    """Return what a sampler observes, in the order of the trials, each after what was rejected on the way to it.

    A complete trial has its values. A stopped or waiting one has the score that `unfinished` names and the median of
    each cost that was not known before training. A failed one has the study's worst score and the worst of such costs,
    and so has a proposal outside the limits, with how far it is outside. A rejected proposal that means what another
    trial means has that trial's values. References, and trials that were stopped before their first rung, are not
    observed, nor any but the latest MOST_REJECTED rejected proposals. `proposal` is that of the trial that is sought.
    """
    outcomes = _Outcomes(records, objectives, expected_scores(records, unfinished, rungs, absent))
    sources = [(record, records.proposal(record.number)) for record in records.all()]
    forgotten = sum(len(source.rejected) for _, source in sources) + len(proposal.rejected) - MOST_REJECTED
    observed: list[Observation] = []
    for record, source in [*sources, (None, proposal)]:
        for rejected in source.rejected[max(forgotten, 0) :]:
            twin = records.get(rejected.twin) if rejected.twin is not None else None
            if twin is None or outcomes.is_observed(twin):
                values = outcomes.values(twin) if twin else outcomes.outside(rejected)
                above = excess(rejected.counts, limits)
                observed.append(Observation(rejected.coordinates, rejected.distributions, above, values))
        forgotten -= len(source.rejected)
        if record and source.coordinates and not record.reference and outcomes.is_observed(record):
            above = excess(source.counts, limits)
            observed.append(Observation(source.coordinates, source.distributions, above, outcomes.values(record)))
    return observed


class _Outcomes:
    """What the trials of a study came to, and what stands for that where it is not known."""

    def __init__(self, records: Records, objectives: Objectives, expected: Mapping[int, float]) -> None:
        self._records = records
        self._score, *self._costs = objectives
        self._expected = expected  # scores of unfinished trials
        trials = records.all()
        self._reached = {record.number: self._score_of(record) for record in trials if not record.reference}
        self._worst_score = self._score.worst([score for score in self._reached.values() if score is not None])
        measured = {
            cost.name: [value for record in trials if (value := _measured(record, cost)) is not None]
            for cost in self._costs
        }
        self._worst = {cost.name: cost.worst(measured[cost.name]) for cost in self._costs}
        self._usual = {
            name: statistics.median(values) if values else self._worst[name] for name, values in measured.items()
        }

    def is_observed(self, record: TrialRecord) -> bool:
        """Return whether there is anything to observe: not of a trial that ended early without an expected score."""
        return record.state not in (State.PRUNED, State.PAUSED) or record.number in self._expected

    def values(self, record: TrialRecord) -> tuple[float, ...] | None:
        """Return a trial's values as a sampler sees them, None while it runs."""
        if record.state is State.RUNNING:
            return None
        reached = self._reached.get(record.number)
        score = self._score.seen(self._worst_score if reached is None else reached)
        return score, *(cost.seen(self._cost(record, cost)) for cost in self._costs)

    def outside(self, rejected: Rejected) -> tuple[float, ...]:
        """Return the values of a proposal outside the limits."""
        costs = (cost.seen(rejected.counts.get(cost.name, self._worst[cost.name])) for cost in self._costs)
        return self._score.seen(self._worst_score), *costs

    def _score_of(self, record: TrialRecord) -> float | None:
        if is_unfinished(record):
            return self._expected.get(record.number)
        return _measured(record, self._score) if record.state is State.COMPLETE else None

    def _cost(self, record: TrialRecord, cost: Objective) -> float:
        counts = self._records.proposal(record.number).counts
        known = counts[cost.name] if cost.counted and cost.name in counts else _measured(record, cost)
        if known is not None:
            return known
        ended_early = record.state in (State.PRUNED, State.PAUSED)  # for its score, whatever it costs
        return (self._usual if ended_early else self._worst)[cost.name]


def is_unfinished(record: TrialRecord) -> bool:
    """Return whether a trial was stopped or waits with a score."""
    return record.state in (State.PRUNED, State.PAUSED) and bool(record.rungs)


def expected_scores(
    records: Records,
    unfinished: str,
    rungs: Collection[float] | None = None,
    absent: Mapping[str, int] | None = None,
) -> dict[int, float]:
    """Return the score that stands for each unfinished trial; those that are to be ignored are missing.

    `last` is the score of its last rung, `extrapolated` adds what other trials gained from there, and `predicted` is
    that of the surrogate of `front`, which learns from the scores at the `rungs`; `absent` is that of the space: see
    `surrogate.fit`.
    """
    trials = [record for record in records.all() if not record.reference]
    last = {record.number: record.rungs[max(record.rungs)] for record in trials if is_unfinished(record)}
    if unfinished == "last":
        return last
    if unfinished == "ignored":
        return {}
    if unfinished == "predicted":
        losses, of_loss = expected_losses(records, rungs, absent), records.objectives[0].of_loss
        return {number: of_loss(losses[number]) if number in losses else score for number, score in last.items()}
    gained = gains([_curve(records, record) for record in trials])
    return {number: score + gained.get(max(records.get(number).rungs), 0.0) for number, score in last.items()}


def _curve(records: Records, record: TrialRecord) -> dict[float, float]:
    """Return the scores of a trial by epochs, the measured one included."""
    curve = dict(record.rungs)
    if record.state is State.COMPLETE and record.measurements and record.configuration:
        score = records.objectives[0].value(record.measurements)
        if score is not None:
            curve[record.configuration.training.epochs] = score
    return curve


def _measured(record: TrialRecord, objective: Objective) -> float | None:
    value = objective.value(record.measurements) if record.measurements else None
    return value if value is not None and math.isfinite(value) else None
