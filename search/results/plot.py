"""The front as a picture: score over cost, with every trial and the references; a second cost is the colour."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from search.results.console import why_empty
from search.results.labels import Drawn, Label, Point, write_labels
from search.trials.formats import model_text
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
_SENTENCE: Final = 70  # in a line of a sentence
_FOOT: Final = 130  # in a line across the picture
_LONGEST: Final = 80  # of a name anywhere else; a $ in one is no formula


def draw(study: Study, front: ParetoFront, path: str | Path) -> Path:
    """Draw `front` among all trials of `study` into the file `path`, whose ending says the format, and return it.

    A stopped trial stands at the score of its last rung. A score far below the front is drawn at the lower edge, as a
    triangle. A cost of 0 is visible: the axis is linear near it. With three objectives the line is the front of the
    first two, and a member below it is on the front for its second cost. A picture without a front says why.
    """
    figure = Figure(figsize=(7.6, 4.9), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    view = _View(study, front)
    _frame(axes, view)
    _front(axes, view)
    _points(axes, view)
    _references(axes, view)
    _say_what_is_beaten(figure, view)
    if axes.collections:
        figure.legend(
            loc="outside lower center", ncols=4, fontsize=_SMALL, frameon=False, handletextpad=0.2, columnspacing=1.4
        )
    figure.canvas.draw()  # fixes the layout, so that labels are placed on what will be seen
    if view.members:
        _labels(axes, view)
    else:
        _say_why_empty(axes, view)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


class _View:
    """Hold what is drawn: points by kind, as cost and score, and the limits of both axes."""

    def __init__(self, study: Study, front: ParetoFront) -> None:
        self.study, self.front = study, front
        score, cost, *more = front.objectives
        self.second = more[0] if more else None
        self.score, self.cost = score, cost
        self.complete = [(x, y) for t in study.trials if t.state is State.COMPLETE for x, y in self._at(t)]
        unfinished = (State.PRUNED, State.PAUSED)
        self.stopped = [(x, y) for t in study.trials if t.state in unfinished for x, y in self._at(t)]
        self.named = [(trial, point) for trial in front for point in self._at(trial)]
        self.members = [point for _, point in self.named]
        self.seeds = [
            (x, believed.mean, believed.spread)
            for trial, (x, _) in self.named
            if (believed := trial.seed_summary) and believed.seeds > 1
        ]
        self.stair = list(self._stair())
        self.references = [
            (trial, value)
            for trial in study.references
            if trial.measurements and (value := score.value(trial.measurements)) is not None and math.isfinite(value)
        ]
        self.low, self.high = self._limits()
        self.costs = [x for x, _ in (*self.complete, *self.stopped)]
        self.right = max(self.costs, default=1.0) or 1.0
        self.step = 10.0 ** math.floor(math.log10(min((x for x in self.costs if x > 0), default=1.0)))
        self.zero = any(x <= 0 for x in self.costs)
        self.left = min(self.costs, default=1.0)

    def _at(self, trial: Trial) -> Iterator[Point]:
        """Yield cost and score where both are numbers; the score of a stopped trial is that of its last rung."""
        rungs = trial.record.rungs
        x = trial.values.get(self.cost.name)
        y = trial.values.get(self.score.name, rungs[max(rungs)] if rungs else None)
        if x is not None and y is not None and math.isfinite(x) and math.isfinite(y):
            yield x, y

    def _stair(self) -> Iterator[Point]:
        """Yield the members with a better score than all cheaper ones: without a second cost all of them."""
        best = math.inf
        for x, y in self.members:
            if self.score.loss(y) < best:
                best = self.score.loss(y)
                yield x, y

    def _limits(self) -> Point:
        """Return the lowest and highest score in the picture: the front, its seeds, and what lies not far below it."""
        sign = 1 if self.score.higher_is_better else -1  # what is better lies above
        seeds = [sign * mean + way * spread for _, mean, spread in self.seeds for way in (-1, 1)]
        points = self.members or self.complete or self.stopped or self.references
        core = sorted(sign * y for _, y in points) or [0.0, 1.0]
        top = max([*core, *seeds, *(sign * y for _, y in self.references)])
        span = max(top - core[0], 0.1 * max(abs(top), 1e-9))  # a single score is not magnified
        near = [v for v in (*(sign * y for _, y in self.complete + self.stopped + self.references),) if v <= top]
        bottom = min([*seeds, *(v for v in near if v >= core[0] - 0.5 * span)], default=core[0])
        return sign * (bottom - 0.08 * span), sign * (top + 0.14 * span)

    def inside(self, y: float) -> bool:
        """Return whether a score lies above the lower edge."""
        return self.score.loss(y) <= self.score.loss(self.low)


def _frame(axes: Axes, view: _View) -> None:
    """Draw scales, ticks and titles."""
    axes.set_ylim(view.low, view.high)
    if view.cost.logarithmic:
        _scale(axes, view, 1.0, _short_text)
        axes.set_xlim(-0.25 * view.step if view.zero else view.left / _ROOM, view.right * _ROOM)
    else:
        margin = 0.08 * (view.right - view.left or view.right)
        axes.set_xlim(view.left - 2 * margin, view.right + margin)
    axes.set_xlabel(view.cost.title, color=_INK)
    axes.set_ylabel(f"validation {view.score.name}", color=_INK)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["right", "top"]].set_visible(False)
    axes.tick_params(labelsize=8.5, color="#999999", labelcolor=_INK)
    info = view.study.summary.info
    facts = [view.study.name, model_text(info.backbone.model), info.task.name]
    title = " · ".join(str(fact)[:_LONGEST] for fact in facts if fact)
    axes.set_title(title, loc="left", fontsize=10, color=_INK, parse_math=False)
    base = view.front.base_parameters
    if base and view.costs and view.cost.name.endswith("_parameters"):
        top = axes.twiny()
        _scale(top, view, 100 / base, lambda value: f"{value:g} %")
        top.set_xlim(*(limit * 100 / base for limit in axes.get_xlim()))
        top.set_xlabel("share of the pretrained model", fontsize=_SMALL, color="#666666", loc="right", labelpad=3)
        top.spines[["right", "left", "top"]].set_visible(False)
        top.tick_params(labelsize=7.5, color="#BBBBBB", labelcolor="#666666", length=2)


def _scale(axes: Axes, view: _View, factor: float, text: Any) -> None:
    """Make the x axis logarithmic, and linear near 0 if a cost is 0; `factor` converts costs to the axis' unit."""
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
        values = [float(trial.second_cost or 0.0) for trial, _ in view.named]
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
        bar = axes.figure.colorbar(points, ax=axes, pad=0.02, aspect=30, format=lambda value, _: _short_text(value))
        bar.set_label(view.second.title, fontsize=8.5, color=_INK)
        bar.ax.tick_params(labelsize=_SMALL, color="#999999", labelcolor=_INK)
        bar.outline.set_visible(False)


def _references(axes: Axes, view: _View) -> None:
    """Draw horizontal lines, named at the right edge; a score below the picture is named at its foot."""
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


def _say_what_is_beaten(figure: Figure, view: _View) -> None:
    """Say below the axis which references dominate members."""
    if lines := view.front.beaten:
        text = "\n".join(fill(line, _FOOT) for line in lines)
        figure.supxlabel(text, x=0.01, ha="left", fontsize=_SMALL, color=_REFERENCE, parse_math=False)


def _labels(axes: Axes, view: _View) -> None:
    """Name the members of the front where there is room; each has a number, for `petl-search show`."""
    last = len(view.named) - 1
    ordered = sorted(range(last + 1), key=lambda index: min(index, last - index))  # the extremes come first
    line = [view.stair[0]]
    for x, y in (*view.stair[1:], (axes.get_xlim()[1], view.stair[-1][1])):
        line += [(x, line[-1][1]), (x, y)]
    drawn = Drawn(
        points=[point for point in view.complete + view.stopped if view.inside(point[1])],
        pieces=[*pairwise(line), *(((x, mean - spread), (x, mean + spread)) for x, mean, spread in view.seeds)],
        heights=[score for _, score in view.references if view.inside(score)],
    )
    members = [view.named[index] for index in ordered]
    write_labels(axes, [Label(point, list(_wordings(trial))) for trial, point in members], drawn)


def _say_why_empty(axes: Axes, view: _View) -> None:
    """Say in the picture why it has no front; an axis with nothing on it has no numbers."""
    if not view.costs:
        axes.set_xticks([])
    if not (view.costs or view.references):
        axes.set_yticks([])
    reason = fill(why_empty(view.study, view.front), _SENTENCE)
    axes.text(
        0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=_INK, fontsize=_SMALL + 1,
        zorder=6, bbox={"color": "white", "alpha": 0.85}, parse_math=False,
    )  # fmt: skip


def _wordings(trial: Trial) -> Iterator[str]:
    """Yield what a trial may be called, the fullest wording first."""
    first, *parts = trial.name.split(" + ")
    lines = [f"{trial.number}: {first}"]
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
    yield str(trial.number)


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _short_text(value: float) -> str:
    """Return a number for the tick of an axis: 300k, 1.5M."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"
