"""Decide what to train next, and what a report means.

One object that everything drives: Ray in production, a plain loop in tests::

    search = Search(records, plan)
    while (step := search.next(free_workers=1)) is not DONE:
        record = step.record
        ...train; at each of search.rungs(record.number) call search.report(record.number, epoch, score)
        search.finish(record.number, measurements)

It keeps no truth of its own. Recreated from the records, it continues where the last one was: trials that were running
come back as Resume, each once, and the sampler proposes what it would have.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from optuna.distributions import check_distribution_compatibility, distribution_to_json

from petl.configuration import Configuration
from petl.design import Design, DesignError
from petl.errors import UserError
from petl.measurements import Measurements
from search.optimizer.budget import Budget, Meter
from search.optimizer.observations import DEFAULT_UNFINISHED
from search.optimizer.rungs import NEW, Never, Rule, Standing
from search.optimizer.samplers import Proposer
from search.optimizer.steps import DIVERGED, DONE, WAIT, Decision, Idle, Resume, Start, Step
from search.trials import limits
from search.trials.objectives import ruling
from search.trials.record import Proposal, Rejected, State, TrialRecord
from search.trials.records import Records
from search.trials.resolved import Enqueued
from spaces.dimensions import BrokenSpaceError, PointError, SpaceError
from spaces.space import Point, Space, decode

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

    from petl.backbones.model import Backbone


TRAINED: Final = "trained_parameters"  # among the counts
PROPOSALS: Final = 20  # asked of the sampler for one trial, before points are drawn at random
DRAWS: Final = 1_000  # drawn at random for one trial, before the search gives up


class SearchError(UserError, ValueError):
    """A search that cannot do what it was asked for. The message says what to change."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study asks of its search; the objectives are the records'.

    `count` gives the values of a configuration that are known before training; `limits` are upper
    limits on some of them. `references` maps a name to its configuration, or to None for a baseline
    that has none; they start first, exempt from limits and budget, and train on whatever they reach at a rung.
    """

    space: Space
    backbone: Backbone
    count: Callable[[Configuration], Mapping[str, float]]
    budget: Budget
    rule: Rule = field(default_factory=Never)
    limits: Mapping[str, float] = field(default_factory=dict)
    sampler: str = "auto"
    seed: int = 0
    unfinished: str = DEFAULT_UNFINISHED
    references: Mapping[str, Configuration | None] = field(default_factory=dict)
    enqueued: Sequence[Enqueued] = ()


@dataclass(frozen=True)
class _Proposed:
    """What starts next, before it is on record."""

    configuration: Configuration | None
    create: Callable[[], TrialRecord]


def _nothing_lacks(configuration: Configuration | None, active: Collection[int], number: int | None) -> str:
    return ""


class Search:
    """A study's search over its records: a Source of trials.

    A reference and a trial of one configuration are trained once: while one of them trains, the other waits, and is
    then handed out with the number of its twin, whose result it is given. It counts as trained itself.

    `clock` tells seconds: see Meter. `lacking` says why a configuration cannot be trained now beside the trials that
    run, or "": see `search.storage.quota`; a trial that is resumed has its number. `note` says why a search ended
    early, if it did.
    Raises SearchError where a limit is on something that is not known before training, or where an
    enqueued design lies outside the limits; SpaceError where its coordinates are not of the space.
    """

    def __init__(
        self,
        records: Records,
        plan: Plan,
        clock: Callable[[], float] = time.monotonic,
        lacking: Callable[[Configuration | None, Collection[int], int | None], str] = _nothing_lacks,
    ) -> None:
        self.records = records
        self.plan = plan
        self.note = ""
        self.meter = Meter(plan.budget, records, clock)
        self._score, self._cost = records.objectives[0], ruling(records.objectives)
        self._counts: dict[str, Mapping[str, float]] = {}  # by design key
        self._distributions: dict[str, BaseDistribution] = {}  # of the points that trials have
        self._proposer = Proposer(
            space=self._space,
            backbone=plan.backbone,
            objectives=records.objectives,
            count=self._count,
            limits=plan.limits,
            sampler=plan.sampler,
            seed=plan.seed,
            unfinished=plan.unfinished,
            rungs=plan.rule.rungs,
        )
        if faults := limits.faults(plan.limits, self._count(Configuration(Design()))):
            raise SearchError("; ".join(faults))
        self._enqueued = deque(self._checked(plan.enqueued))
        existing = {record.reference for record in records.all()}
        self._references = deque((name, item) for name, item in plan.references.items() if name not in existing)
        self._counted: set[int] = set()  # every trial but the references
        self._twins: dict[str, int] = {}  # configuration key -> the trial of it, no reference
        self._trained: dict[str, int] = {}  # configuration key -> the trial or reference that was trained in full
        self._standings: defaultdict[float, dict[int, Standing]] = defaultdict(dict)  # of each rung, by trial
        self._ladder = plan.rule.promotions()  # None where the rule stops trials
        self._closed: list[int] = []  # that ended without a worker, since `take_closed` was called last
        self._active: set[int] = set()
        self._resumable: deque[int] = deque()  # running, and without a worker
        self._lacking = lacking
        self._proposed: _Proposed | None = None  # what was found to start next, until there is room for it
        self._halted = False
        self._exhausted = False
        for record in records.all():
            self._know(record)
            self._distributions |= records.proposal(record.number).distributions
        for record in records.all():
            if record.state is State.RUNNING:
                if records.stopped_at(record.number) is None:
                    self._resumable.append(record.number)
                else:  # the rule stopped it, and the driver did not live to see it end
                    self.finish(record.number, stopped=True)
                    self._closed.append(record.number)
        self._close_hopeless()

    @property
    def active(self) -> frozenset[int]:
        """The trials that were handed out and have not finished."""
        return frozenset(self._active)

    @property
    def done(self) -> bool:
        """Whether nothing runs and nothing is left to hand out."""
        return not self._active and not self._open()

    @property
    def counted(self) -> int:
        """How many trials of the budget are used."""
        return len(self._counted)

    @property
    def waiting(self) -> int:
        """How many trials are neither finished nor handed out."""
        return sum(record.state.open and record.number not in self._active for record in self.records.all())

    def get(self, number: int) -> TrialRecord:
        """Return a trial as it is on record now."""
        return self.records.get(number)

    def configuration(self, number: int) -> Configuration | None:
        """Return what a trial trains; None for a baseline that has no configuration."""
        return self.records.get(number).configuration

    def rungs(self, number: int) -> tuple[float, ...]:
        """Return the epochs at which a trial must report before it trains on, references too: see `report`."""
        return self.plan.rule.rungs if self.records.get(number).configuration else ()

    def next(self, free_workers: int = 1) -> Step[TrialRecord]:
        """Return what to do with a free worker. Every answer of Start or Resume takes one.

        Raises SearchError where the space holds nothing within the limits.
        """
        self.meter.tick()
        if free_workers < 1 or len(self._active) >= self.plan.budget.concurrent:
            return WAIT if self._active or self._open() else DONE
        if not self._open():
            return WAIT if self._active else DONE
        resumable = (self.records.get(number) for number in self._resumable)
        if record := next((record for record in resumable if not self._awaits_twin(record)), None):
            if lacking := self._lacking(record.configuration, self._active, record.number):
                return self._without_room(lacking)
            self._resumable.remove(record.number)
            return self._handed_out(Resume, record)
        turn = self._turn()
        if turn == NEW:
            self._proposed = self._proposed or self._new()
            turn = NEW if self._proposed else self._turn()  # the space may be exhausted
        if turn is None:
            return WAIT if self._active else DONE
        if turn != NEW:
            return self._promoted(turn)
        assert self._proposed is not None
        if lacking := self._lacking(self._proposed.configuration, self._active, None):
            waiting = self._turn(new=False)
            return self._without_room(lacking) if waiting is None else self._promoted(waiting)
        record, self._proposed = self._proposed.create(), None
        self._know(record)
        return self._handed_out(Start, record)

    def report(self, number: int, epoch: float, score: float, *, over: bool = False) -> Decision:
        """Record a trial's score after `epoch` epochs, and return what it means. A known rung gets the same answer.

        The rule decides at its rungs, except about references, and about a trial that is `over`, whose measurements
        are there already: by its patience, or as they are its twin's. A score that is not finite stops the trial.
        """
        self.meter.tick()
        record = self.records.get(number)
        rungs = self.rungs(number)
        epoch = next((rung for rung in rungs if math.isclose(rung, epoch, rel_tol=1e-6)), float(epoch))
        if record.state is State.RUNNING and epoch not in record.rungs:
            decision = Decision.CONTINUE if math.isfinite(score) else Decision.STOP
            if decision is Decision.CONTINUE and epoch in rungs and not over and not record.reference:
                decision = self._at_rung(record, epoch, score)
            stop, pause = decision is Decision.STOP, decision is Decision.PAUSE
            self.records.rung(number, epoch, float(score), stop=stop, pause=pause)
            self._know(self.records.get(number))
            self._close_hopeless()
        if self.records.get(number).state is State.PAUSED:
            self._release(number)
            return Decision.PAUSE
        if self.records.get(number).state is not State.RUNNING or self.records.stopped_at(number) is not None:
            return Decision.STOP
        if self.meter.spent() and not (over or self._is_over(number, epoch)):
            self._release(number)
            return Decision.PAUSE
        return Decision.CONTINUE

    def _is_over(self, number: int, epoch: float) -> bool:
        """Return whether a trial has its full epochs behind it, and only its measurements are to come."""
        configuration = self.records.get(number).configuration
        return configuration is None or epoch >= configuration.training.epochs * (1 - 1e-6)

    def _awaits_twin(self, record: TrialRecord) -> bool:
        """Return whether another of the same configuration trains now, whose result may become the trial's."""
        key = record.configuration and record.configuration.key
        active = (self.records.get(number).configuration for number in self._active)
        return any(configuration and configuration.key == key for configuration in active)

    def _handed_out(
        self, step: type[Start[TrialRecord] | Resume[TrialRecord]], record: TrialRecord
    ) -> Step[TrialRecord]:
        """Hand a trial out, or what comes next where it awaits its twin."""
        if self._awaits_twin(record):
            self._resumable.append(record.number)
            return self.next()
        self._hold(record.number)
        return step(record, self._trained.get(record.configuration.key) if record.configuration else None)

    def _hold(self, number: int) -> None:
        self._active.add(number)
        self.meter.runs(len(self._active))

    def _release(self, number: int) -> None:
        self._active.discard(number)
        self.meter.runs(len(self._active))
        self.meter.keep()

    def take_closed(self) -> list[TrialRecord]:
        """Return the trials that ended here since the last call: no worker reports them.

        They waited, and all that are promoted were chosen; or the rule had stopped them under an earlier driver.
        """
        closed, self._closed = self._closed, []
        return [self.records.get(number) for number in closed]

    def finish(
        self,
        number: int,
        measurements: Measurements | None = None,
        failure: str | None = None,
        *,
        stopped: bool = False,
    ) -> TrialRecord:
        """End a trial; one that has ended stays as it is.

        It is COMPLETE only with its full epochs and finite objectives. It is PRUNED where it
        was `stopped` or has fewer epochs, and FAIL with a reason otherwise.
        """
        closed = self._finished(number, measurements, failure, stopped)
        self._close_hopeless()
        return closed

    def _finished(
        self, number: int, measurements: Measurements | None, failure: str | None, stopped: bool
    ) -> TrialRecord:
        state, reason = self._outcome(self.records.get(number), measurements, failure, stopped)
        closed = self.records.close(number, state, measurements, reason)
        self._know(closed)
        self._release(number)
        if number in self._resumable:
            self._resumable.remove(number)
        return closed

    def _outcome(
        self, record: TrialRecord, measurements: Measurements | None, failure: str | None, stopped: bool
    ) -> tuple[State, str | None]:
        if failure is not None:
            return State.FAIL, failure or "unknown"
        if any(not math.isfinite(score) for score in record.rungs.values()):
            return State.FAIL, DIVERGED
        if stopped or (measurements and _fell_short(record, measurements)):
            return State.PRUNED, None
        for objective in self.records.objectives:
            value = objective.value(measurements) if measurements else None
            if value is None and record.configuration is None and objective is not self._score:
                continue  # a baseline trains nothing that could cost
            if value is None:
                return State.FAIL, f"{objective.name} was not measured"
            if not math.isfinite(value):
                return State.FAIL, DIVERGED
        return State.COMPLETE, None

    def _open(self) -> bool:
        """Return whether anything is left to hand out, now or when what runs has reported."""
        if self._halted or self.meter.spent():
            return False
        return bool(self._resumable) or self._turn() is not None

    def _turn(self, news: TrialRecord | None = None, *, new: bool = True) -> int | None:
        """Return whose turn it is: NEW, unless there can be no `new` one, the number of a waiting trial, or None.

        `news` is a trial as it is not on record yet.
        """
        if self.meter.spent():
            return None
        fresh = new and (
            bool(self._proposed)
            or (self.counted < self.plan.budget.trials and bool(self._enqueued or not self._exhausted))
        )
        if (new and self._references) or self._ladder is None:
            return NEW if fresh or self._references else None
        return self._ladder.next(fresh=fresh, choose=partial(self._proposer.most_promising, self.records, news))

    def _promoted(self, number: int) -> Step[TrialRecord]:
        if lacking := self._lacking(self.records.get(number).configuration, self._active, number):
            return self._without_room(lacking)
        record = self.records.promote(number)
        self._know(record)
        self._close_hopeless()
        return self._handed_out(Resume, record)

    def _at_rung(self, record: TrialRecord, epoch: float, score: float) -> Decision:
        """Return what a finite score at a rung means."""
        if self._ladder is not None:
            waiting = replace(record, state=State.PAUSED, rungs={**record.rungs, epoch: score})
            self._know(waiting)
            return Decision.CONTINUE if self._turn(waiting) == record.number else Decision.PAUSE
        standing = self._standing(replace(record, rungs={epoch: score}), epoch)
        others = [standing for _, standing in sorted(self._standings[epoch].items())]
        return Decision.CONTINUE if self.plan.rule.continues(standing, others) else Decision.STOP

    def _standing(self, record: TrialRecord, epoch: float) -> Standing:
        return Standing(record.number, self._score.loss(record.rungs[epoch]), self._spent(record))

    def _spent(self, record: TrialRecord) -> float:
        """Return the cost as a rule sees it: known before training, or the same for all."""
        counts = self.records.proposal(record.number).counts
        return self._cost.seen(counts[self._cost.name]) if self._cost.counted and self._cost.name in counts else 0.0

    def _close_hopeless(self) -> None:
        for number in self._ladder.hopeless if self._ladder else ():
            self._finished(number, None, None, stopped=True)
            self._closed.append(number)

    def _without_room(self, lacking: str) -> Idle:
        """Return what to do while nothing fits on the disk.

        Trials that run may leave room when they end, and trials that wait do if they are given up, the worst first.
        Where there are neither, the search is over for now.
        """
        if self._active:
            return WAIT
        if self._ladder and (waiting := self._ladder.waiting[1:]):
            self.finish(waiting[-1], stopped=True)
            self._closed.append(waiting[-1])
            return WAIT
        self._halted, self.note = True, lacking
        return DONE

    def _new(self) -> _Proposed | None:
        """Return the next trial that the study does not have: references, then enqueued designs, then the sampler's."""
        if self._references:
            reference, configuration = self._references.popleft()
            if configuration is None:
                return _Proposed(None, partial(self.records.create, None, reference=reference))
            configuration = self._canonical(configuration)
            proposal = _proposal_of(None, self._count(configuration), ())
            create = partial(self.records.create, configuration, proposal=proposal, reference=reference)
            return _Proposed(configuration, create)
        while self._enqueued and self.counted < self.plan.budget.trials:
            item, point = self._enqueued.popleft()
            if item.configuration.key not in self._twins:
                proposal = _proposal_of(point, self._count(item.configuration), ())
                params = point.params if point else {}
                create = partial(self.records.create, item.configuration, params, proposal, name=item.name)
                return _Proposed(item.configuration, create)
        if self.counted < self.plan.budget.trials and not self._exhausted:
            return self._sampled()
        return None

    def _sampled(self) -> _Proposed | None:
        """Return a point that is new and within the limits, or None where the space has no more of them."""
        rejected: list[Rejected] = []
        for _ in range(PROPOSALS):
            try:
                point = self._proposer.ask(self.records, Proposal(rejected=rejected))
                refused = self._rejected(point)
            except PointError as error:
                refused = Rejected(
                    coordinates=error.coordinates, distributions=error.distributions, counts={}, twin=None
                )
            if refused is None:
                return self._proposal(point, rejected)
            rejected.append(refused)
        drawn: list[Rejected] = []
        for point in self._proposer.draw(self.records, Proposal(rejected=rejected), DRAWS):
            refused = self._rejected(point)
            if refused is None:
                return self._proposal(point, rejected)
            drawn.append(refused)
        self._exhausted = True
        tried = f"{PROPOSALS} proposals and {DRAWS:,} random draws"
        within = ", ".join(f"{name} <= {limit:g}" for name, limit in self.plan.limits.items())
        if all(each.twin is None for each in rejected + drawn) and not self._known_within():
            if not within:
                raise SearchError(f"the space has no point that can be trained: {tried} held none")
            raise SearchError(
                f"no point of the space was within {within} after {tried}; raise the limit, or lower the space's sizes"
            )
        self.note = (
            f"the space is exhausted after {self.counted} of {self.plan.budget.trials} trials: {tried} held nothing "
            f"new{f' within {within}' if within else ''}; widen the space, or ask for fewer trials"
        )
        return None

    def _space(self, trial: BaseTrial, backbone: Backbone, /) -> Configuration:
        """Return the configuration at a trial's point. Raises SpaceError for one that trains nothing of the model."""
        configuration = self.plan.space(trial, backbone)
        if not self._count(configuration).get(TRAINED, 1):
            raise SpaceError(f"{configuration.design.describe()} trains nothing of {backbone.model}")
        return configuration

    def _require_recordable(self, point: Point) -> None:
        """Raise BrokenSpaceError for a point that Optuna's storage would refuse."""
        for name, distribution in point.distributions.items():
            known = self._distributions.setdefault(name, distribution)
            try:
                check_distribution_compatibility(known, distribution)
                json.dumps([point.coordinates[name], distribution_to_json(distribution)])
            except (ValueError, TypeError) as error:
                raise BrokenSpaceError(
                    f"the space is broken at {dict(point.coordinates)}: {name} is {distribution}"
                    + (f", and elsewhere {known}" if known != distribution else "")
                    + f": {error} A dimension has the same kind and the same choices at every point"
                ) from error

    def _proposal(self, point: Point, rejected: Sequence[Rejected]) -> _Proposed:
        self._require_recordable(point)
        proposal = _proposal_of(point, self._count(point.configuration), rejected)
        return _Proposed(point.configuration, partial(self.records.create, point.configuration, point.params, proposal))

    def _rejected(self, point: Point) -> Rejected | None:
        """Return the point as one that makes no trial, or None where it makes one."""
        counts = self._count(point.configuration)
        outside = limits.broken(counts, self.plan.limits)
        twin = None if outside else self._twins.get(point.configuration.key)
        if not outside and twin is None:
            return None
        return Rejected(coordinates=point.coordinates, distributions=point.distributions, counts=counts, twin=twin)

    def _known_within(self) -> bool:
        """Return whether the study has a trial at a point of the space, so that some of it is within the limits."""
        return any(self.records.proposal(record.number).coordinates for record in self.records.all())

    def _know(self, record: TrialRecord) -> None:
        if record.configuration and record.state is State.COMPLETE:
            self._trained.setdefault(record.configuration.key, record.number)
        if record.reference is not None:
            return
        self._counted.add(record.number)
        if record.configuration:
            self._twins.setdefault(record.configuration.key, record.number)
        for rung, score in record.rungs.items():
            if math.isfinite(score):
                self._standings[rung][record.number] = self._standing(record, rung)
        if self._ladder is not None:
            passed = [record.rungs[rung] for rung in self.plan.rule.rungs if rung in record.rungs]
            finite = [self._score.loss(score) for score in passed if math.isfinite(score)]
            held = record.state in (State.PAUSED, State.PRUNED)  # at the last of these
            self._ladder.know(
                record.number,
                finite,
                self._spent(record),
                level=0 if record.state is State.FAIL else max(0, len(finite) - held),
                waits=record.state is State.PAUSED,
                runs=record.state is State.RUNNING,
            )

    def _count(self, configuration: Configuration) -> Mapping[str, float]:
        key = configuration.design.key
        if key not in self._counts:
            self._counts[key] = dict(self.plan.count(configuration))
        return self._counts[key]

    def _canonical(self, configuration: Configuration) -> Configuration:
        """Return the configuration by its one key, by which twins are recognised."""
        return replace(configuration, design=configuration.design.canonical(self.plan.backbone.layout))

    def _checked(self, enqueued: Sequence[Enqueued]) -> list[tuple[Enqueued, Point | None]]:
        """Return each enqueued design with its point in the space. Raises SearchError for those not allowed."""
        checked: list[tuple[Enqueued, Point | None]] = []
        faults: list[str] = []
        for design in enqueued:
            point = None
            try:
                item = replace(design, configuration=self._canonical(design.configuration))
                counts = self._count(item.configuration)
            except DesignError as error:
                faults.append(f"{design.name}: {error}")
                continue
            faults += [f"{item.name}: {fault}" for fault in limits.broken(counts, self.plan.limits)]
            if not counts.get(TRAINED, 1):
                faults.append(f"{item.name}: it trains nothing of {self.plan.backbone.model}")
                continue
            if item.coordinates is not None:
                try:
                    point = decode(self._space, item.coordinates, self.plan.backbone)
                except SpaceError as error:
                    faults.append(f"{item.name}: {error}")
                    continue
                if point.configuration.key != item.configuration.key:
                    faults.append(f"{item.name}: its coordinates are those of another configuration")
            checked.append((item, point))
        if faults:
            rule = "enqueued designs can be trained, within the limits and at their coordinates:"
            raise SearchError("\n  ".join([rule, *faults]))
        return checked


def _proposal_of(point: Point | None, counts: Mapping[str, float], rejected: Sequence[Rejected]) -> Proposal:
    if point is None:
        return Proposal(counts=counts, rejected=rejected)
    return Proposal(coordinates=point.coordinates, distributions=point.distributions, counts=counts, rejected=rejected)


def _fell_short(record: TrialRecord, measurements: Measurements) -> bool:
    """Return whether a trial ended before its full epochs, from which what is measured may differ by rounding."""
    full = record.configuration.training.epochs if record.configuration else 0.0
    return measurements.epochs < full * (1 - 1e-6)
