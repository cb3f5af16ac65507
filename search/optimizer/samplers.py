"""Samplers by name, and the in-memory Optuna study that those of Optuna see.

The study is recreated from the records for every proposal, and the sampler with it: what it proposes is a function of
the records and the seed, so a search that is restarted proposes what it would have.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.optimizer.front.sampler import FrontSampler
from search.optimizer.observations import DEFAULT_UNFINISHED, UNFINISHED, Observation, observations
from search.trials.objectives import Objectives
from search.trials.quiet import quiet
from search.trials.record import Proposal, TrialRecord
from search.trials.records import Records
from spaces.absent import absent
from spaces.dimensions import PointError, SpaceError
from spaces.space import Point, Space, attempt

if TYPE_CHECKING:
    from petl.backbones.model import Backbone
    from petl.configuration import Configuration


POPULATION: Final = 16  # of NSGA-II: several generations within a study of a hundred trials
MOST_LACKING: Final = 1_000  # random points that a space does not have, among those that are drawn
GP_TRIALS: Final = 300  # beyond, a GP takes seconds a proposal and TPE has enough to learn from

SAMPLERS: Final[Mapping[str, Callable[[int, int], BaseSampler]]] = {  # (seed, number of observations)
    "random": lambda seed, observed: RandomSampler(seed=seed),
    "tpe": lambda seed, observed: TPESampler(seed=seed),
    "nsga2": lambda seed, observed: NSGAIISampler(seed=seed, population_size=POPULATION),
    "gp": lambda seed, observed: GPSampler(seed=seed, warn_independent_sampling=False),
    # where `front` cannot have the objectives
    "auto": lambda seed, observed: SAMPLERS["gp" if observed <= GP_TRIALS else "tpe"](seed, observed),
}
FRONT: Final = "front"
NAMES: Final = (*SAMPLERS, FRONT)


@dataclass(frozen=True, kw_only=True)
class Proposer:
    """Asks a sampler for points of a space, in view of the records.

    `limits` are upper limits on values known before training, which `count` gives. `seed` is the study's; `unfinished`
    names what Optuna's samplers observe of trials that are not finished: see UNFINISHED;
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

    def __post_init__(self) -> None:
        if self.sampler not in NAMES:
            raise ValueError(f"a sampler is one of {', '.join(NAMES)}; received {self.sampler!r}")
        if self.unfinished not in UNFINISHED:
            raise ValueError(f"unfinished is one of {', '.join(UNFINISHED)}; received {self.unfinished!r}")
        require_fit(self.sampler, len(self.objectives), self.unfinished)

    def ask(self, records: Records, proposal: Proposal) -> Point:
        """Return the sampler's next point, after the records and what was rejected on the way to this trial.

        Raises PointError for one that the space does not have, SpaceError where points at random are all such.
        """
        seed = self._seed(records, proposal)
        if self._front:
            return self._front.ask(records, proposal, seed)
        observed = []
        if self.sampler != "random":  # that one does not look, and it takes about a millisecond a trial
            observed = observations(
                records,
                proposal,
                self.objectives,
                self.limits,
                self.unfinished,
                self.rungs,
                absent(self.space, self.backbone),
            )
        with quiet():
            study = optuna.create_study(
                directions=[objective.direction for objective in self.objectives],
                sampler=SAMPLERS[self.sampler](seed, len(observed)),
            )
            study.add_trials([_frozen(each, index) for index, each in enumerate(observed)])
            trial = study.ask()
            return attempt(self.space, trial, self.backbone)

    def draw(self, records: Records, proposal: Proposal, count: int) -> Iterator[Point]:
        """Yield `count` random points: what remains where the sampler finds nothing that is allowed.

        Those that the space does not have are left out. Raises SpaceError where all are such.
        """
        return self._drawn(self._seed(records, proposal), count)

    def most_promising(
        self, records: Records, news: TrialRecord | None, waiting: Collection[int], taken: Collection[int], first: int
    ) -> int:
        """Return which of the trials that wait at a rung to promote, after those that were `taken`.

        It is `first`, the one that scores alone would have, where the sampler has no model of trials, or not yet, or
        where that does not know `first`. `news` replaces what is on record of its trial.
        """
        return self._front.most_promising(records, news, waiting, taken, first) if self._front else first

    @cached_property
    def _front(self) -> FrontSampler | None:
        if not is_front(self.sampler, len(self.objectives)):
            return None
        return FrontSampler(
            space=self.space,
            backbone=self.backbone,
            cost=self.objectives[1],
            count=self.count,
            draw=self._drawn,
            limits=self.limits,
            seed=self.seed,
            rungs=self.rungs,
        )

    def _drawn(self, seed: int, count: int) -> Iterator[Point]:
        with quiet():
            study = optuna.create_study(sampler=RandomSampler(seed=seed))
        found, lacking = 0, None
        for _ in range(count + MOST_LACKING):
            try:
                with quiet():
                    drawn = attempt(self.space, study.ask(), self.backbone)
            except PointError as error:
                lacking = error
                continue
            yield drawn
            found += 1
            if found == count:
                return
        if not found:
            raise SpaceError(f"the space has none of {count + MOST_LACKING:,} points at random; the last: {lacking}")

    def _seed(self, records: Records, proposal: Proposal) -> int:
        """Return another seed for every proposal: a sampler with the same one proposes the same points again."""
        earlier = [records.proposal(record.number) for record in records.all()]
        asked = len(proposal.rejected) + sum(len(each.rejected) + bool(each.coordinates) for each in earlier)
        return int(np.random.SeedSequence([self.seed, asked]).generate_state(1)[0])


def is_front(sampler: str, objectives: int) -> bool:
    """Return whether `front` proposes: where it is named, and as `auto` where it can have so many objectives."""
    return sampler == FRONT or (sampler == "auto" and objectives == 2)


def uses_unfinished(sampler: str, objectives: int) -> bool:
    """Return whether it makes a difference to the sampler what it observes of trials that are not finished."""
    return sampler != "random" and not is_front(sampler, objectives)


def require_fit(sampler: str, objectives: int, unfinished: str = DEFAULT_UNFINISHED) -> None:
    """Raise ValueError for a sampler that cannot have so many objectives, or makes nothing of `unfinished`."""
    if unfinished != DEFAULT_UNFINISHED and not uses_unfinished(sampler, objectives):
        raise ValueError(f"unfinished is for tpe, nsga2 and gp; received {sampler!r} with {unfinished!r}")
    if sampler == FRONT and objectives > 2:
        others = ", ".join(SAMPLERS)
        raise ValueError(f"the sampler {FRONT} models a score and counts one cost; with a second cost take {others}")


def _frozen(observation: Observation, index: int) -> FrozenTrial:
    return create_trial(
        state=TrialState.COMPLETE if observation.values else TrialState.RUNNING,
        values=observation.values,
        params=dict(observation.coordinates),
        distributions=dict(observation.distributions),
        constraints=dict(observation.constraints),
        # NSGA-II writes a generation on what it proposes; on a trial that is recreated it would find none and never
        # leave its first, random one.
        system_attrs={"NSGAIISampler:generation": index // POPULATION},
    )
