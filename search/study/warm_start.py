"""Warm start: what was on the front of earlier studies is tried first.

Their scores are of another task or model, so none is copied: what they give is a few designs to begin with, in place
of random ones. A prior that is wrong costs those few trials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, Final

from petl.backbones.model import Backbone
from petl.configuration import Configuration
from petl.design import DesignError
from search.optimizer.rungs import Standing, best
from search.trials.objectives import ruling
from search.trials.resolved import Enqueued
from spaces.dimensions import SpaceError
from spaces.space import encode

if TYPE_CHECKING:
    from search.results.query import Study, Trial


MOST: Final = 5  # trials, and at most a fifth of the budget, but one in any case


def prior(
    studies: Sequence[Study],
    *,
    space: Mapping[str, Any],
    backbone: Backbone,
    base: Configuration,
    trials: int,
    allowed: Callable[[Configuration], bool],
) -> tuple[Enqueued, ...]:
    """Return the designs to begin with, each with its coordinates in the space.

    `base` is what their configurations have beside a design and a learning rate.

    The members of each front by turns, those first that cover it best: the best score, the smallest, what lies
    between. Left out is what this model or the space does not have, and what is not `allowed`.
    """
    options = {name: value for name, value in space.items() if name != "name"}
    chosen: dict[str, Enqueued] = {}
    turns = zip_longest(*([(study.name, trial) for trial in _covering(study)] for study in studies))
    for name, trial in filter(None, chain.from_iterable(turns)):
        if len(chosen) >= min(MOST, max(1, trials // 5)):
            break
        before = trial.configuration
        assert before is not None  # of a member of a front
        try:
            design = before.design.canonical(backbone.layout)
            rate = before.training.learning_rate
            coordinates = encode(str(space.get("name", "unified")), design, rate, backbone, options)
            configuration = replace(base, design=design, training=replace(base.training, learning_rate=rate))
            if coordinates is None or not allowed(configuration):
                continue
        except (DesignError, SpaceError):
            continue
        chosen.setdefault(
            configuration.key,
            Enqueued(f"{design.describe()} (from {name} {trial.number})", configuration, coordinates),
        )
    return tuple(chosen.values())


def _covering(study: Study) -> list[Trial]:
    """Return the members of a front, in the order of how well they cover it."""
    front = study.front()
    score, cost = front.objectives[0], ruling(front.objectives)
    members, column = list(front), front.objectives[1:].index(cost)
    at = [
        Standing(index, score.loss(member.score or 0.0), cost.seen(member.costs[column] or 0.0))
        for index, member in enumerate(members)
    ]
    order: list[int] = []
    while len(order) < len(members):
        order.append(best(at, order).number)
    return [members[index] for index in order]
