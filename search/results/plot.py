"""The front as a picture: score over cost, with every trial and the references; a second cost is the colour."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from search.trials.pareto import Floats
from search.trials.record import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from search.results.query import ParetoFront, Study, Trial


# Okabe and Ito's colours, which people with any colour vision tell apart.
_FRONT: Final = "#0072B2"
_REFERENCE: Final = "#B34700"
_COMPLETE: Final = "#7F7F7F"
_STOPPED: Final = "#B8B8B8"
_INK: Final = "#222222"
_SECOND: Final = "cividis_r"  # made for any colour vision as well
_SMALL: Final = 7.5
_ROOM: Final = 1.6  # free space at the ends of a logarithmic axis, as a factor
_LINE: Final = 28  # characters in a line of a label
_LONGEST: Final = 80  # of a name anywhere else; a $ in one is no formula


def draw(study: Study, front: ParetoFront, path: str | Path) -> Path:
    """Draw `front` among all trials of `study`, at `path` (its ending says the format); returns it.

    Stopped trials stand at the score of their last rung. What lies below the interesting scores is
    drawn at the lower edge, as a triangle. A cost of 0 is visible: the axis is linear near it. Of three
    objectives the line is the front of the first two, and members below it are there for their second cost.
    """
    figure = Figure(figsize=(7.6, 4.9), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    view = _View(study, front)
    _frame(axes, view)
    _front(axes, view)
    _points(axes, view)
    _references(axes, view)
    if axes.collections:
        figure.legend(
            loc="outside lower center", ncols=4, fontsize=_SMALL, frameon=False, handletextpad=0.2, columnspacing=1.4
        )
    figure.canvas.draw()  # fixes the layout, so that labels are placed on what will be seen
    _labels(axes, view)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


class _View:
    """What is drawn: points by kind, and the limits of both axes."""

    def __init__(self, study: Study, front: ParetoFront) -> None:
        self.study, self.front = study, front
        score, cost, *more = front.objectives
        self.second = more[0] if more else None
        self.score, self.cost = score.name, cost.name
        self.title = cost.title
        self.loss, self.upward = score.loss, score.higher_is_better
        self.complete = [(x, y) for t in study.trials if t.state is State.COMPLETE for x, y in self._at(t)]
        unfinished = (State.PRUNED, State.PAUSED)
        self.stopped = [(x, y) for t in study.trials if t.state in unfinished for x, y in self._at(t)]
        self.members = [(x, y) for t in front for x, y in self._at(t)]
        self.seeds = [
            (x, believed.mean, believed.spread)
            for t in front
            if (believed := t.believed) and believed.seeds > 1
            for x, _ in self._at(t)
        ]
        self.stair = list(self._stair())
        self.references = [
            (trial, value)
            for trial in study.references
            if trial.measurements and (value := score.value(trial.measurements)) is not None and math.isfinite(value)
        ]
        self.low, self.high = self._limits()
        costs = [x for x, _ in (*self.complete, *self.stopped)]
        self.right = max(costs, default=1.0) or 1.0
        self.step = 10.0 ** math.floor(math.log10(min((x for x in costs if x > 0), default=1.0)))
        self.logarithmic = cost.logarithmic
        self.zero = any(x <= 0 for x in costs)
        self.left = min(costs, default=1.0)

    def _at(self, trial: Trial) -> Iterator[Point]:
        """Cost and score, where both are numbers; a stopped trial has its last rung's score."""
        measured, rungs = trial.measurements, trial.record.rungs
        score, cost, *_ = self.front.objectives
        y = score.value(measured) if measured else (rungs[max(rungs)] if rungs else None)
        x = cost.value(measured) if measured else trial.row.counts.get(cost.name)
        if x is not None and y is not None and math.isfinite(x) and math.isfinite(y):
            yield x, y

    def _stair(self) -> Iterator[Point]:
        """The members with a better score than all that are cheaper: without a second cost all of them."""
        best = math.inf
        for x, y in self.members:
            if self.loss(y) < best:
                best = self.loss(y)
                yield x, y

    def _limits(self) -> Point:
        """The scores worth a close look: those of the front, of its seeds, and what lies not far below."""
        sign = 1 if self.upward else -1  # as the picture has it: what is better lies above
        seeds = [sign * mean + way * spread for _, mean, spread in self.seeds for way in (-1, 1)]
        core = sorted(sign * y for _, y in (self.members or self.complete)) or [0.0, 1.0]
        top = max([*core, *seeds, *(sign * y for _, y in self.references)])
        span = max(top - core[0], 0.02 * max(abs(top), 1e-9))
        near = [v for v in (*(sign * y for _, y in self.complete + self.stopped + self.references),) if v <= top]
        bottom = min([*seeds, *(v for v in near if v >= core[0] - 0.5 * span)], default=core[0])
        return sign * (bottom - 0.08 * span), sign * (top + 0.14 * span)

    def inside(self, y: float) -> bool:
        """Whether a score lies above the lower edge."""
        return y >= self.low if self.upward else y <= self.low


def _frame(axes: Axes, view: _View) -> None:
    """Scales, ticks, titles."""
    axes.set_ylim(view.low, view.high)
    if view.logarithmic:
        _scale(axes, view, 1.0, _count)
        axes.set_xlim(-0.25 * view.step if view.zero else view.left / _ROOM, view.right * _ROOM)
    else:
        margin = 0.08 * (view.right - view.left or view.right)
        axes.set_xlim(view.left - 2 * margin, view.right + margin)
    axes.set_xlabel(view.title, color=_INK)
    axes.set_ylabel(f"validation {view.score}", color=_INK)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["right", "top"]].set_visible(False)
    axes.tick_params(labelsize=8.5, color="#999999", labelcolor=_INK)
    info = view.study.summary.info
    facts = [view.study.name, _model(info.get("backbone", {}).get("model", "")), info.get("task", {}).get("name")]
    title = " · ".join(str(fact)[:_LONGEST] for fact in facts if fact)
    axes.set_title(title, loc="left", fontsize=10, color=_INK, parse_math=False)
    base = view.front.base_parameters
    if base and view.logarithmic and view.cost.endswith("_parameters"):
        top = axes.twiny()
        _scale(top, view, 100 / base, lambda value: f"{value:g} %")
        top.set_xlim(*(limit * 100 / base for limit in axes.get_xlim()))
        top.set_xlabel("share of the pretrained model", fontsize=_SMALL, color="#666666", loc="right", labelpad=3)
        top.spines[["right", "left", "top"]].set_visible(False)
        top.tick_params(labelsize=7.5, color="#BBBBBB", labelcolor="#666666", length=2)


def _scale(axes: Axes, view: _View, factor: float, text: Any) -> None:
    """A logarithmic x axis, linear near 0 where there is a 0; `factor` converts the cost to its unit."""
    if view.zero:
        axes.set_xscale("symlog", linthresh=view.step * factor, linscale=0.35)
    else:
        axes.set_xscale("log")
    low, high = (view.step if view.zero else view.left / _ROOM) * factor, view.right * _ROOM * factor
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):  # as fine as it takes to have a few
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) >= 3:
            break
    axes.xaxis.set_major_locator(FixedLocator([0.0, *ticks] if view.zero else ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def _points(axes: Axes, view: _View) -> None:
    for label, points, marker, colour, size in (
        ("trained fully", view.complete, "o", _COMPLETE, 18),
        ("stopped early, at its last rung", view.stopped, "x", _STOPPED, 16),
    ):
        seen = [(x, y) for x, y in points if view.inside(y)]
        if seen:
            axes.scatter(*_columns(seen), s=size, marker=marker, color=colour, linewidth=0.9, label=label, zorder=2)
    below = [(x, view.low) for x, y in (*view.complete, *view.stopped) if not view.inside(y)]
    if below:
        axes.scatter(
            *_columns(below), s=16, marker="v", color=_STOPPED, linewidth=0, clip_on=False, zorder=2,
            label="lower score",
        )  # fmt: skip


def _front(axes: Axes, view: _View) -> None:
    if not view.members:
        return
    xs, ys = _columns(view.stair)
    right = axes.get_xlim()[1]
    axes.step([*xs, right], [*ys, ys[-1]], where="post", color=_FRONT, linewidth=1.6, zorder=3)
    axes.fill_between([*xs, right], [*ys, ys[-1]], view.low, step="post", color=_FRONT, alpha=0.05, linewidth=0)
    look: dict[str, Any] = {"color": _FRONT, "edgecolor": "white", "linewidth": 0.8}
    if view.second:
        values = [float(trial.second_cost or 0.0) for trial in view.front]
        low, high = min(values), max(values)
        high = high if high > low else low + 1.0
        knee = view.second.knee
        norm = Normalize(low, high) if knee is None else SymLogNorm(knee, vmin=low, vmax=high)
        look = {"c": values, "cmap": _SECOND, "norm": norm, "edgecolor": _INK, "linewidth": 0.5}
    points = axes.scatter(*_columns(view.members), s=34, zorder=4, label="Pareto front", **look)
    if view.seeds:
        at, means, spreads = zip(*view.seeds, strict=True)
        axes.errorbar(
            at, means, spreads, fmt="_", color=_INK, markersize=6, elinewidth=0.8, capsize=2, zorder=5,
            label="its seeds: mean ± spread",
        )  # fmt: skip
    if view.second:
        bar = axes.figure.colorbar(points, ax=axes, pad=0.02, aspect=30, format=lambda value, _: _count(value))
        bar.set_label(view.second.title, fontsize=8.5, color=_INK)
        bar.ax.tick_params(labelsize=_SMALL, color="#999999", labelcolor=_INK)
        bar.outline.set_visible(False)


def _references(axes: Axes, view: _View) -> None:
    """Horizontal lines, named at the right edge; a score below the picture is named at its foot."""
    low, high = axes.get_ylim()
    ordered = sorted(view.references, key=lambda pair: (pair[1] - low) / (high - low))
    gap = 0.042
    floor = -gap
    for trial, score in ordered:
        percent = trial.measurements.stored_percent if trial.measurements else 0.0
        at = (score - low) / (high - low)
        seen = view.inside(score)
        if seen:
            axes.axhline(score, color=_REFERENCE, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        floor = max(at if seen else 0.0, floor + gap)
        arrow = "" if seen else " ↓"
        share = f", {percent:.3g} %" if percent else ""
        axes.annotate(
            f"{trial.name[:_LONGEST]} {score:.3f}{arrow}{share}",
            (1.0, min(at, 1.0) if seen else 0.0),
            xytext=(1.012, floor),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=_SMALL,
            color=_REFERENCE,
            va="center",
            annotation_clip=False,
            parse_math=False,
        )


def _labels(axes: Axes, view: _View) -> None:
    """Name the members of the front where there is room; each has a number, for `petl-search show`."""
    if not view.members:
        return
    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    area = axes.get_window_extent(renderer).extents
    pixels = _pixels(axes, view.members)
    stair = _pixels(axes, view.stair)
    corners = [*stair, (area[2], stair[-1][1])]
    clutter = Clutter(
        taken=[(x - 10, y - 10, x + 10, y + 10) for x, y in pixels],
        points=_pixels(axes, [point for point in view.complete + view.stopped if view.inside(point[1])]),
        edges=[box for start, end in pairwise(corners) for box in _stair(start, end)],
        lines=[y for _, y in _pixels(axes, [(view.right, s) for _, s in view.references if view.inside(s)])],
    )
    # the best and the cheapest first: they have their way where room is short
    for index in sorted(range(len(pixels)), key=lambda i: min(i, len(pixels) - 1 - i)):
        for words in _wordings(view.front[index]):
            text = axes.annotate(
                words, view.members[index], xytext=(0, 0), textcoords="offset pixels", fontsize=_SMALL - 0.5,
                color=_INK, linespacing=1.05, zorder=5, path_effects=[withStroke(linewidth=1.8, foreground="white")],
                parse_math=False,
            )  # fmt: skip
            size = text.get_window_extent(renderer)
            box = place(pixels[index], (size.width, size.height), area, clutter)
            if box is None:
                text.remove()
                continue
            text.set_position((box[0] - pixels[index][0], box[1] - pixels[index][1]))
            clutter.add(box, _leader(axes, view.members[index], pixels[index], box))
            break


def _stair(start: Point, end: Point) -> list[Box]:
    """The two segments of the step line from one corner to the next, as thin boxes."""
    (x0, y0), (x1, y1) = start, end
    return [(x0, y0 - 1, x1, y0 + 1), (x1 - 1, min(y0, y1), x1 + 1, max(y0, y1))]


def _leader(axes: Axes, member: Point, at: Point, box: Box) -> list[Point]:
    """A thin line to a label that does not stand next to its point; where it runs, in pixels."""
    (x, y), (x0, y0, x1, y1) = at, box
    dx, dy = min(max(x, x0), x1) - x, min(max(y, y0), y1) - y
    if math.hypot(dx, dy) <= 18:
        return []
    axes.annotate(
        "", member, xytext=(dx, dy), textcoords="offset pixels", zorder=3,
        arrowprops={"arrowstyle": "-", "color": "#888888", "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
    )  # fmt: skip
    return [(x + dx * part / 8, y + dy * part / 8) for part in range(1, 8)]


def _pixels(axes: Axes, points: Sequence[Point]) -> list[Point]:
    return [tuple(axes.transData.transform(point).tolist()) for point in points]


def _wordings(trial: Trial) -> Iterator[str]:
    """A trial's label, the fullest first."""
    first, *parts = trial.name.split(" + ")
    lines = [f"{trial.trial}: {first}"]
    for part in parts:
        if len(lines[-1]) + len(part) + 3 <= _LINE:
            lines[-1] += f" + {part}"
        else:
            lines.append(f"+ {part}")
    lines = [line if len(line) <= _LINE + 8 else line[: _LINE + 7] + "…" for line in lines]
    if len(lines) <= 3:
        yield "\n".join(lines)
    if len(lines) > 1:
        yield "\n".join([lines[0], lines[1] + " …"]) if len(lines) > 2 else lines[0] + " …"
    yield str(trial.trial)


def _model(text: str) -> str:
    """A model's name without what only a machine needs of it."""
    if text.startswith("package:"):
        return text.removeprefix("package:").partition("/")[0]
    return Path(text).name if text.startswith(("/", "~", ".")) else text


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _count(value: float) -> str:
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"


Point: TypeAlias = tuple[float, float]
Box: TypeAlias = tuple[float, float, float, float]

_DISTANCES: Final = (10.0, 18.0, 30.0, 45.0, 65.0, 90.0, 120.0)
_ANGLES: Final = np.radians(np.arange(0, 360, 15))
_CLEARANCE: Final = 3.0
_POINT, _EDGE, _STROKE, _CROSSING, _AWRY = 25.0, 30.0, 25.0, 40.0, 15.0  # what it costs, in pixels of distance
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
        + _STROKE * ((padded[:, 1:2] < clutter.lines) & (clutter.lines < padded[:, 3:4])).sum(axis=1)
    )
    best = int(np.argmin(np.where(free, badness, np.inf)))
    if badness[best] > _TOO_BAD:
        return None
    x0, y0, x1, y1 = boxes[best].tolist()
    return x0, y0, x1, y1


def _crossed(point: Point, boxes: Floats, taken: Floats) -> NDArray[np.int64]:
    """How many of the taken boxes a straight line from `point` to each box runs through, (n,)."""
    others = taken[~_overlaps(np.array([[*point, *point]]), taken)[0]]  # a line starts on its own mark
    near = np.clip(point, boxes[:, :2], boxes[:, 2:])
    crossed = np.zeros((len(boxes), len(others)), dtype=bool)
    for part in (0.3, 0.5, 0.7, 0.9):
        crossed |= _overlaps(np.tile(point + part * (near - point), 2), others)
    return np.asarray(crossed.sum(axis=1))


def _overlaps(boxes: Floats, others: Floats) -> NDArray[np.bool_]:
    """Whether each of n boxes overlaps each of k others, (n, k)."""
    a, b = boxes[:, None, :], others[None, :, :]
    return np.asarray((a[..., :2] < b[..., 2:]).all(axis=-1) & (b[..., :2] < a[..., 2:]).all(axis=-1))


def _table(rows: Sequence[Sequence[float]], width: int) -> Floats:
    return np.asarray(rows, dtype=np.float64).reshape(-1, width)
