"""References that dominate members of a front are named in words, wherever the front is shown."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from handmade import BASE, printed, size_of_png, study, trial

from petl.head import LINEAR_HEAD
from petl.measurements import Measurements
from search.results import tables
from search.results.files import write_front
from search.tracking.note import note
from search.trials.record import TrialRecord

DESIGNS = [trial(0, 0.60, 0), trial(1, 0.65, 3_000), trial(2, 0.72, 90_000)]


def reference(number: int, name: str, accuracy: float, stored: int = 0, **changes: Any) -> TrialRecord:
    baseline = {"configuration": None} if name in ("majority", "probe", "untuned") else {}
    return trial(number, accuracy, stored, reference=name, **baseline, **changes)


def front_lines(*records: TrialRecord, **objectives: str) -> list[str]:
    return study([*DESIGNS, *records], **objectives).front().beaten


def test_a_probe_that_is_better_than_some_is_named_with_them() -> None:
    [line] = front_lines(reference(3, "probe", 0.70), reference(4, "majority", 0.50))
    assert line == (
        "probe (accuracy 0.7000) is at least as good as 2 of 3 members, at no greater cost (trial 0, 1): a linear "
        "classifier on the frozen model is the better choice as it is"
    )


def test_equal_in_all_is_not_better() -> None:
    assert front_lines(reference(3, "probe", 0.60)) == []
    assert len(front_lines(reference(3, "probe", 0.65))) == 1  # as good as trial 1, for less


def test_a_reference_that_costs_more_dominates_nothing() -> None:
    assert front_lines(reference(3, "full", 0.99, BASE)) == []
    assert "train that design in their place" in front_lines(reference(3, "head_only", 0.61))[0]


def test_what_a_baseline_does_not_cost_is_no_greater() -> None:
    unmeasured = Measurements(accuracy=0.70, latency_ms=None)
    [line] = front_lines(reference(3, "probe", 0.70, measurements=unmeasured), cost="latency_ms")
    assert "1 of 2 members" in line or "members, at no greater cost" in line
    known = replace(reference(3, "full", 0.99), measurements=unmeasured)
    assert front_lines(known, cost="latency_ms") == []  # that of a design is not known


def test_every_view_says_it(tmp_path: Path) -> None:
    what = study([*DESIGNS, reference(3, "probe", 0.99)])
    sentence = "probe (accuracy 0.9900) is at least as good as 3 of 3 members"
    assert sentence in printed(lambda out: tables.print_front(what, what.front(), out), 400)
    front = what.front()
    page = note(front.to_rows(), what.reference_rows(), "1", what.objectives)
    assert f"**{sentence}" in page
    assert [row["dominated_by"] for row in json.loads(json.dumps(front.to_rows()))] == [["probe"]] * 3
    files = {file.suffix: file for file in write_front(what, tmp_path / "with")}
    assert [row["dominated_by"] for row in csv.DictReader(files[".csv"].open())] == ["probe"] * 3
    plain = {file.suffix: file for file in write_front(study(DESIGNS), tmp_path / "without")}
    assert files[".png"].read_bytes() != plain[".png"].read_bytes()
    assert size_of_png(files[".png"]) == size_of_png(plain[".png"])


@pytest.mark.parametrize(
    ("records", "offered"),
    [
        ([], "export demo 2 my-adapter"),
        ([reference(3, "majority", 0.99)], ""),
        ([reference(3, "probe", 0.99)], ""),  # of a version that did not keep it
        (
            [reference(3, "probe", 0.99, measurements=Measurements(accuracy=0.99, head_parameters=99))],
            "export demo 3 my-probe",
        ),
    ],
)
def test_what_a_baseline_beats_is_not_offered(records: list[TrialRecord], offered: str) -> None:
    what = study([*DESIGNS, *records])
    text = printed(lambda out: tables.print_ending(what, out), 200)
    exports = [line.partition("petl-search ")[2] for line in text.splitlines() if "export" in line]
    assert [export.partition(" --uri")[0] for export in exports] == ([offered] if offered else [])


def test_a_probe_that_heads_start_from_is_a_candidate() -> None:
    started = [replace(one, configuration=replace(one.configuration, head=LINEAR_HEAD)) for one in DESIGNS]
    front = study([*started, reference(3, "probe", 0.70)]).front()
    assert [member.number for member in front] == [3, 2]
    assert front.beaten == []
    assert front.best(within=0.02).name == "probe"
    assert [member.number for member in study([*DESIGNS, reference(3, "probe", 0.70)]).front()] == [0, 1, 2]
    table = printed(lambda out: tables.print_front(study([*started, reference(3, "probe", 0.70)]), front, out), 200)
    assert any(line.split()[:2] == ["3", "probe"] for line in table.splitlines())


def test_settings_that_tell_rows_apart_have_columns() -> None:
    rates = [1e-4, 3e-3, 1e-2]
    trained = [
        replace(
            one,
            configuration=replace(one.configuration, training=replace(one.configuration.training, learning_rate=rate)),
            measurements=replace(one.measurements, head_parameters=1_155),
        )
        for one, rate in zip(DESIGNS, rates, strict=True)
    ]
    text = printed(lambda out: tables.print_front(study(trained), study(trained).front(), out), 200)
    assert "learning" in text
    assert all(shown in text for shown in ("0.0001", "0.003", "0.01", "1,155"))
    assert "batch" not in text  # the same in all
    same = printed(lambda out: tables.print_front(study(DESIGNS), study(DESIGNS).front(), out), 200)
    assert "learning" not in same
