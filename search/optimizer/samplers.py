"""Samplers by name, and the in-memory Optuna study that they see.

The study is made anew from the records for every proposal, and the sampler with it: what it proposes
is a function of the records and the seed, so a search that is restarted goes on as it would have.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.optimizer.front import belief as beliefs
from search.optimizer.front.belief import Belief
from search.optimizer.front.encoding import Encoding
from search.optimizer.front.sampler import Counted, propose, share_of_cost, toward
from search.trials.objectives import Objective, Objectives
from search.trials.record import Proposal, State, TrialRecord
from search.trials.records import Records, quiet
from spaces.dimensions import SpaceError
from spaces.space import Point, Space, decode, point

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from petl.backbones.model import Backbone
    from petl.configuration import Configuration


POPULATION: Final = 16  # of NSGA-II: several generations within a study of a hundred trials
ASIDES: Final = 100  # the latest, that a sampler is told: enough to learn a limit from, and bounded
COVERING: Final = 8  # points that are tried for one of the first proposals of `front`
REACHING: Final = 30  # points at random that tell how far the space reaches
DRAWN: Final = 200  # at random for one proposal of `front`, before one outside the limits is proposed
UNFINISHED: Final = ("last", "ignored", "extrapolated", "predicted")
DEFAULT_UNFINISHED: Final = "predicted"  # the best on LCBench: `tests/benchmarks/lcbench.py`
GP_TRIALS: Final = 300  # beyond, a GP takes seconds a proposal and TPE has enough to learn from


@dataclass(frozen=True)
class Told:
    """One trial as the sampler sees it: running without `values`, else finished with them."""

    coordinates: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    constraints: Mapping[str, float]  # at most 0 where the limit is kept
    values: tuple[float, ...] | None = None


SAMPLERS: Final[Mapping[str, Callable[[int, int], BaseSampler]]] = {  # (seed, trials that it is told of)
    "random": lambda seed, told: RandomSampler(seed=seed),
    "tpe": lambda seed, told: TPESampler(seed=seed),
    "nsga2": lambda seed, told: NSGAIISampler(seed=seed, population_size=POPULATION),
    "gp": lambda seed, told: GPSampler(seed=seed, warn_independent_sampling=False),
    "auto": lambda seed, told: SAMPLERS["gp" if told <= GP_TRIALS else "tpe"](seed, told),  # where `front` is none
}
FRONT: Final = "front"
NAMES: Final = (*SAMPLERS, FRONT)


@dataclass(frozen=True, kw_only=True)
class Proposer:
    """Asks a sampler for points of a space, in view of the records.

    `limits` are upper limits on values known before training, which `count` gives. `seed` is the study's; `unfinished`
    is what Optuna's samplers are told of trials that are not finished: see UNFINISHED;
    `rungs` are the rule's, None for whatever epochs there are scores of.
    Raises ValueError for a sampler that does not exist, or cannot have these objectives.
    """

    space: Space
    backbone: Backbone
    objectives: Objectives
    count: Callable[[Configuration], Mapping[str, float]]
    limits: Mapping[str, float] = field(default_factory=dict)
    sampler: str = "auto"  # `front` where it can have these objectives
    seed: int = 0
    unfinished: str = DEFAULT_UNFINISHED
    rungs: Collection[float] | None = None
    _latest: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.sampler not in NAMES:
            raise ValueError(f"a sampler is one of {', '.join(NAMES)}; received {self.sampler!r}")
        if self.unfinished not in UNFINISHED:
            raise ValueError(f"unfinished is one of {', '.join(UNFINISHED)}; received {self.unfinished!r}")
        require_fit(self.sampler, len(self.objectives), self.unfinished)

    def ask(self, records: Records, origin: Proposal) -> Point:
        """The sampler's next point, after the records and the asides of the trial that is sought."""
        if is_front(self.sampler, len(self.objectives)):
            return self._of_front(records, origin)
        told = []
        if self.sampler != "random":  # telling costs about a millisecond a trial, and that one does not listen
            told = tell(records, origin, self.objectives, self.limits, self.unfinished, self.rungs)
        with quiet():
            study = optuna.create_study(
                directions=[objective.direction for objective in self.objectives],
                sampler=SAMPLERS[self.sampler](self._seed(records, origin), len(told)),
            )
            study.add_trials([_frozen(row, index) for index, row in enumerate(told)])
            trial = study.ask()
            return point(trial, self.space(trial, self.backbone))

    def most_promising(
        self, records: Records, news: TrialRecord | None, waiting: Collection[int], taken: Collection[int], first: int
    ) -> int:
        """Of the trials that wait at a rung the one to promote, after those that were `taken`, by the sampler's model.

        It is `first`, the one that scores alone would have, where there is no such model, or not yet, or where it does
        not know that one. `news` replaces what is on record of its trial.
        """
        belief = self._believed(records, news) if is_front(self.sampler, len(self.objectives)) else None
        return belief.most_promising(waiting, taken, first) if belief else first

    def _believed(self, records: Records, news: TrialRecord | None = None) -> Belief | None:
        key = (records.changes, news)
        if self._latest.get("key") != key:
            dearest = self._reach if self._cost.counted else -math.inf
            belief = beliefs.believe(records, beliefs.dimensions(records), news, dearest, self.rungs)
            self._latest.update(key=key, belief=belief)
        latest: Belief | None = self._latest["belief"]
        return latest

    def _of_front(self, records: Records, origin: Proposal) -> Point:
        """The point of the largest expected gain, new and within the limits; at first one of `_covering`."""
        random = np.random.default_rng(self._seed(records, origin))
        there = {record.configuration.key for record in records.all() if record.configuration and not record.reference}

        def count(coordinates: Mapping[str, Any]) -> Counted:
            try:
                configuration = decode(self.space, coordinates, self.backbone).configuration
            except SpaceError:  # of a space that branches: it asks for more here than it has shown yet
                return Counted(math.nan, math.nan, False)
            counts = self.count(configuration)
            cost = self._along(counts) if self._cost.counted else math.nan
            return Counted(cost, self._over(counts), configuration.key not in there)

        if belief := self._believed(records):
            numbers = [record.number for record in belief.known.records]
            over = (
                np.array([self._over(records.proposal(number).counts) for number in numbers]) if self.limits else None
            )
            found = propose(belief, random, count, over)
            if found is not None:
                return decode(self.space, found, self.backbone)
        covering = self._covering(records, origin, random) if self._cost.counted or self.limits else iter(())
        drawn = chain(covering, self.draw(records, origin, DRAWN))
        first = next(drawn)
        return next((one for one in chain([first], drawn) if count(one.coordinates).allowed), first)

    def _covering(self, records: Records, origin: Proposal, random: np.random.Generator) -> Iterator[Point]:
        """Random points, moved so that the trials cover the axis of what is known before training.

        Points at random lie all at about the same place of it, near its end: where a design has several parts, hardly
        ever are all of them small. Within limits, those whose place a trial has already come last: what stores nothing
        is the nearest to most places then, and would be tried again and again.
        """

        def along(coordinates: Mapping[str, Any]) -> float:
            try:
                return self._along(self.count(decode(self.space, coordinates, self.backbone).configuration))
            except SpaceError:
                return math.nan

        # Enqueued designs have a name; they are where the user wants them.
        covered = [
            record for record in records.all() if records.proposal(record.number).coordinates and not record.name
        ]
        places = {self._along(records.proposal(record.number).counts) for record in covered}
        taken: list[Point] = []
        for index, start in enumerate(self.draw(records, origin, COVERING), len(covered) + len(origin.rejected)):
            encoding, target = Encoding(start.distributions), share_of_cost(index) * self._reach
            found = toward(target, start.coordinates, encoding, random, along)
            one = decode(self.space, found, self.backbone)
            if self.limits and along(found) in places:
                taken.append(one)
            else:
                yield one
        yield from taken

    @property
    def _cost(self) -> Objective:
        return self.objectives[1]

    def _along(self, counts: Mapping[str, float]) -> float:
        """Where these lie on the axis that first points cover: the cost as a sampler sees it, or what has a limit."""
        if self._cost.counted:
            return self._cost.seen(counts[self._cost.name])
        return math.log1p(counts[next(iter(self.limits))])

    def _over(self, counts: Mapping[str, float]) -> float:
        """How far these are beyond the limits; at most 0 within them."""
        return max(excess(counts, self.limits).values(), default=-math.inf)

    @cached_property
    def _reach(self) -> float:
        """About how far the space reaches on that axis: what lies beyond the limits is scaled down to them."""

        def within(counts: Mapping[str, float]) -> float:
            scale = 1.0
            for name, limit in self.limits.items():
                if counts[name] > limit:
                    scale = max(scale, counts[name] / limit if limit else math.inf)
            return self._along({name: value / scale for name, value in counts.items()})

        return max(within(self.count(each.configuration)) for each in self._drawn(self.seed, REACHING))

    def draw(self, records: Records, origin: Proposal, count: int) -> Iterator[Point]:
        """`count` points, uniform over the space: what is left when the sampler finds nothing that is allowed."""
        return self._drawn(self._seed(records, origin), count)

    def _drawn(self, seed: int, count: int) -> Iterator[Point]:
        with quiet():
            study = optuna.create_study(sampler=RandomSampler(seed=seed))
        for _ in range(count):
            with quiet():
                trial = study.ask()
                drawn = point(trial, self.space(trial, self.backbone))
            yield drawn

    def _seed(self, records: Records, origin: Proposal) -> int:
        """Another one for every proposal: a sampler that starts with one seed proposes the same points again."""
        origins = [records.proposal(record.number) for record in records.all()]
        asked = len(origin.rejected) + sum(len(earlier.rejected) + bool(earlier.coordinates) for earlier in origins)
        return int(np.random.SeedSequence([self.seed, asked]).generate_state(1)[0])


def is_front(sampler: str, objectives: int) -> bool:
    """Whether `front` proposes: where it is named, and as `auto` where it can have so many objectives."""
    return sampler == FRONT or (sampler == "auto" and objectives == 2)


def uses_unfinished(sampler: str, objectives: int) -> bool:
    """Whether it makes a difference to the sampler what it is told of trials that are not finished."""
    return sampler != "random" and not is_front(sampler, objectives)


def require_fit(sampler: str, objectives: int, unfinished: str = DEFAULT_UNFINISHED) -> None:
    """Raises ValueError for a sampler that cannot have so many objectives, or makes nothing of `unfinished`."""
    if unfinished != DEFAULT_UNFINISHED and not uses_unfinished(sampler, objectives):
        raise ValueError(f"unfinished is for tpe, nsga2 and gp; received {sampler!r} with {unfinished!r}")
    if sampler == FRONT and objectives > 2:
        others = ", ".join(SAMPLERS)
        raise ValueError(f"the sampler {FRONT} models a score and counts one cost; with a second cost take {others}")


def tell(
    records: Records,
    origin: Proposal,
    objectives: Objectives,
    limits: Mapping[str, float],
    unfinished: str = DEFAULT_UNFINISHED,
    rungs: Collection[float] | None = None,
) -> list[Told]:
    """What a sampler is told of a study, in the order of its trials, each after its asides.

    A complete trial has its values. A stopped or waiting one has the score that `unfinished` names and the median of
    each cost that was not known before training. A failed one has the study's worst score and the worst of such costs,
    and so has a proposal outside the limits, with how far it is outside. An aside that means what another trial
    means has that trial's values. References, and trials that were stopped before their first rung, are not told,
    nor any but the latest ASIDES asides.
    """
    score, *costs = objectives
    all_records = records.all()
    expected = expected_scores(records, unfinished, rungs)
    scores = {
        record.number: expected.get(record.number) if is_unfinished(record) else _score(record, score)
        for record in all_records
        if not record.reference
    }
    worst_score = score.worst([value for value in scores.values() if value is not None])
    measured = {
        cost.name: [value for record in all_records if (value := _measured(record, cost)) is not None] for cost in costs
    }
    worst = {cost.name: cost.worst(measured[cost.name]) for cost in costs}
    usual = {name: statistics.median(values) if values else worst[name] for name, values in measured.items()}

    def spent(record: TrialRecord, cost: Objective) -> float:
        counts = records.proposal(record.number).counts
        found = counts[cost.name] if cost.counted and cost.name in counts else _measured(record, cost)
        if found is not None:
            return found
        stopped = record.state in (State.PRUNED, State.PAUSED)  # for its score
        return (usual if stopped else worst)[cost.name]

    def values(record: TrialRecord) -> tuple[float, ...]:
        reached = scores.get(record.number)
        reached = worst_score if reached is None else reached
        return score.seen(reached), *(cost.seen(spent(record, cost)) for cost in costs)

    def finished(record: TrialRecord) -> bool:
        return record.state is not State.RUNNING

    def silent(record: TrialRecord) -> bool:
        stopped = record.state in (State.PRUNED, State.PAUSED)
        return stopped and record.number not in expected

    rows: list[Told] = []
    forgotten = (
        sum(len(records.proposal(record.number).rejected) for record in all_records) + len(origin.rejected) - ASIDES
    )
    for record in [*all_records, None]:
        source = records.proposal(record.number) if record else origin
        asides = source.rejected[max(forgotten, 0) :]
        forgotten -= len(source.rejected)
        for aside in asides:
            twin = all_records[aside.twin] if aside.twin is not None else None
            if twin and silent(twin):
                continue
            known = (cost.seen(aside.counts.get(cost.name, worst[cost.name])) for cost in costs)
            outside = (score.seen(worst_score), *known)
            told = outside if twin is None else values(twin) if finished(twin) else None
            rows.append(Told(aside.coordinates, aside.distributions, excess(aside.counts, limits), told))
        if record and source.coordinates and not record.reference and not silent(record):
            told = values(record) if finished(record) else None
            rows.append(Told(source.coordinates, source.distributions, excess(source.counts, limits), told))
    return rows


def excess(counts: Mapping[str, float], limits: Mapping[str, float]) -> dict[str, float]:
    """How far each value lies above its limit, as a difference of logarithms; at most 0 within it."""
    return {name: math.log1p(counts[name]) - math.log1p(limit) for name, limit in limits.items()}


def _score(record: TrialRecord, score: Objective) -> float | None:
    """What the trial was measured to reach."""
    return _measured(record, score) if record.state is State.COMPLETE else None


def _measured(record: TrialRecord, objective: Objective) -> float | None:
    value = objective.value(record.measurements) if record.measurements else None
    return value if value is not None and math.isfinite(value) else None


def _frozen(told: Told, index: int) -> FrozenTrial:
    return create_trial(
        state=TrialState.COMPLETE if told.values else TrialState.RUNNING,
        values=told.values,
        params=dict(told.coordinates),
        distributions=dict(told.distributions),
        constraints=dict(told.constraints),
        # NSGA-II writes a generation on what it proposes; on a trial that is told anew it would find none
        # and never leave its first, random one.
        system_attrs={"NSGAIISampler:generation": index // POPULATION},
    )


def is_unfinished(record: TrialRecord) -> bool:
    """Whether a trial was stopped or waits with a score."""
    return record.state in (State.PRUNED, State.PAUSED) and bool(record.rungs)


def expected_scores(records: Records, unfinished: str, rungs: Collection[float] | None = None) -> dict[int, float]:
    """The score to be told for each unfinished trial; those that are not to be told of are missing.

    `rungs` are what the model learns from, as `front.believe` has them.
    """
    trials = [record for record in records.all() if not record.reference]
    last = {record.number: record.rungs[max(record.rungs)] for record in trials if is_unfinished(record)}
    if unfinished == "last":
        return last
    if unfinished == "ignored":
        return {}
    if unfinished == "predicted":
        believed = beliefs.losses(records, rungs)
        of_loss = records.objectives[0].of_loss
        return {number: of_loss(believed[number]) if number in believed else score for number, score in last.items()}
    gained = beliefs.gains([reached(records, record) for record in trials])
    return {number: score + gained.get(max(records.get(number).rungs), 0.0) for number, score in last.items()}


def reached(records: Records, record: TrialRecord) -> dict[float, float]:
    """The scores of a trial by epochs, the measured one included."""
    curve = dict(record.rungs)
    if record.state is State.COMPLETE and record.measurements and record.configuration:
        score = records.objectives[0].value(record.measurements)
        if score is not None:
            curve[record.configuration.training.epochs] = score
    return curve
