"""The picture of a front: on studies made by hand, without a store."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import BASE, RECORDS, failed, size_of_png, study, trial
from scope import sampled

from petl.configuration import Configuration
from petl.design import Design
from petl.presets import parse
from search.results import files
from search.results import plot as picture
from search.results.query import Study
from search.trials.record import SeedSummary, State, TrialRecord


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Draws a study and gives back the figure."""
    kept: list[Any] = []

    class Kept(picture.Figure):  # type: ignore[name-defined, misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            kept.append(self)

    monkeypatch.setattr(picture, "Figure", Kept)

    def draw(what: Study) -> Any:
        files.plot(what, tmp_path / "front.png")
        return kept[-1]

    return draw


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text()]


def test_the_picture_names_members_and_references(drawn: Any) -> None:
    axes = drawn(study()).axes[0]
    words = texts(axes)
    for number in range(8):
        assert any(text.startswith((f"{number}:", f"{number}")) for text in words)
    assert "full 0.730, 100 %" in words
    assert "majority 0.430 ↓" in words  # below the picture, named at its foot
    assert axes.get_title("left") == "demo · minilm · tweets"


def test_what_seeds_came_to_is_in_the_picture(drawn: Any) -> None:
    """However far below the score for which a trial is on the front."""
    plain = study()
    low = SeedSummary(mean=0.31, spread=0.05, seeds=3, failed=0, probability=0.4, corrected=0.35)
    beliefs = {"believed": low}
    rows = [replace(trial.row, facts=beliefs) if trial in plain.front() else trial.row for trial in plain.trials]
    axes = drawn(Study(plain.summary, tuple(rows), plain.uri)).axes[0]
    bottom, top = axes.get_ylim()
    assert bottom < 0.26 < 0.36 < top


def test_a_stopped_trial_stands_at_its_last_rung(drawn: Any) -> None:
    axes = drawn(study()).axes[0]
    marks = next(group for group in axes.collections if str(group.get_label()).startswith("stopped early"))
    assert marks.get_offsets().tolist() == [[50_000, 0.67]]


LONG = [
    "bitfit",
    "lora:rank=4,where=ffn",
    "prefix:length=4 + lora:rank=2",
    "prefix:length=8 + parallel:size=32 + lora:rank=8",
    "mam:length=200,size=512,scale=4",
    "prefix:length=30,gated=false + parallel:size=128 + bitfit",
]


def crowded(seeds: bool = False, **objectives: str) -> Study:
    """A steep, then flat front of 15 members with long names, 40 trials below it, and two references."""
    draw = np.random.default_rng(0)
    records = []
    for number, size in enumerate(np.geomspace(1_000, 10_000_000, 15).astype(int)):
        latency = float(draw.integers(6, 17))
        records.append((number, 0.95 - 0.1 * math.exp(-number / 4), int(size), latency))
    for number in range(15, 55):
        _, best, size, latency = records[int(draw.integers(15))]
        records.append((number, best - float(draw.exponential(0.02)) - 0.001, size + number, latency + 1))
    trials = []
    for number, accuracy, size, latency in records:
        one = trial(number, accuracy, size, configuration=Configuration(parse(LONG[number % len(LONG)])))
        trials.append(replace(one, measurements=replace(one.measurements, latency_ms=latency)))
    what = study(
        [*trials, trial(55, 0.955, BASE, reference="full"), trial(56, 0.5, 0, reference="majority")], **objectives
    )
    if not seeds:
        return what
    members = {member.record.number for member in what.front()}
    summary = SeedSummary(mean=0.0, spread=0.003, seeds=4, failed=0, probability=0.7, corrected=0.0)
    rows = [
        replace(row, facts={"believed": replace(summary, mean=score - 0.004, corrected=score)})
        if row.record.number in members and (score := row.record.measurements.accuracy)
        else row
        for row in what.everything
    ]
    return Study(what.summary, tuple(rows), what.uri)


CASES: dict[str, Callable[[], Study]] = {
    "a few": study,
    "crowded": crowded,
    "replicates": lambda: crowded(seeds=True),
    "two costs": lambda: crowded(second_cost="latency_ms"),
    "two costs and replicates": lambda: crowded(seeds=True, second_cost="latency_ms"),
    "less is better": lambda: crowded(score="loss"),
    "sixty in a heap": lambda: study([trial(n, 0.5 + n / 1000, 1000 + n) for n in range(60)]),
}


@pytest.mark.parametrize("case", CASES)
def test_labels_cover_neither_each_other_nor_the_members(case: str, drawn: Any) -> None:
    what = CASES[case]()
    figure = drawn(what)
    axes = figure.axes[0]
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts if text.get_text()]
    numbers = {text.get_text().partition(":")[0] for text in axes.texts}
    named = [member for member in what.front() if str(member.record.number) in numbers]
    assert len(named) >= min(len(what.front()), 12)
    assert not [1 for one, other in combinations(boxes, 2) if one.overlaps(other)]
    members = axes.transData.transform([(t.cost, t.score) for t in what.front()])
    assert not [1 for box in boxes for point in members if box.contains(*point)]


def test_a_picture_is_drawn_the_same_twice(tmp_path: Path) -> None:
    pictures = [files.plot(crowded(), tmp_path / name).read_bytes() for name in ("one.png", "two.png")]
    assert pictures[0] == pictures[1]


def test_labels_stand_where_they_were_placed_at_any_resolution(drawn: Any) -> None:
    """A PDF is saved with 72 pixels an inch."""
    figure = drawn(study())
    renderer = figure.canvas.get_renderer()

    def middles() -> list[list[float]]:
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
        return [[(box.x0 + box.x1) / 2 / figure.dpi, (box.y0 + box.y1) / 2 / figure.dpi] for box in boxes]

    assert renderer.dpi == figure.dpi == 200
    placed = middles()
    figure.set_dpi(72)
    assert middles() == [pytest.approx(middle, abs=0.1) for middle in placed]  # inches


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "The front of demo is empty: it has no trials yet."),
        ([failed(0, "diverged")], "The front of demo is empty: no trial is complete (1 failed)."),
        ([trial(0, math.nan, 100)], "The front of demo is empty"),
    ],
    ids=["none", "failed", "nan"],
)
def test_an_empty_picture_says_why(records: list[TrialRecord], words: str, drawn: Any) -> None:
    axes = drawn(study(records)).axes[0]
    assert words in " ".join(" ".join(texts(axes)).split())
    assert len(axes.get_xticks()) == len(axes.get_yticks()) == 0  # an axis of nothing says nothing


def test_scores_below_a_front_that_limits_leave_empty_are_in_the_picture(drawn: Any) -> None:
    axes = drawn(study([trial(0, 0.5, 100, state=State.PRUNED, rungs={1.0: 0.5})])).axes[0]
    bottom, top = axes.get_ylim()
    assert 0.4 < bottom < 0.5 < top < 0.6


def test_a_reference_that_was_measured_is_in_the_picture_of_another_cost(drawn: Any) -> None:
    unmeasured = replace(RECORDS[-1], measurements=replace(RECORDS[-1].measurements, latency_ms=None))
    assert "majority 0.430" in " ".join(texts(drawn(study([unmeasured, RECORDS[1]], cost="latency_ms")).axes[0]))


def test_a_cost_of_nothing_is_visible(drawn: Any) -> None:
    zero = trial(0, 0.64, 0, configuration=Configuration(Design()))
    figure = drawn(study([zero, *RECORDS[1:]]))
    axes, top = figure.axes
    assert axes.get_xscale() == "symlog"
    assert axes.get_xlim()[0] < 0 < axes.get_xlim()[1]
    assert 0 in axes.get_xticks()
    # the upper axis shows the same places in percent
    for count in (0, 1_000, 300_000):
        lower = axes.transData.transform((count, 0.6))[0]
        assert top.transData.transform((100 * count / BASE, 0.6))[0] == pytest.approx(lower, abs=0.5)


def test_the_upper_axis_without_a_zero(drawn: Any) -> None:
    axes, top = drawn(study()).axes
    assert axes.get_xscale() == "log"
    for count in (3_000, 300_000):
        lower = axes.transData.transform((count, 0.6))[0]
        assert top.transData.transform((100 * count / BASE, 0.6))[0] == pytest.approx(lower, abs=0.5)


def test_less_is_better_is_drawn_upside_down(drawn: Any) -> None:
    axes = drawn(study(score="loss", cost="latency_ms")).axes[0]
    low, high = axes.get_ylim()
    assert low > high
    assert axes.get_xscale() == "linear"
    assert axes.get_xlabel() == "latency of one row (ms)"


FEW: dict[str, list[TrialRecord]] = {
    "none": [],
    "one": [trial(0, 0.5, 100)],
    "one of no cost": [trial(0, 0.5, 0)],
    "nan": [trial(0, math.nan, 100), trial(1, 0.5, 200)],
    "a reference only": [RECORDS[-1]],
    "stopped without measurements": [replace(RECORDS[-4], measurements=None)],
    "sixty in a heap": [trial(n, 0.5 + n / 1000, 1000 + n) for n in range(60)],
}
AXES = [
    {},
    {"score": "loss", "cost": "seconds"},
    {"second_cost": "latency_ms"},
    {"score": "loss", "cost": "latency_ms", "second_cost": "stored_parameters"},
    {"second_cost": "seconds"},
]
DRAWN = sampled(
    "studies that are drawn",
    [(name, objectives) for name in FEW for objectives in AXES],
    lambda case: case[1] in AXES[:1] or case[0] == "sixty in a heap",
)


@pytest.mark.parametrize(
    ("records", "objectives"),
    [(FEW[name], objectives) for name, objectives in DRAWN],
    ids=[" ".join((name, *objectives.values())) for name, objectives in DRAWN],
)
def test_every_study_can_be_drawn(
    records: list[TrialRecord], objectives: dict[str, str], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    what = study(records, **objectives)
    size_of_png(files.plot(what, tmp_path / "deep" / "front.png"))
    assert not [warning for warning in recwarn if "matplotlib" in str(warning.filename) or "plot" in warning.filename]


def test_the_picture_of_three_objectives_has_the_third_as_colour(drawn: Any) -> None:
    """Latencies of 9, 7 and 8 ms: the second trial is worse and larger than the first, and on the front for its 7."""
    records = [
        replace(one, measurements=replace(one.measurements, latency_ms=latency))
        for one, latency in zip(
            (trial(0, 0.7, 1_000), trial(1, 0.6, 2_000), trial(2, 0.8, 4_000)), (9, 7, 8), strict=True
        )
    ]
    axes, _, bar = drawn(study([*records, trial(3, 0.5, 5_000)], second_cost="latency_ms")).axes
    assert axes.get_xlabel() == "stored parameters"
    assert bar.get_ylabel() == "latency of one row (ms)"
    members = next(points for points in axes.collections if points.get_label() == "Pareto front")
    assert members.get_array().tolist() == [9, 7, 8]
    assert members.get_offsets().tolist() == [[1_000, 0.7], [2_000, 0.6], [4_000, 0.8]]
    (line,) = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert line.get_xydata()[:2].tolist() == [[1_000, 0.7], [4_000, 0.8]]


@pytest.mark.parametrize(("value", "text"), [(300_000, "300k"), (1_500_000, "1.5M"), (70, "70")])
def test_ticks_are_short(value: float, text: str) -> None:
    assert picture._short_text(value) == text
