"""Propose the design that is expected to add the most to the front."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from petl.measurements import MINIMIZE
from search.optimizer.front.belief import Belief
from search.optimizer.front.encoding import Encoding
from search.optimizer.front.gp import _JITTER, Surrogate, log_ehvi
from search.trials.pareto import Floats, non_dominated

_SHOWN: Final = 60  # trials whose costs tell about those of candidates, until they are counted
_CANDIDATES: Final = 400  # drawn anywhere, as many near the believed front, and as many in each round near the best
_ROUNDS: Final = 2
_STARTS: Final = 10  # the best, near which a round looks
_COUNTED: Final = 8  # of them, the best, that are counted; more where none of these is allowed
_LOOKS: Final = 8  # at most so many times
_FAR: Final = 1e9  # below any logarithm of a gain


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

    def distance(row: Floats) -> float:
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
    over: Floats | None = None,
) -> Mapping[str, Any] | None:
    """The coordinates of the largest expected gain; None where none of those that were counted is allowed.

    `over` says of each trial how far it is beyond the limits, None that there are none: what is expected to lie beyond
    them comes last.
    """
    encoding = belief.encoding
    rows = np.vstack([encoding.draw(random, _CANDIDATES), encoding.near(random, belief.members(), _CANDIDATES)])
    everyone = np.column_stack([belief.mean, belief.known.costs])
    front = everyone[non_dominated(everyone, (MINIMIZE, MINIMIZE))]

    def gain(mean: Floats, deviation: Floats, cost: Floats, beyond: Floats) -> Floats:
        return np.where(beyond > 0, -_FAR * (1 + beyond), log_ehvi(mean, deviation, cost, front, belief.reference))

    inputs, unit = encoding.features(belief.rows[-_SHOWN:]), belief.known.unit
    scaled = belief.known.costs / unit
    counts = np.column_stack([scaled] if over is None else [scaled, over])[-_SHOWN:]
    usual = [Surrogate(inputs, counts[:, 0])]
    # What is over is a count less its limit, in logarithms, as known costs are: nearly always the same plus a constant.
    alike = usual[0].parameters if belief.known.cost.counted else None
    usual += [Surrogate(inputs, column, parameters=alike) for column in counts.T[1:]]

    def counted_about(rows: Floats) -> tuple[Floats, Floats]:
        """What rows are expected to cost, and how far they are expected to be beyond the limits."""
        about = [each.predict(encoding.features(rows))[0] for each in usual]
        return about[0] * unit, about[1] if over is not None else np.full(len(rows), -np.inf)

    def expected(rows: Floats) -> Floats:
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
