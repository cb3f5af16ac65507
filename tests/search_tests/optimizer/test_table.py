"""Tables of finished studies: written, read, and searched again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop import BACKBONE, OPTIONS, TRAINING, measured, plan, score
from typer.testing import CliRunner

from search.cli import app
from search.optimizer.budget import Budget
from search.optimizer.search import Search
from search.optimizer.simulation.table import Table, TableError
from search.optimizer.steps import Start
from search.results.replays import read_table, write_table
from search.storage.studies import create_study
from search.trials.pareto import hypervolume
from search.trials.records import Records, RecordsError
from spaces.space import decode, resolve

TRIALS = 30


def study(records: Records) -> Records:
    """Trials in full that reported after each epoch, an epoch of ten seconds each, and a failed one."""
    search = Search(records, plan(budget=Budget(trials=TRIALS + 1), references={"majority": None}))
    while isinstance(step := search.next(1), Start):
        number, configuration = step.record.number, step.record.configuration
        if number == 5:
            search.finish(number, failure="out of memory")
            continue
        for epoch in (1.0, 2.0) if configuration else ():
            assert configuration
            search.report(number, epoch, score(configuration, epoch))
        search.finish(number, measured(configuration, seconds=30.0) if configuration else measured(None))
    return records


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    file = tmp_path_factory.mktemp("table") / "table.json"
    write_table(Table.of("made-up", study(Records.in_memory())), file)
    return read_table(file)


def test_a_table_has_what_was_trained_in_full(table: Table) -> None:
    assert len(table.rows) == TRIALS
    space = resolve("unified", OPTIONS, TRAINING)
    for row in table.rows:
        assert decode(space, row.coordinates, BACKBONE).configuration.key == row.configuration.key
        assert row.curve == {epoch: score(row.configuration, epoch) for epoch in (1.0, 2.0, 3.0)}
        assert table.count(row.configuration)["stored_parameters"] == row.measurements.stored_parameters


def test_every_trial_searched_again_is_the_whole_front(table: Table) -> None:
    """An exhaustive search finds all; its time is that of the trainings, shared by the workers."""
    found = table.search(sampler="random", scheduler="none", trials=400, workers=1, seed=0, options={})
    assert found.full == TRIALS
    assert found.share == pytest.approx(1)
    assert found.epochs == 3 * TRIALS
    assert found.seconds == pytest.approx(30 * TRIALS)
    shared = table.search(sampler="random", scheduler="none", trials=400, workers=3, seed=0, options={})
    assert shared.seconds == pytest.approx(10 * TRIALS)


def test_a_share_is_of_the_tables_hypervolume(table: Table) -> None:
    values = [(row.measurements.accuracy or 0.0, row.measurements.stored_parameters) for row in table.rows]
    seen = [(accuracy, math.log1p(stored / 1e3)) for accuracy, stored in values]
    reference = (float(np.quantile([accuracy for accuracy, _ in seen], 0.1)), max(cost for _, cost in seen))
    whole = hypervolume(seen, reference, ("maximize", "minimize"))
    part = hypervolume(seen[:6], reference, ("maximize", "minimize"))
    assert table.share_of([row.measurements for row in table.rows[:6]]) == pytest.approx(part / whole)
    assert table.share_of([]) == 0
    found = table.search(sampler="random", scheduler="none", trials=6, workers=1, seed=3, options={})
    assert found.full == 6
    assert 0 < found.share < 1


def test_rungs_between_the_epochs_of_a_curve_are_interpolated(table: Table) -> None:
    records = Records.in_memory()
    row = table.rows[0]
    record = records.create(row.configuration)
    at = [table.score(record, epoch) for epoch in (0.5, 1.0, 1.5, 3.0)]
    one, two, three = (score(row.configuration, epoch) for epoch in (1.0, 2.0, 3.0))
    assert at == pytest.approx([one, one, (one + two) / 2, three])


def test_the_command_compares_settings(table: Table, tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    write_table(table, file)
    asked = ["replay", str(file), "--sampler", "random", "--sampler", "front", "--seeds", "2", "--trials", "12"]
    shown = CliRunner().invoke(app, [*asked, "--scheduler", "none", "--scheduler", "halving", "--set", "eta=2"])
    assert shown.exit_code == 0, shown.output
    assert "replayed on the 30 trials of made-up" in shown.output
    assert shown.output.count("halving") == 2
    rows = json.loads(CliRunner().invoke(app, [*asked, "--scheduler", "halving", "--format", "json"]).output)
    assert {row["sampler"] for row in rows} == {"random", "front"}
    assert all(0 < row["share"] <= 1 and row["epochs"] < 36 for row in rows)


def test_wrong_inputs_are_said(table: Table, tmp_path: Path) -> None:
    for content, message in (
        ("{", "not a table"),
        ('{"format": 9}', "has format 9; this version reads 1"),
        ('{"format": 1, "rows": 3}', "not a table"),
    ):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(TableError, match=message):
            read_table(tmp_path / "bad.json")
    with pytest.raises(TableError, match="cannot be read: No such file"):
        read_table(tmp_path / "gone.json")
    with pytest.raises(TableError, match="study 'empty' has none"):
        Table.of("empty", Records.in_memory())
    with pytest.raises(TableError, match="cannot be written: No such file"):
        write_table(table, tmp_path / "no" / "such" / "table.json")
    with pytest.raises(TableError, match="cannot be written: Is a directory"):
        write_table(table, tmp_path)


def empty(data: Any) -> None:
    """No row, and no dimension, says where it lies."""
    data.update(dimensions={})
    for row in data["rows"]:
        row.update(coordinates={})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["rows"][3].update(curve=[]), "row 3 of the table lacks a curve"),
        (lambda data: data["rows"][2]["measurements"].pop("accuracy"), "row 2 of the table lacks accuracy"),
        (lambda data: data.update(objectives=["accuracy", "latency_ms"]), "row 0 of the table lacks latency_ms"),
        (lambda data: data["rows"][0]["coordinates"].update({"ffn.insertion": "sideways"}), "row 0 .*'sideways'"),
        (lambda data: data["rows"][1]["coordinates"].update({"ffn.size": 99_999}), "row 1 .*ffn.size = 99999"),
        (lambda data: data["rows"][1].pop("coordinates"), "not a table .*'coordinates' is missing"),
        (lambda data: data.update(dimensions={}), "row 0 .*which its dimensions do not"),
        (empty, "not a table .*without dimensions"),
        (lambda data: data.update(objectives=["accuracy", "beauty"]), "not a table"),
    ],
)
def test_tables_that_no_search_could_use_are_refused(
    table: Table, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    file = tmp_path / "table.json"
    write_table(table, file)
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(TableError, match=message):
        read_table(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--scheduler hyperband", "a scheduler is one of none, asha"),
        ("--sampler grid", "a sampler is one of random"),
        ("--set eta=0.5", "eta is at least 1.1; received 0.5"),
        ("--set eta=nan", "eta is at least 1.1; received nan"),
        ("--set first_rung=0", "is positive; received 0"),
        ("--set waves=1.5", "waves is a whole number; received 1.5"),
        ("--set speed=2", "--set takes OPTION=NUMBER, of eta: one in eta trains on"),
        ("--set waves=0", "waves is at least 1; received 0"),
        ("--scheduler none --scheduler asha --set waves=2", "no scheduler of none, asha takes waves"),
    ],
)
def test_wrong_settings_of_a_replay_are_said(table: Table, tmp_path: Path, options: str, message: str) -> None:
    file = tmp_path / "table.json"
    write_table(table, file)
    refused = CliRunner().invoke(app, ["replay", str(file), *options.split()])
    assert isinstance(refused.exception, TableError)
    assert message in str(refused.exception)


def test_options_of_halving_are_replayed(table: Table, tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    write_table(table, file)
    asked = ["replay", str(file), "--sampler", "random", "--trials", "12", "--seeds", "1", "--format", "json"]
    asked += ["--scheduler", "halving", "--scheduler", "none"]
    full = [
        {row["scheduler"]: row["full"] for row in json.loads(CliRunner().invoke(app, [*asked, *more]).output)}
        for more in (["--set", "min_full=2"], ["--set", "min_full=9"])
    ]
    assert full == [{"halving": 4, "none": 12}, {"halving": 9, "none": 12}]


def test_a_study_is_exported_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_DATABASE", f"sqlite:///{tmp_path}/records.db")
    study(create_study(f"sqlite:///{tmp_path}/records.db", "kept", ("accuracy", "stored_parameters")))
    done = CliRunner().invoke(app, ["export-table", "kept", str(tmp_path / "kept.json")])
    assert done.exit_code == 0, done.output
    assert "30 trials in" in done.output
    assert len(read_table(tmp_path / "kept.json").rows) == TRIALS
    monkeypatch.setenv("PETL_SEARCH_DATABASE", f"sqlite:///{tmp_path}/none.db")
    refused = CliRunner().invoke(app, ["export-table", "kept", str(tmp_path / "kept.json")])
    assert isinstance(refused.exception, RecordsError)
    assert "there is no study 'kept'" in str(refused.exception)
    assert not (tmp_path / "none.db").exists()


def test_a_table_of_three_objectives(tmp_path: Path) -> None:
    """Latency is a number of each trial's own, so that the front is one of three."""
    names = ("accuracy", "stored_parameters", "latency_ms")
    records = Records.in_memory(names)
    search = Search(records, plan(budget=Budget(trials=TRIALS)))
    while isinstance(step := search.next(1), Start):
        assert step.record.configuration
        latency = 1.0 + step.record.number * 7 % 10
        search.finish(step.record.number, measured(step.record.configuration, seconds=30.0, latency_ms=latency))
    file = tmp_path / "table.json"
    write_table(Table.of("three", records), file)
    table = read_table(file)
    assert table.names == names
    values = [
        (m.accuracy, math.log1p(m.stored_parameters / 1e3), m.latency_ms) for m in (r.measurements for r in table.rows)
    ]
    scores, stored, latencies = zip(*values, strict=True)
    reference = (float(np.quantile(scores, 0.1)), max(stored), max(latencies))
    directions = ("maximize", "minimize", "minimize")
    part, whole = (hypervolume(some, reference, directions) for some in (values[:6], values))
    assert table.share_of([row.measurements for row in table.rows[:6]]) == pytest.approx(part / whole)
    everything = table.search(sampler="random", scheduler="none", trials=400, workers=1, seed=0, options={})
    assert everything.share == pytest.approx(1)
    asked = ["replay", str(file), "--seeds", "1", "--trials", "12", "--scheduler", "halving", "--format", "json"]
    done = CliRunner().invoke(app, asked)
    assert {row["sampler"] for row in json.loads(done.output)} == {"random", "tpe", "nsga2"}
    refused = CliRunner().invoke(app, [*asked, "--sampler", "front"])
    assert isinstance(refused.exception, TableError)
    assert "with a second cost take random, tpe, nsga2, gp, auto" in str(refused.exception)
