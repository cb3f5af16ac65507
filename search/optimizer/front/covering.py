"""Where the first trials lie: over the axis of what is known before training, from one end to the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from search.optimizer.front.encoding import Encoding
from search.optimizer.front.gp import JITTER
from search.trials.objectives import Objective
from search.trials.pareto import Floats
from spaces.absent import absent
from spaces.dimensions import SpaceError
from spaces.space import Point, Space, decode

if TYPE_CHECKING:
    from petl.backbones.model import Backbone
    from petl.configuration import Configuration

_REACHING: Final = 30  # points at random that show how far the space reaches


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What is known before training as one number: the cost as a sampler sees it, or else the first with a limit.

    `draw` gives random points of the space, for a seed, so many.
    """

    space: Space
    backbone: Backbone
    cost: Objective
    count: Callable[[Configuration], Mapping[str, float]]
    draw: Callable[[int, int], Iterator[Point]]
    limits: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def along(self, counts: Mapping[str, float]) -> float:
        """Return where these counts lie."""
        if self.cost.counted:
            return self.cost.seen(counts[self.cost.name])
        return math.log1p(counts[next(iter(self.limits))])

    def at(self, coordinates: Mapping[str, Any]) -> float:
        """Return where coordinates lie; NaN where the space does not hold them."""
        try:
            return self.along(self.count(decode(self.space, coordinates, self.backbone).configuration))
        except SpaceError:
            return math.nan

    @cached_property
    def absent(self) -> Mapping[str, int]:
        """The coordinates of the space that mean 0: see `Encoding`."""
        return absent(self.space, self.backbone)

    @cached_property
    def reach(self) -> float:
        """About how far the space reaches: what lies beyond the limits is scaled down to them."""
        points = self.draw(self.seed, _REACHING)
        return max(self.along(self._within(self.count(each.configuration))) for each in points)

    def _within(self, counts: Mapping[str, float]) -> Mapping[str, float]:
        """Return the counts, all divided by what takes each that has a limit down to it."""
        scale = 1.0
        for name, limit in self.limits.items():
            if counts[name] > limit:
                scale = max(scale, counts[name] / limit if limit else math.inf)
        return {name: value / scale for name, value in counts.items()}


def covering(
    axis: Axis, starts: Iterator[Point], first: int, occupied: set[float], random: np.random.Generator
) -> Iterator[Point]:
    """Yield the starts, each moved to its place on the axis, of which the first is place number `first`.

    Points at random lie all at about the same place of it, near its end: where a design has several parts, hardly
    ever are all of them small. Within limits, those come last whose place is `occupied` by a trial: what stores nothing
    is the nearest to most places then, and would be tried again and again.
    """
    late: list[Point] = []
    for index, start in enumerate(starts, first):
        target = share_of_cost(index) * axis.reach
        moved = toward(target, start.coordinates, Encoding(start.distributions, axis.absent), random, axis.at)
        point = decode(axis.space, moved, axis.backbone)
        if axis.limits and axis.at(moved) in occupied:
            late.append(point)
        else:
            yield point
    yield from late


def share_of_cost(index: int) -> float:
    """Return how far along the axis a first point goes: 0, 1/2, 1/4, 3/4, 1/8 ... (van der Corput's sequence)."""
    return float(int(f"{index:b}"[::-1], 2) / 2 ** index.bit_length())


def toward(
    target: float,
    start: Mapping[str, Any],
    encoding: Encoding,
    random: np.random.Generator,
    cost: Callable[[Mapping[str, Any]], float],
) -> Mapping[str, Any]:
    """Return coordinates of about this cost, which differ from the start no more than that takes.

    One dimension after the other, in a random order, moves to where the cost comes nearest; none does that the cost
    does not depend on. The cost is NaN for coordinates that the space does not hold.
    """

    def distance(row: Floats) -> float:
        reached = cost(encoding.point(row))
        return math.inf if math.isnan(reached) else abs(reached - target)

    row = encoding.rows([start])[0]
    nearest = distance(row)
    for column in random.permutation(len(row)):
        if nearest <= JITTER:
            break
        for moved in encoding.along(row, int(column)):
            if (nearer := distance(moved)) < nearest - JITTER:
                row, nearest = moved, nearer
    return encoding.point(row)
