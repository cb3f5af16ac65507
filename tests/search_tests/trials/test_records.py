"""The durable records: what is written is read back, at whatever moment the writer was killed."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from postgresql import PostgreSQL, postgresql  # noqa: F401 (a fixture)

from petl.configuration import Configuration, Training
from petl.measurements import Measurements
from petl.presets import parse
from search.storage.address import database
from search.storage.errors import DamagedStoreError
from search.storage.studies import (
    create_study,
    delete_study,
    open_study,
    study_begun,
    study_exists,
    study_names,
)
from search.trials.record import Proposal, Rejected, State, TrialRecord
from search.trials.records import Records, RecordsError

OBJECTIVES = ("accuracy", "stored_parameters")
CONFIGURATION = Configuration(parse("mam:length=4,size=8"), Training(epochs=2.5), 3)
MEASURED = Measurements(accuracy=0.75, loss=0.5, stored_parameters=1234, seconds=9.5, epochs=2.5)
DISTRIBUTIONS = {"ffn.size": IntDistribution(0, 5), "rate": FloatDistribution(1e-4, 1e-2, log=True)}
ORIGIN = Proposal(
    coordinates={"ffn.size": 2, "rate": 1e-3},
    distributions=DISTRIBUTIONS,
    counts={"stored_parameters": 1234.0},
    rejected=[
        Rejected(
            coordinates={"ffn.size": 5, "rate": 2e-3},
            distributions=DISTRIBUTIONS,
            counts={"stored_parameters": 9e9},
        ),
        Rejected(
            coordinates={"kind": "b"},
            distributions={"kind": CategoricalDistribution(("a", "b"))},
            counts={},
            twin=0,
        ),
    ],
)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return database(server.url(server.database()))


def test_everything_is_read_back(url: str) -> None:
    records = create_study(url, "demo", OBJECTIVES)
    before = time.time()
    records.create(None, reference="majority")
    records.create(CONFIGURATION, {"ffn.size": 8, "rate": 1e-3}, ORIGIN, name="mam:length=4,size=8")
    records.rung(1, 1.0, 0.5)
    records.rung(1, 1 / 3, math.nan, stop=True)
    records.create(CONFIGURATION)
    records.close(0, State.COMPLETE, Measurements(accuracy=0.4))
    records.close(1, State.FAIL, MEASURED, "diverged")
    records.close(2, State.COMPLETE, MEASURED)
    records.set_info("anything", {"precision": "bf16", "rows": [1, 2]})
    again = open_study(url, "demo")
    assert repr(again.all()) == repr(records.all())  # a NaN equals only its text
    first, second, third = again.all()
    assert (first.reference, first.configuration, first.params) == ("majority", None, {})
    assert first.started is not None
    assert third.ended is not None
    assert before - 1 <= first.started <= third.ended <= time.time() + 1
    assert second.configuration == CONFIGURATION
    assert second.params == {"ffn.size": 8, "rate": 1e-3}
    assert second.name == "mam:length=4,size=8"
    assert list(second.rungs) == [1.0, 1 / 3]
    assert math.isnan(second.rungs[1 / 3])
    assert (second.state, second.failure, second.measurements) == (State.FAIL, "diverged", MEASURED)
    assert (third.state, third.measurements) == (State.COMPLETE, MEASURED)
    assert again.proposal(1) == ORIGIN
    assert again.stopped_at(1) == 1 / 3
    assert again.stopped_at(2) is None
    assert again.info("anything") == {"precision": "bf16", "rows": [1, 2]}
    assert again.info("absent", 7) == 7
    assert [objective.name for objective in again.objectives] == list(OBJECTIVES)


def test_optuna_reads_the_study(url: str) -> None:
    records = create_study(url, "demo", OBJECTIVES)
    for state in (State.COMPLETE, State.PRUNED, State.FAIL):
        number = records.create(CONFIGURATION, {}, ORIGIN).number
        records.close(number, state, MEASURED)
    records.create(CONFIGURATION, {}, ORIGIN)
    study = optuna.load_study(study_name="demo", storage=url)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert [trial.values for trial in study.trials] == [[0.75, 1234.0], None, None, None]
    assert all(trial.params == ORIGIN.coordinates for trial in study.trials)


def test_the_first_end_stays() -> None:
    records = Records.in_memory(OBJECTIVES)
    records.create(CONFIGURATION)
    closed = records.close(0, State.COMPLETE, MEASURED)
    assert records.close(0, State.FAIL, failure="late") == closed
    assert records.get(0) == closed


def test_a_known_rung_stays() -> None:
    records = Records.in_memory(OBJECTIVES)
    records.create(CONFIGURATION)
    records.rung(0, 1.0, 0.5)
    records.rung(0, 1.0, 0.9, stop=True)
    assert records.get(0).rungs == {1.0: 0.5}
    assert records.stopped_at(0) is None


@pytest.mark.parametrize(
    "measurements",
    [None, Measurements(loss=0.5), Measurements(accuracy=math.nan), Measurements(accuracy=math.inf)],
)
def test_a_complete_trial_has_its_objectives(measurements: Measurements | None) -> None:
    records = Records.in_memory(OBJECTIVES)
    records.create(CONFIGURATION)
    with pytest.raises(RecordsError, match="finite accuracy and stored_parameters; trial 0"):
        records.close(0, State.COMPLETE, measurements)
    assert records.get(0).state is State.RUNNING


def test_what_cannot_be_asked_for() -> None:
    records = Records.in_memory(OBJECTIVES)
    with pytest.raises(RecordsError, match="has 0 trials; received number 0"):
        records.get(0)
    records.create(CONFIGURATION)
    with pytest.raises(RecordsError, match="received RUNNING"):
        records.close(0, State.RUNNING)
    records.close(0, State.FAIL, failure="x")
    with pytest.raises(RecordsError, match="trial 0 is FAIL"):
        records.rung(0, 1.0, 0.5)


def test_studies_have_names(url: str) -> None:
    assert not study_exists(url, "demo")
    create_study(url, "demo", OBJECTIVES)
    create_study(url, "other", ("loss", "seconds"))
    assert study_names(url) == ["demo", "other"]
    with pytest.raises(RecordsError, match="the study 'demo' exists already"):
        create_study(url, "demo", OBJECTIVES)
    delete_study(url, "demo")
    assert not study_exists(url, "demo")
    with pytest.raises(RecordsError, match="no study 'demo'; there are: other"):
        open_study(url, "demo")
    with pytest.raises(RecordsError, match="no study 'demo'"):
        delete_study(url, "demo")


def test_a_study_whose_writer_was_killed_at_its_birth_is_none(url: str) -> None:
    """Between Optuna's row and ours the study has no objectives."""
    RDBStorage(url).create_new_study([optuna.study.StudyDirection.MAXIMIZE] * 2, "demo")
    assert not study_exists(url, "demo")
    records = create_study(url, "demo", OBJECTIVES)
    records.create(CONFIGURATION)
    assert len(open_study(url, "demo").all()) == 1


@pytest.mark.parametrize("state", [State.COMPLETE, State.PRUNED, State.FAIL])
def test_an_outcome_without_its_state_is_told_on_opening(
    url: str, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = create_study(url, "demo", OBJECTIVES)
    records.create(CONFIGURATION)
    monkeypatch.setattr(Records, "_set_state", lambda self, number, state: None)  # killed in between
    records.close(0, state, MEASURED)
    monkeypatch.undo()
    record = open_study(url, "demo").get(0)
    assert (record.state, record.measurements) == (state, MEASURED)
    assert optuna.load_study(study_name="demo", storage=url).trials[0].state.name == state


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("DELETE FROM study_user_attributes WHERE key = 'objectives' AND study_id = 1", "KeyError: 'objectives'"),
        ("UPDATE study_user_attributes SET value_json = '[7' WHERE study_id = 1", "JSONDecodeError: "),
        ('UPDATE study_user_attributes SET value_json = \'["x", "y"]\' WHERE study_id = 1', "x"),
    ],
)
def test_a_damaged_study_is_in_the_way_of_no_other(tmp_path: Path, damage: str, reason: str) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    for name in ("damaged", "whole"):
        create_study(url, name, OBJECTIVES).seconds = 7.0
    with closing(sqlite3.connect(tmp_path / "store.db")) as database, database:
        assert database.execute(damage).rowcount
    assert study_names(url) == ["damaged", "whole"]
    assert not study_begun(url, "whole")
    assert open_study(url, "whole", writes=False).seconds == 7.0
    assert create_study(url, "new", OBJECTIVES).all() == []
    said = rf"the records of study 'damaged' in .*store\.db are damaged, .*{reason}.* Put a copy of the database back"
    with pytest.raises(DamagedStoreError, match=said):
        open_study(url, "damaged")
    with pytest.raises(RecordsError, match="exists already"):
        create_study(url, "damaged", OBJECTIVES)
    delete_study(url, "damaged")
    assert study_names(url) == ["whole", "new"]


def test_a_fault_of_ours_is_not_told_as_damage(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create_study(url, "demo", OBJECTIVES)

    def faulty(*_: object, **options: object) -> None:
        raise AttributeError("of ours")

    monkeypatch.setattr(RDBStorage, "__init__", faulty)
    with pytest.raises(AttributeError, match="of ours"):
        open_study(url, "demo")


WRITER = """
import sys
from search.storage.studies import open_study
from search.trials.record import State
from petl.configuration import Configuration
from petl.design import Design
from petl.measurements import Measurements

records = open_study(sys.argv[1], "demo")
print("ready", flush=True)
while True:
    number = records.create(Configuration(Design(), seed=len(records.all())), {"a": 1}).number
    records.rung(number, 1.0, 0.5)
    records.close(number, State.COMPLETE, Measurements(accuracy=number / 1000, stored_parameters=number))
    print(number, flush=True)
"""


def test_a_trial_that_waits_is_paused_until_it_is_promoted(url: str) -> None:
    records = create_study(url, "demo", OBJECTIVES)
    records.create(CONFIGURATION)
    records.rung(0, 1.0, 0.5, pause=True)
    again = open_study(url, "demo")
    assert again.get(0).state is State.PAUSED
    with pytest.raises(RecordsError, match="reported by a running trial; trial 0 is PAUSED"):
        again.rung(0, 2.0, 0.6)
    assert again.promote(0).state is State.RUNNING
    assert again.get(0).rungs == {1.0: 0.5}
    with pytest.raises(RecordsError, match="a paused trial is promoted; trial 0 is RUNNING"):
        again.promote(0)
    again.rung(0, 2.0, 0.6, pause=True)
    with pytest.raises(RecordsError, match="received PAUSED"):
        again.close(0, State.PAUSED)
    assert again.close(0, State.PRUNED).state is State.PRUNED
    assert open_study(url, "demo").get(0).rungs == {1.0: 0.5, 2.0: 0.6}


def test_who_only_reads_ends_no_trial(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any moment: an outcome that its driver is about to tell Optuna stays the driver's."""
    records = create_study(url, "demo", OBJECTIVES)
    records.create(CONFIGURATION)
    tell = records._set_state

    def read_first(number: int, state: State) -> TrialRecord:
        assert open_study(url, "demo", writes=False).get(0).state is State.RUNNING
        return tell(number, state)

    monkeypatch.setattr(records, "_set_state", read_first)
    measured = Measurements(accuracy=0.5, stored_parameters=1)
    assert records.close(0, State.COMPLETE, measured).state is State.COMPLETE


def test_a_killed_writer_leaves_a_whole_study(url: str) -> None:
    """What it had said was finished is there; at most the last trial is open, and it is whole."""
    create_study(url, "demo", OBJECTIVES)
    for delay in (0.05, 0.12, 0.31):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), url],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
        said = int(writer.stdout.readline())
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        said = max([said, *(int(line) for line in writer.stdout.read().split())])
        writer.wait()
        records = open_study(url, "demo")
        *closed, last = records.all()
        assert [record.number for record in records.all()] == list(range(len(closed) + 1))
        assert len(closed) >= said
        for record in closed:
            assert record.state is State.COMPLETE
            assert record.measurements == Measurements(accuracy=record.number / 1000, stored_parameters=record.number)
        assert last.configuration is not None
        assert last.params == {"a": 1}
        if last.state is State.RUNNING:
            records.close(
                last.number,
                State.COMPLETE,
                Measurements(accuracy=last.number / 1000, stored_parameters=last.number),
            )


def test_three_objectives_are_read_back(url: str) -> None:
    records = create_study(url, "three", (*OBJECTIVES, "latency_ms"))
    records.create(None, reference="majority")
    records.create(CONFIGURATION)
    records.close(0, State.COMPLETE, Measurements(accuracy=0.4))
    with pytest.raises(RecordsError, match="finite accuracy and stored_parameters and latency_ms; trial 1"):
        records.close(1, State.COMPLETE, MEASURED)
    records.close(1, State.COMPLETE, replace(MEASURED, latency_ms=3.5))
    again = open_study(url, "three")
    assert [objective.name for objective in again.objectives] == [*OBJECTIVES, "latency_ms"]
    assert again.all() == records.all()
    kept = again._storage.get_all_trials(again._study_id)
    assert [trial.values for trial in kept] == [[0.4, 0.0, 0.0], [0.75, 1234.0, 3.5]]
    assert [str(direction.name) for direction in again._storage.get_study_directions(again._study_id)] == [
        "MAXIMIZE",
        "MINIMIZE",
        "MINIMIZE",
    ]


def test_a_study_of_before_there_was_a_second_cost_goes_on(tmp_path: Path) -> None:
    """As Optuna's own rows have it: two directions, and the pair of names as the study's attribute."""
    url = f"sqlite:///{tmp_path}/store.db"
    storage = RDBStorage(url)
    study = storage.create_new_study(
        [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE], "old"
    )
    storage.set_study_user_attr(study, "objectives", ["accuracy", "stored_parameters"])
    attributes = {
        "configuration": CONFIGURATION.to_dict(), "params": {}, "reference": None, "name": "", "counts": {},
        "asides": [], "token": "a",
        "outcome": {"state": "COMPLETE", "measurements": MEASURED.to_dict(), "failure": None},
    }  # fmt: skip
    storage.create_new_trial(
        study,
        optuna.trial.create_trial(state=optuna.trial.TrialState.COMPLETE, values=[0.75, 1234.0], user_attrs=attributes),
    )
    records = open_study(url, "old")
    assert [objective.name for objective in records.objectives] == list(OBJECTIVES)
    assert records.get(0).measurements == MEASURED
    records.create(CONFIGURATION)
    assert records.close(1, State.COMPLETE, MEASURED).state is State.COMPLETE
