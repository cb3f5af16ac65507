"""Where a label goes in a picture: geometry in pixels, a box being (left, bottom, right, top)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Point: TypeAlias = tuple[float, float]
Box: TypeAlias = tuple[float, float, float, float]
_Floats: TypeAlias = NDArray[np.float64]

_DISTANCES: Final = (10.0, 18.0, 30.0, 45.0, 65.0, 90.0, 120.0)
_ANGLES: Final = np.radians(np.arange(0, 360, 15))
_CLEARANCE: Final = 3.0
_POINT, _EDGE, _LINE, _CROSSING, _AWRY = 25.0, 30.0, 25.0, 40.0, 15.0  # what it costs, in pixels of distance
_TOO_BAD: Final = 130.0


class Clutter:
    """What is drawn already. Labels never cover `taken` boxes; `points`, `edges` and `lines` they had better not.

    `edges` are thin boxes, `lines` the heights of lines across the whole picture.
    """

    def __init__(
        self, taken: Sequence[Box], points: Sequence[Point], edges: Sequence[Box], lines: Sequence[float]
    ) -> None:
        self.taken = _table(taken, 4)
        self.points = _table(points, 2)
        self.edges = _table(edges, 4)
        self.lines = np.asarray(lines, dtype=np.float64)

    def add(self, box: Box, leader: Sequence[Point] = ()) -> None:
        """A label that was placed, and points along the line that leads to it."""
        self.taken = np.vstack([self.taken, _table([box], 4)])
        self.points = np.vstack([self.points, _table(leader, 2)])


def place(point: Point, size: Point, area: Box, clutter: Clutter) -> Box | None:
    """The best box of `size` near `point` and inside `area`; None where none is good enough.

    Above and to the left is preferred: there a front that rises to the right leaves room.
    """
    distance, angle = (grid.ravel() for grid in np.meshgrid(_DISTANCES, _ANGLES, indexing="ij"))
    dx, dy = np.cos(angle), np.sin(angle)
    left = point[0] + distance * dx - size[0] * (1 - dx) / 2
    bottom = point[1] + distance * dy - size[1] * (1 - dy) / 2
    boxes = np.column_stack([left, bottom, left + size[0], bottom + size[1]])
    padded = boxes + _CLEARANCE * np.array([-1.0, -1.0, 1.0, 1.0])
    inside = (boxes[:, :2] > area[:2]).all(axis=1) & (boxes[:, 2:] < area[2:]).all(axis=1)
    free = inside & ~_overlaps(padded, clutter.taken).any(axis=1)
    if not free.any():
        return None
    badness = (
        distance
        + _AWRY * (dx - dy)
        + _POINT * _overlaps(padded, np.hstack([clutter.points, clutter.points])).sum(axis=1)
        + _EDGE * _overlaps(padded, clutter.edges).sum(axis=1)
        + _CROSSING * _crossed(point, boxes, clutter.taken)
        + _LINE * ((padded[:, 1:2] < clutter.lines) & (clutter.lines < padded[:, 3:4])).sum(axis=1)
    )
    best = int(np.argmin(np.where(free, badness, np.inf)))
    if badness[best] > _TOO_BAD:
        return None
    x0, y0, x1, y1 = boxes[best].tolist()
    return x0, y0, x1, y1


def _crossed(point: Point, boxes: _Floats, taken: _Floats) -> NDArray[np.int64]:
    """How many of the taken boxes a straight line from `point` to each box runs through, (n,)."""
    others = taken[~_overlaps(np.array([[*point, *point]]), taken)[0]]  # a line starts on its own mark
    near = np.clip(point, boxes[:, :2], boxes[:, 2:])
    crossed = np.zeros((len(boxes), len(others)), dtype=bool)
    for part in (0.3, 0.5, 0.7, 0.9):
        crossed |= _overlaps(np.tile(point + part * (near - point), 2), others)
    return np.asarray(crossed.sum(axis=1))


def _overlaps(boxes: _Floats, others: _Floats) -> NDArray[np.bool_]:
    """Whether each of n boxes overlaps each of k others, (n, k)."""
    a, b = boxes[:, None, :], others[None, :, :]
    return np.asarray((a[..., :2] < b[..., 2:]).all(axis=-1) & (b[..., :2] < a[..., 2:]).all(axis=-1))


def _table(rows: Sequence[Sequence[float]], width: int) -> _Floats:
    return np.asarray(rows, dtype=np.float64).reshape(-1, width)
