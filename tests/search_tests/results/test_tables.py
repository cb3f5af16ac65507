"""Tables, the picture, and the files of a front: on studies made by hand, without a store."""

from __future__ import annotations

import csv
import io
import json
import math
import struct
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from petl.configuration import Configuration
from petl.design import Composition, Design, Form, Modification, Site
from petl.measurements import Measurements
from search.results import plot as picture
from search.results import tables as report
from search.results.query import ROW, Study
from search.tracking.schema import StudySummary, TrialRow
from search.trials.record import SeedSummary, State, TrialRecord

BASE = 22_713_216
INFO = {
    "objectives": {"score": "accuracy", "cost": "stored_parameters"},
    "backbone": {"model": "package:minilm/model"},
    "task": {"name": "tweets"},
}


def trial(number: int, accuracy: float, stored: int, **changes: Any) -> TrialRecord:
    design = Design(
        (
            Modification(form=Form.PREFIX, site=Site.HEADS, composition=Composition.GATE, size=number + 1),
            Modification(form=Form.BOTTLENECK, site=Site.FFN, composition=Composition.SCALE, size=8, scale=4.0),
        )
    )
    measured = Measurements(
        accuracy=accuracy,
        loss=1 - accuracy,
        stored_parameters=stored,
        stored_percent=100 * stored / BASE,
        base_parameters=BASE,
        seconds=10.0 + number,
        latency_ms=8.0 + number / 10,
    )
    values = {
        "number": number,
        "state": State.COMPLETE,
        "configuration": Configuration(design),
        "measurements": measured,
    }
    return TrialRecord(**{**values, **changes})


RECORDS = [
    *(trial(n, 0.65 + 0.01 * n - 0.0005 * n * n, 3_000 * 2**n) for n in range(8)),
    *(trial(8 + n, 0.60 + 0.01 * n, 5_000 * 2**n) for n in range(6)),
    trial(14, 0.3, 9_999),
    trial(15, 0.61, 50_000, state=State.PRUNED, rungs={0.5: 0.6, 1.0: 0.67}, measurements=None),
    trial(16, 0.0, 1, state=State.FAIL, measurements=None, failure="diverged: loss\nat step 3"),
    trial(17, 0.73, BASE, reference="full"),
    trial(18, 0.43, 0, reference="majority", configuration=None),
]


def study(records: list[TrialRecord] = RECORDS, **objectives: str) -> Study:
    info = {**INFO, "objectives": {**INFO["objectives"], **objectives}}
    summary = StudySummary(name="demo", experiment_id="1", run_id="p", status="FINISHED", started=0.0, info=info)
    rows = [
        TrialRow(
            record=record,
            run_id=f"run-{record.number}",
            counts={"stored_parameters": 50_000} if record.number == 15 else {},
            test={"accuracy": 0.5},
        )
        for record in records
    ]
    return Study(summary, tuple(rows), "sqlite:///nowhere.db")


def printed(what: Any, width: int) -> str:
    out = Console(width=width, file=io.StringIO(), color_system=None)
    what(out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("width", [200, 80])
def test_no_number_is_cut(width: int) -> None:
    text = printed(lambda out: report.print_front(study(), study().front(), out), width)
    for number in ("0.6500", "0.6955", "0.5000", "384,000", "22,713,216", "100.0", "1.691"):
        assert number in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize(
    ("cost", "value", "shown"),
    [
        ("latency_ms", 8.153, "8.15"),
        ("peak_memory_mb", 12_345.6, "12,346"),
        ("trained_parameters", 123_456, "123,456"),
        ("paper_parameters", 0, "0"),
    ],
)
def test_a_cost_of_another_kind_has_its_column(cost: str, value: float, shown: str) -> None:
    unmeasured = replace(RECORDS[-1], measurements=Measurements(accuracy=0.4, **{cost: None}))  # type: ignore[arg-type]
    full = replace(RECORDS[-2], measurements=replace(RECORDS[-2].measurements, **{cost: 22_713_217}))
    measured = replace(RECORDS[0].measurements, **{cost: value})
    what = study([replace(RECORDS[0], measurements=measured), full, unmeasured], cost=cost)
    text = printed(lambda out: report.print_front(what, what.front(), out), 80)
    assert cost.rpartition("_")[2] in text
    assert next(line for line in text.splitlines() if line.split()[:2] == ["0", "prefix"]).split()[-1] == shown
    assert " 22,713,217 " in text
    assert "majority" in text


@pytest.mark.parametrize("cost", ["stored_parameters", "seconds"])
def test_a_cost_that_is_shown_anyway_is_shown_once(cost: str) -> None:
    what = study(cost=cost)
    text = printed(lambda out: report.print_front(what, what.front(), out), 120)
    assert next(line for line in text.splitlines() if "trial" in line).split()[-1] == "seconds"


def test_what_was_not_measured_is_left_out(drawn: Any) -> None:
    nothing = {"latency_ms": None, "peak_memory_mb": None, "tokens_per_second": None}
    records = [replace(one, measurements=replace(one.measurements, **nothing)) for one in (RECORDS[0], RECORDS[-1])]
    what = study([*records, RECORDS[1]], cost="latency_ms")
    assert [trial.trial for trial in what.front()] == [1]
    assert "latency" not in printed(lambda out: report.print_trial(what.trial(0), out), 100)
    assert "majority 0.430" in " ".join(texts(drawn(what).axes[0]))
    limited = replace(what, summary=replace(what.summary, info={**what.summary.info, "constraints": {"latency_ms": 9}}))
    assert [trial.trial for trial in limited.front(cost="stored_parameters")] == [1]  # not known to keep the limit


def test_references_are_named() -> None:
    text = printed(lambda out: report.print_front(study(), study().front(), out), 120)
    lines = text.splitlines()
    assert next(line for line in lines if line.strip().startswith("full")).split()[0] == "full"
    assert any("majority" in line for line in lines)


def failed(number: int, reason: str | None) -> TrialRecord:
    return trial(number, 0.0, 1, state=State.FAIL, measurements=None, failure=reason)


@pytest.mark.parametrize("show", [report.print_study, report.print_ending])
def test_an_empty_front_says_why(show: Any) -> None:
    reasons = ["out of memory: 9 GB"] * 7 + ["diverged", None, "diverged"] + [f"OSError: {n}" for n in range(4)]
    empty = study([failed(number, reason) for number, reason in enumerate(reasons)])
    lines = [line.rstrip() for line in printed(lambda out: show(empty, out), 80).splitlines()]
    assert "The front of demo is empty: no trial is complete (14 failed)." in lines
    assert [line for line in lines if line.startswith("  ") and " failed " in line and "trials " not in line] == [
        "  7 failed (trial 0, 1, 2, 3, 4 ...): out of memory: 9 GB",
        "  2 failed (trial 7, 9): diverged",
        "  1 failed (trial 8): no reason given",
        "  1 failed (trial 10): OSError: 0",
        "  1 failed (trial 11): OSError: 1",
        "  2 failed for other reasons",
    ]
    assert "next:" not in lines


@pytest.mark.parametrize(
    ("uri", "option"),
    [
        ("sqlite:////default/mlflow.db", ""),
        ("sqlite:////my folder/mlflow.db", " --uri 'sqlite:////my folder/mlflow.db'"),
        ("postgresql://me:secret@host/db", " --uri postgresql://me@host/db"),
    ],
)
def test_what_to_type_next_finds_the_store(uri: str, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////default/mlflow.db")
    what = replace(study(), uri=uri)
    text = printed(lambda out: report.print_ending(what, out), 80)
    commands = [line.split("   ")[0].strip() for line in text.splitlines() if "petl-search" in line]
    assert commands == [
        f"petl-search front demo --max-parameters 1%{option}",
        f"petl-search show demo 5{option}",
        f"petl-search export demo 5 my-adapter{option}",
        f"petl-search ui{option}",
    ]


def test_a_server_is_opened_in_a_browser() -> None:
    what = replace(study(), uri="http://host:5000")
    assert "petl-search ui" not in printed(lambda out: report.print_ending(what, out), 80)


@pytest.mark.parametrize("brackets", ["[/tmp/x]", "[bold]", "[1]", ":smile:"])
def test_brackets_are_no_markup(brackets: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path / brackets.strip("[/]")))
    records = [
        trial(0, 0.5, 100, name=f"mam {brackets}"),
        failed(1, f"OSError: {brackets}"),
        trial(2, 0.6, 1, reference=f"full {brackets}"),
    ]
    info = {**INFO, "backbone": {"model": f"model {brackets}"}, "task": {"name": f"task {brackets}"}}
    named = study(records)
    named = replace(named, summary=replace(named.summary, name=f"study {brackets}", info=info))
    empty = replace(named, everything=named.everything[1:2])
    for show, words in (
        (lambda out: report.print_study(named, out), ["study", "model", "task", "mam", "OSError:", "full"]),
        (lambda out: report.print_ending(named, out), ["front of study", "front study", "mam", "full"]),
        (lambda out: report.print_ending(empty, out), ["front of study", "OSError:"]),
        (lambda out: report.print_trial(named.trial(0), out), ["mam"]),
        (lambda out: report.print_trial(named.trial(1), out), ["OSError:"]),
        (lambda out: out.print(report.studies_table([named])), ["study", "model", "task"]),
    ):
        text = printed(show, 200)
        for word in words:
            assert f"{word} {brackets}" in text


def test_a_front_that_limits_leave_empty_says_so() -> None:
    what = study()
    text = printed(lambda out: report.print_front(what, what.front(max_parameters=1), out), 120)
    assert "no complete trial is within the limits (15 complete, 1 stopped early, 1 failed)." in text


def test_what_a_study_has_spent_and_what_it_left() -> None:
    """By its own clock; at 2.5 an hour, 0.4 device-hours are 1."""
    left = study([trial(0, 0.5, 100), trial(1, 0.5, 100, state=State.RUNNING, measurements=None)])
    budget = {"trials": 24, "hours": None, "money": 1.0, "price_per_device_hour": 2.5}
    spent = {"hours": 0.25, "device_hours": 0.4}
    summary = replace(left.summary, info={**left.summary.info, "budget": budget}, spent=spent)
    text = printed(lambda out: report.print_study(replace(left, summary=summary), out), 120)
    assert "  trials  1 complete, 1 not finished\n" in text
    assert "  spent   0.25 hours, 0.4 device-hours, 1 of 1 in money\n" in text
    status = left.summary.status
    assert "not finished" in printed(lambda out: report.print_trial(left.trial(1), out, study=status), 120)
    running = replace(left, summary=replace(summary, status="RUNNING", info=INFO))
    text = printed(lambda out: report.print_study(running, out), 120)
    assert "1 complete, 1 running" in text
    assert "  spent   0.25 hours, 0.4 device-hours\n" in text


def test_a_study_in_words() -> None:
    text = printed(lambda out: report.print_study(study(), out), 120)
    assert "15 complete, 1 stopped early, 1 failed" in text
    assert "  1 failed (trial 16): diverged: loss\n" in text
    assert "package:minilm/model" in text
    assert f"hypervolume {study().front().hypervolume:.4f}" in text


@pytest.mark.parametrize("number", [3, 15, 16, 18])
def test_a_trial_in_words(number: int) -> None:
    text = printed(lambda out: report.print_trial(study().trial(number), out), 100)
    expected = {
        3: ["complete", "prefix.length    4", "ffn.scale", "run-3", "24,000"],
        15: ["stopped early", "1    0.6700"],
        16: ["failed", "at step 3"],
        18: ["reference majority", "accuracy"],
    }
    for words in expected[number]:
        assert words in text


def test_files_of_a_front(tmp_path: Path) -> None:
    files = report.write_front(study(), tmp_path / "new")
    assert [file.name for file in files] == ["front.json", "front.csv", "front.png"]
    rows = json.loads(files[0].read_text())
    assert [row["trial"] for row in rows] == list(range(8))
    assert list(csv.DictReader(files[1].open()))[3]["trial"] == "3"
    assert files[1].read_text().splitlines()[0].split(",") == list(ROW)
    assert size_of_png(files[2])[0] >= 1200


def size_of_png(file: Path) -> tuple[int, int]:
    data = file.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


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
        report.plot(what, tmp_path / "front.png")
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
    rows = [replace(trial.row, believed=low) if trial in plain.front() else trial.row for trial in plain.trials]
    axes = drawn(Study(plain.summary, tuple(rows), plain.uri)).axes[0]
    bottom, top = axes.get_ylim()
    assert bottom < 0.26 < 0.36 < top


def test_a_stopped_trial_stands_at_its_last_rung(drawn: Any) -> None:
    axes = drawn(study()).axes[0]
    marks = next(group for group in axes.collections if str(group.get_label()).startswith("stopped early"))
    assert marks.get_offsets().tolist() == [[50_000, 0.67]]


def test_labels_overlap_neither_each_other_nor_the_members(drawn: Any) -> None:
    figure = drawn(study())
    axes = figure.axes[0]
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts if text.get_text()]
    assert len(boxes) == 10
    assert not [1 for one, other in combinations(boxes, 2) if one.overlaps(other)]
    members = axes.transData.transform([(t.cost, t.score) for t in study().front()])
    assert not [1 for box in boxes for point in members if box.contains(*point)]


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


@pytest.mark.parametrize(
    "records",
    [
        [],
        [trial(0, 0.5, 100)],
        [trial(0, 0.5, 0)],
        [trial(0, math.nan, 100), trial(1, 0.5, 200)],
        [RECORDS[-1]],
        [replace(RECORDS[-4], measurements=None)],
        [trial(n, 0.5 + n / 1000, 1000 + n) for n in range(60)],
    ],
    ids=["none", "one", "one of no cost", "nan", "a reference only", "stopped without measurements", "sixty in a heap"],
)
@pytest.mark.parametrize(
    "objectives",
    [
        {},
        {"score": "loss", "cost": "seconds"},
        {"second_cost": "latency_ms"},
        {"score": "loss", "cost": "latency_ms", "second_cost": "stored_parameters"},
        {"second_cost": "seconds"},
    ],
    ids=lambda objectives: " ".join(objectives.values()) or "as ever",
)
def test_every_study_can_be_drawn(
    records: list[TrialRecord], objectives: dict[str, str], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    what = study(records, **objectives)
    size_of_png(report.plot(what, tmp_path / "deep" / "front.png"))
    assert not [warning for warning in recwarn if "matplotlib" in str(warning.filename) or "plot" in warning.filename]


def test_tables_do_not_load_matplotlib() -> None:
    code = "import sys; from search import report; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_second_cost_has_a_column_beside_the_first() -> None:
    what = study(second_cost="latency_ms")
    lines = printed(lambda out: report.print_front(what, what.front(), out), 120).splitlines()
    cells = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert cells["trial"][-1] == "ms"
    assert (cells["0"][-4:], cells["full"][-1]) == (["3,000", "0.013", "10", "8"], "9.7")


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
