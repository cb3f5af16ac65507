"""The labels of a picture: each beside its point, over no other label and no marked point.

Libraries that place labels were tried on fronts of 15 to 35 members. adjustText 1.4, which moves all labels at once
until none overlaps, names 3 to 9 members of 15, since it neither shortens a label nor leaves one out, and takes ten
times as long; textalloc 1.2 names 5 of 15, since it never crosses the front's line. This one names 13 of 15.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from search.trials.pareto import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point: TypeAlias = tuple[float, float]
Box: TypeAlias = tuple[float, float, float, float]  # left, bottom, right, top

_INK: Final = "#222222"
_SIZE: Final = 7.0
_MARK: Final = 10.0  # half the side of the square around a labelled point that no label covers, in pixels
_NEAR: Final = 18.0  # pixels from its point to a label that needs no line
_DISTANCES: Final = (10.0, 18.0, 30.0, 45.0, 65.0, 90.0, 120.0)
_ANGLES: Final = np.radians(np.arange(0, 360, 15))
_CLEARANCE: Final = 5.0
_POINT, _EDGE, _STROKE, _CROSSING, _AWRY = 40.0, 45.0, 25.0, 40.0, 15.0  # penalties, in pixels of distance
_WORST: Final = 130.0  # a label with a higher penalty is shortened, or left out


@dataclass(frozen=True)
class Label:
    """Hold a point, in data coordinates, and what it may be called, the fullest wording first."""

    point: Point
    wordings: Sequence[str]


@dataclass(frozen=True)
class Drawn:
    """Hold what is in the picture already, in data coordinates, and is better not covered.

    `points` are marks, `pieces` the two ends of straight lines along one of the axes, `heights` those of lines across
    the whole picture.
    """

    points: Sequence[Point] = ()
    pieces: Sequence[tuple[Point, Point]] = ()
    heights: Sequence[float] = ()


@dataclass
class _Clutter:
    """Hold the same in pixels. Labels never cover `taken` boxes; `points`, `edges` and `lines` count as a penalty."""

    taken: Floats
    points: Floats
    edges: Floats
    lines: Floats
    area: Box = field(default=(0.0, 0.0, 0.0, 0.0))

    def add(self, box: Box, leader: Sequence[Point]) -> None:
        """Record a label that was placed, and points along the line that leads to it."""
        self.taken = np.vstack([self.taken, _table([box], 4)])
        self.points = np.vstack([self.points, _table(leader, 2)])


def write_labels(axes: Axes, labels: Sequence[Label], drawn: Drawn) -> None:
    """Write labels beside their points where there is room, the earlier ones first.

    A label for which there is none has its next wording, and is left out after its last. The layout of the figure
    must be final.
    """
    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    to_points = 72 / axes.figure.dpi
    clutter = _clutter(axes, labels, drawn)
    for label in labels:
        (at,) = _pixels(axes, [label.point])
        for wording in label.wordings:
            # Offsets are in points: a PDF is saved with another number of pixels than it is laid out with.
            text = axes.annotate(
                wording, label.point, xytext=(0, 0), textcoords="offset points", fontsize=_SIZE, color=_INK,
                linespacing=1.05, zorder=5, path_effects=[withStroke(linewidth=1.8, foreground="white")],
                parse_math=False,
            )  # fmt: skip
            size = text.get_window_extent(renderer)
            box = place(at, (size.width, size.height), clutter)
            if box is None:
                text.remove()
                continue
            text.set_position(((box[0] - at[0]) * to_points, (box[1] - at[1]) * to_points))
            text.set_multialignment("right" if box[0] + box[2] < 2 * at[0] else "left")
            clutter.add(box, _leader(axes, label.point, at, box))
            break


def place(point: Point, size: Point, clutter: _Clutter) -> Box | None:
    """Return the best box of `size` near `point`, in pixels; None where none is good enough.

    Above and to the left is preferred: there a front that rises to the right leaves room.
    """
    distance, angle = (grid.ravel() for grid in np.meshgrid(_DISTANCES, _ANGLES, indexing="ij"))
    dx, dy = np.cos(angle), np.sin(angle)
    left = point[0] + distance * dx - size[0] * (1 - dx) / 2
    bottom = point[1] + distance * dy - size[1] * (1 - dy) / 2
    boxes = np.column_stack([left, bottom, left + size[0], bottom + size[1]])
    padded = boxes + _CLEARANCE * np.array([-1.0, -1.0, 1.0, 1.0])
    inside = (boxes[:, :2] > clutter.area[:2]).all(axis=1) & (boxes[:, 2:] < clutter.area[2:]).all(axis=1)
    free = inside & ~_overlaps(padded, clutter.taken).any(axis=1)
    if not free.any():
        return None
    penalty = (
        distance
        + _AWRY * (dx - dy)
        + _POINT * _overlaps(padded, np.hstack([clutter.points, clutter.points])).sum(axis=1)
        + _EDGE * _overlaps(padded, clutter.edges).sum(axis=1)
        + _CROSSING * _crossed(point, boxes, clutter.taken)
        + _STROKE * ((padded[:, 1:2] < clutter.lines) & (clutter.lines < padded[:, 3:4])).sum(axis=1)
    )
    best = int(np.argmin(np.where(free, penalty, np.inf)))
    if penalty[best] > _WORST:
        return None
    x0, y0, x1, y1 = boxes[best].tolist()
    return x0, y0, x1, y1


def _clutter(axes: Axes, labels: Sequence[Label], drawn: Drawn) -> _Clutter:
    edges = [_thin_box(*_pixels(axes, piece)) for piece in drawn.pieces]
    marks = _pixels(axes, [label.point for label in labels])
    left = axes.get_xlim()[0]
    x0, y0, x1, y1 = axes.get_window_extent().extents
    return _Clutter(
        taken=_table([(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in marks], 4),
        points=_table(_pixels(axes, drawn.points), 2),
        edges=_table(edges, 4),
        lines=np.asarray([y for _, y in _pixels(axes, [(left, height) for height in drawn.heights])]),
        area=(x0, y0, x1, y1),
    )


def _thin_box(start: Point, end: Point) -> Box:
    (x0, y0), (x1, y1) = start, end
    return min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1


def _leader(axes: Axes, point: Point, at: Point, box: Box) -> list[Point]:
    """Draw a thin line to a label that does not stand next to its point; return where it runs, in pixels."""
    (x, y), (x0, y0, x1, y1) = at, box
    dx, dy = min(max(x, x0), x1) - x, min(max(y, y0), y1) - y
    if math.hypot(dx, dy) <= _NEAR:
        return []
    to_points = 72 / axes.figure.dpi
    axes.annotate(
        "", point, xytext=(dx * to_points, dy * to_points), textcoords="offset points", zorder=3,
        arrowprops={"arrowstyle": "-", "color": "#888888", "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
    )  # fmt: skip
    return [(x + dx * part / 8, y + dy * part / 8) for part in range(1, 8)]


def _crossed(point: Point, boxes: Floats, taken: Floats) -> NDArray[np.int64]:
    """Return how many of the taken boxes a straight line from `point` to each box runs through, (n,)."""
    others = taken[~_overlaps(np.array([[*point, *point]]), taken)[0]]  # a line starts on its own mark
    near = np.clip(point, boxes[:, :2], boxes[:, 2:])
    crossed = np.zeros((len(boxes), len(others)), dtype=bool)
    for part in (0.3, 0.5, 0.7, 0.9):
        crossed |= _overlaps(np.tile(point + part * (near - point), 2), others)
    return np.asarray(crossed.sum(axis=1))


def _overlaps(boxes: Floats, others: Floats) -> NDArray[np.bool_]:
    """Return whether each of n boxes overlaps each of k others, (n, k)."""
    a, b = boxes[:, None, :], others[None, :, :]
    return np.asarray((a[..., :2] < b[..., 2:]).all(axis=-1) & (b[..., :2] < a[..., 2:]).all(axis=-1))


def _pixels(axes: Axes, points: Sequence[Point]) -> list[Point]:
    return [tuple(axes.transData.transform(point).tolist()) for point in points]


def _table(rows: Sequence[Sequence[float]], width: int) -> Floats:
    return np.asarray(rows, dtype=np.float64).reshape(-1, width)
