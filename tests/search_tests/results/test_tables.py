"""Tables, and the files of a front: on studies made by hand, without a store."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from handmade import INFO, RECORDS, failed, printed, size_of_png, study, trial

from petl.measurements import Measurements
from search.results import tables
from search.results.files import write_front
from search.results.query import ROW
from search.tracking.schema import StudyInfo
from search.trials.record import Spent, State


@pytest.mark.parametrize("width", [200, 80])
def test_no_number_is_cut(width: int) -> None:
    text = printed(lambda out: tables.print_front(study(), study().front(), out), width)
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
    text = printed(lambda out: tables.print_front(what, what.front(), out), 80)
    assert cost.rpartition("_")[2] in text
    assert next(line for line in text.splitlines() if line.split()[:2] == ["0", "prefix"]).split()[-1] == shown
    assert " 22,713,217 " in text
    assert "majority" in text


@pytest.mark.parametrize("cost", ["stored_parameters", "seconds"])
def test_a_cost_that_is_shown_anyway_is_shown_once(cost: str) -> None:
    what = study(cost=cost)
    text = printed(lambda out: tables.print_front(what, what.front(), out), 120)
    assert next(line for line in text.splitlines() if "trial" in line).split()[-1] == "seconds"


def test_what_was_not_measured_is_left_out() -> None:
    nothing = {"latency_ms": None, "peak_memory_mb": None, "tokens_per_second": None}
    records = [replace(one, measurements=replace(one.measurements, **nothing)) for one in (RECORDS[0], RECORDS[-1])]
    what = study([*records, RECORDS[1]], cost="latency_ms")
    assert [trial.number for trial in what.front()] == [1]
    assert "latency" not in printed(lambda out: tables.print_trial(what.trial(0), out), 100)
    limits = replace(what.summary.info, constraints={"latency_ms": 9.0})
    limited = replace(what, summary=replace(what.summary, info=limits))
    assert [trial.number for trial in limited.front(cost="stored_parameters")] == [1]  # not known to keep the limit


def test_references_are_named() -> None:
    text = printed(lambda out: tables.print_front(study(), study().front(), out), 120)
    lines = text.splitlines()
    assert next(line for line in lines if line.strip().startswith("full")).split()[0] == "full"
    assert any("majority" in line for line in lines)


@pytest.mark.parametrize("show", [tables.print_study, tables.print_ending])
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
    monkeypatch.delenv("PETL_SEARCH_HOME")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////default/mlflow.db")
    what = replace(study(), uri=uri)
    text = printed(lambda out: tables.print_ending(what, out), 80)
    commands = [line.split("   ")[0].strip() for line in text.splitlines() if "petl-search" in line]
    assert commands == [
        f"petl-search front demo --max-parameters 1%{option}",
        f"petl-search show demo 5{option}",
        f"petl-search export demo 5 my-adapter{option}",
        f"petl-search ui{option}",
    ]


def test_a_server_is_opened_in_a_browser() -> None:
    what = replace(study(), uri="http://host:5000")
    assert "petl-search ui" not in printed(lambda out: tables.print_ending(what, out), 80)


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
    named = replace(named, summary=replace(named.summary, name=f"study {brackets}", info=StudyInfo.from_dict(info)))
    empty = replace(named, everything=named.everything[1:2])
    for show, words in (
        (lambda out: tables.print_study(named, out), ["study", "model", "task", "mam", "OSError:", "full"]),
        (lambda out: tables.print_ending(named, out), ["front of study", "front 'study", "mam", "full"]),
        (lambda out: tables.print_ending(empty, out), ["front of study", "OSError:"]),
        (lambda out: tables.print_trial(named.trial(0), out), ["mam"]),
        (lambda out: tables.print_trial(named.trial(1), out), ["OSError:"]),
        (lambda out: out.print(tables.studies_table([named])), ["study", "model", "task"]),
    ):
        text = printed(show, 200)
        for word in words:
            assert f"{word} {brackets}" in text


def test_a_front_that_limits_leave_empty_says_so() -> None:
    what = study()
    text = printed(lambda out: tables.print_front(what, what.front(max_parameters=1), out), 120)
    assert "no complete trial is within stored_parameters <= 1 (15 complete, 1 stopped early, 1 failed)." in text
    assert "the smallest of them stores 3,000 parameters" in text


def test_what_a_study_has_spent_and_what_it_left() -> None:
    """By its own clock; at 2.5 an hour, 0.4 device-hours are 1."""
    left = study([trial(0, 0.5, 100), trial(1, 0.5, 100, state=State.RUNNING, measurements=None)])
    budget = {"trials": 24, "hours": None, "money": 1.0, "price_per_device_hour": 2.5}
    info = StudyInfo.from_dict({**INFO, "budget": budget})
    summary = replace(left.summary, info=info, spent=Spent(hours=0.25, device_hours=0.4))
    text = printed(lambda out: tables.print_study(replace(left, summary=summary), out), 120)
    assert "  trials  1 complete, 1 not finished\n" in text
    assert "  spent   0.25 hours, 0.4 device-hours, 1 of 1 in money\n" in text
    status = left.summary.status
    assert "not finished" in printed(lambda out: tables.print_trial(left.trial(1), out, study=status), 120)
    running = replace(left, summary=replace(summary, status="RUNNING", info=StudyInfo.from_dict(INFO)))
    text = printed(lambda out: tables.print_study(running, out), 120)
    assert "1 complete, 1 running" in text
    assert "  spent   0.25 hours, 0.4 device-hours\n" in text


def test_a_study_in_words() -> None:
    text = printed(lambda out: tables.print_study(study(), out), 120)
    assert "15 complete, 1 stopped early, 1 failed" in text
    assert "  1 failed (trial 16): diverged: loss\n" in text
    assert "package:minilm/model" in text
    assert f"hypervolume {study().front().hypervolume:.4f}" in text


@pytest.mark.parametrize("number", [3, 15, 16, 18])
def test_a_trial_in_words(number: int) -> None:
    text = printed(lambda out: tables.print_trial(study().trial(number), out), 100)
    expected = {
        3: ["complete", "prefix.length    4", "ffn.scale", "run-3", "24,000"],
        15: ["stopped early", "1    0.6700"],
        16: ["failed", "at step 3"],
        18: ["reference majority", "accuracy"],
    }
    for words in expected[number]:
        assert words in text


def test_files_of_a_front(tmp_path: Path) -> None:
    files = write_front(study(), tmp_path / "new")
    assert [file.name for file in files] == ["front.json", "front.csv", "front.png", "report.html"]
    rows = json.loads(files[0].read_text())
    assert [row["trial"] for row in rows] == list(range(8))
    assert list(csv.DictReader(files[1].open()))[3]["trial"] == "3"
    assert files[1].read_text().splitlines()[0].split(",") == [*ROW, "dominated_by"]
    assert size_of_png(files[2])[0] >= 1200


def test_tables_do_not_load_matplotlib() -> None:
    code = "import sys; from search.results import tables; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_second_cost_has_a_column_beside_the_first() -> None:
    what = study(second_cost="latency_ms")
    lines = printed(lambda out: tables.print_front(what, what.front(), out), 120).splitlines()
    cells = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert cells["trial"][-1] == "ms"
    assert (cells["0"][-4:], cells["full"][-1]) == (["3,000", "0.013", "10", "8"], "9.7")
