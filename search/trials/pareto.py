"""Which points nobody dominates, and how much they dominate. numpy only; NaN and infinities allowed.

A point dominates another if it is at least as good in every objective and better in one. A point
with a NaN dominates nothing and is never on a front. `directions` says, for each column of `values`,
whether it is to "minimize" or "maximize".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petl.measurements import MAXIMIZE, MINIMIZE

Floats: TypeAlias = NDArray[np.float64]

SIGNS: Final[Mapping[str, float]] = {MINIMIZE: 1.0, MAXIMIZE: -1.0}  # times a value: its loss


def non_dominated(values: ArrayLike, directions: Sequence[str]) -> NDArray[np.bool_]:
    """Return a mask over the rows of `values` (n x d): on the front or not. Of equal rows only the first is."""
    losses = _losses(values, directions)
    mask = np.zeros(len(losses), dtype=np.bool_)
    mask[np.unique(losses, axis=0, return_index=True)[1]] = True
    mask &= (ranks(values, directions) == 0) & ~np.isnan(losses).any(axis=1)
    return mask


def ranks(values: ArrayLike, directions: Sequence[str]) -> NDArray[np.int64]:
    """Return the non-dominated sort: 0 on the front, 1 on the front of what remains, and so on.

    Equal rows have the same rank. Rows with a NaN come after all others. Two objectives take n log n.
    """
    losses = _losses(values, directions)
    rank = np.zeros(len(losses), dtype=np.int64)
    left = np.flatnonzero(~np.isnan(losses).any(axis=1))
    if losses.shape[1] == 2 and len(left):
        distinct, which = np.unique(losses[left], axis=0, return_inverse=True)
        layers = _layers(distinct[:, 1])
        rank[left] = layers[which.reshape(-1)]
        rank[np.isnan(losses).any(axis=1)] = layers.max() + 1
        return rank
    level = 0
    while len(left):
        points = losses[left]
        no_worse = (points[:, None, :] <= points[None, :, :]).all(axis=2)
        better = (points[:, None, :] < points[None, :, :]).any(axis=2)
        dominated = (no_worse & better).any(axis=0)
        rank[left[~dominated]] = level
        left = left[dominated]
        level += 1
    rank[np.isnan(losses).any(axis=1)] = level
    return rank


def _layers(second: Floats) -> NDArray[np.int64]:
    """Return the rank of each of distinct points in lexicographic order, by their second values.

    Whoever comes earlier is no worse in the first; so a layer dominates a point if its lowest second value,
    which is also its latest, is no higher. Those values ascend from layer to layer.
    """
    lowest: list[float] = []
    rank = np.empty(len(second), dtype=np.int64)
    for index, value in enumerate(second.tolist()):
        layer = rank[index] = bisect_right(lowest, value)
        lowest[layer : layer + 1] = [value]
    return rank


def hypervolume(values: ArrayLike, reference: Sequence[float], directions: Sequence[str]) -> float:
    """Return the volume between the points (n x d, d = 1, 2 or 3) and the reference point, exactly.

    Points that are not better than the reference in every objective add nothing. The volume is
    infinite where a point is infinitely good. Raises ValueError for a reference that is not finite,
    or more objectives.
    """
    if not np.isfinite(reference).all():
        raise ValueError(f"the reference point is finite; received {list(reference)}")
    if not 1 <= len(directions) <= 3:
        raise ValueError(f"the hypervolume takes 1 to 3 objectives; received {len(directions)}")
    corner = _losses([reference], directions)[0]
    losses = _losses(values, directions)
    inside = losses[(losses < corner).all(axis=1)]  # false for NaN
    return _volume(corner - inside)


def _volume(extents: Floats) -> float:
    """Return the volume of the union of boxes from the origin to each row of positive extents."""
    if not len(extents):
        return 0.0
    if extents.shape[1] == 1:
        return float(extents.max())
    # Slice along the last axis: between two heights the cross-section is that of all higher boxes.
    order = np.argsort(-extents[:, -1], kind="stable")
    heights = np.append(extents[order, -1], 0.0)
    section, total = extents[order, :-1], 0.0
    for count in range(1, len(order) + 1):
        if heights[count - 1] > heights[count]:
            total += (heights[count - 1] - heights[count]) * _volume(section[:count])
    return float(total)


def _losses(values: ArrayLike, directions: Sequence[str]) -> Floats:
    """Return the values with every column to be minimised, n x d."""
    unknown = [direction for direction in directions if direction not in SIGNS]
    if unknown:
        raise ValueError(f"a direction is {MINIMIZE} or {MAXIMIZE}; received {unknown[0]!r}")
    table: NDArray[Any] = np.asarray(values, dtype=np.float64)
    if table.size == 0:
        return np.empty((0, len(directions)))
    if table.ndim != 2 or table.shape[1] != len(directions):
        raise ValueError(f"values have a row per point and {len(directions)} columns; received shape {table.shape}")
    losses: Floats = (
        table * np.array([SIGNS[direction] for direction in directions]) + 0.0
    )  # -0.0 and 0.0 are one value
    return losses
