"""Pareto halving through everything real: trials that wait on the disk, workers that go on to the next trial."""

from __future__ import annotations

import io
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import studies
import yaml
from loop import OPTIONS, TRAINING, measured, plan
from loop import run as train_all
from mlflow import MlflowClient
from rich.console import Console

from petl.configuration import Configuration
from petl.presets import parse
from search.optimizer.budget import Budget, Meter
from search.optimizer.replication import Replication
from search.optimizer.rungs import Halving
from search.optimizer.search import Search
from search.results.query import Study, load_study
from search.storage.database import DatabaseError
from search.storage.folder import TrialFolder
from search.storage.locations import store_uri
from search.study.places import InterruptedStudy
from search.study.run import resume, run
from search.tracking.publisher import Publisher
from search.trials.record import Replicate, State
from search.trials.records import Records
from search.trials.report import Report
from search.trials.resolved import Enqueued
from search.workers.assignment import Assignment
from search.workers.tune import Bridge
from spaces.space import resolve

TRIALS = 6
HALVING = {
    "name": "halving",
    "eta": 2,
    "first_rung": 0.5,
    "waves": 1,
    "min_full": 1,
}  # 6 - 3 - 2 of 0.5, 1 and 2 epochs


@pytest.fixture(scope="module")
def content(home: Path) -> dict[str, Any]:
    return studies.study(
        home / "inputs",
        budget={"trials": TRIALS, "epochs": 2},
        references=["majority"],
        resources={"concurrent": 1},  # so that nothing depends on who is first
    )


def searched(home: Path, content: dict[str, Any], name: str, scheduler: dict[str, Any]) -> tuple[Study, str]:
    path = home / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**content, "study": name, "scheduler": scheduler}))
    console = Console(record=True, width=200, file=(home / f"{name}.txt").open("w"))
    return run(path, console=console), console.export_text()


@pytest.fixture(scope="module")
def paused(home: Path, content: dict[str, Any]) -> tuple[Study, str]:
    return searched(home, content, "paused", HALVING)


def test_rungs_are_filled_as_the_quotas_say(paused: tuple[Study, str]) -> None:
    study, said = paused
    assert {trial.state for trial in study.trials} == {State.COMPLETE, State.PRUNED}
    reached = sorted(max(trial.record.rungs) for trial in study.trials)
    assert reached == [0.5, 0.5, 0.5, 1.0, 2.0, 2.0]
    assert sum(trial.state is State.COMPLETE for trial in study.trials) == 2
    assert said.count("waits for its promotion") >= 4
    assert said.count("stopped early") == 4
    assert said.count(") starts") == TRIALS + 1  # and the reference
    assert said.count(") resumes") == said.count(") waits") - 4  # those that were stopped waited too


@pytest.mark.full("a search of its own; test_run has what is resumed")
def test_a_promoted_trial_is_trained_as_if_it_had_never_waited(
    paused: tuple[Study, str], home: Path, content: dict[str, Any]
) -> None:
    """Adapters bit for bit, and every score."""
    whole, _ = searched(home, content, "whole", {"name": "none"})
    beside = {trial.number: trial for trial in whole.trials}
    waited = [trial for trial in paused[0].trials if trial.state is State.COMPLETE]
    assert waited
    for trial in waited:
        other = beside[trial.number]
        assert trial.record.configuration == other.record.configuration
        assert trial.record.rungs[2.0] == other.record.rungs[2.0]
        files = [
            (home / "studies" / name / "trials" / f"{trial.number:04d}/result/adapter/adapter.safetensors").read_bytes()
            for name in ("paused", "whole")
        ]
        assert files[0] == files[1]


def test_closed_trials_leave_no_training_state(paused: tuple[Study, str], home: Path) -> None:
    for trial in paused[0].trials:
        assert TrialFolder(home / "studies/paused", trial.number).find("result") or trial.state is State.PRUNED
        assert not list((home / "studies/paused/trials" / f"{trial.number:04d}").glob("state-*"))


class Terminating(io.StringIO):
    """Has this process terminated when two trials wait."""

    def write(self, text: str) -> int:
        done = super().write(text)
        if ") waits" in text and self.getvalue().count(") waits") == 2:
            signal.raise_signal(signal.SIGTERM)
        return done


@pytest.mark.full("a search of its own")
def test_what_waits_is_there_after_an_interruption(
    paused: tuple[Study, str], home: Path, content: dict[str, Any]
) -> None:
    """MLflow shows who waits, and in the end all is as if nothing had happened."""
    path = home / "late.yaml"
    path.write_text(yaml.safe_dump({**content, "study": "late", "scheduler": HALVING}))
    with pytest.raises(InterruptedStudy):
        run(path, console=Console(file=Terminating(), width=200))
    waiting = [trial for trial in load_study("late").trials if trial.state is State.PAUSED]
    assert len(waiting) >= 2
    client = MlflowClient(store_uri(None))
    [experiment] = [each for each in client.search_experiments() if each.name.endswith("late")]
    status = [each.info.status for each in client.search_runs([experiment.experiment_id])]
    assert status.count("SCHEDULED") == len(waiting)
    assert "RUNNING" not in status
    folders = [home / "studies/late/trials" / f"{trial.number:04d}" for trial in waiting]
    assert all(list(folder.glob("state-*")) for folder in folders)

    resume("late", console=Console(quiet=True))
    over, whole = load_study("late").trials, paused[0].trials
    assert [(trial.state, trial.record.rungs) for trial in over] == [
        (trial.state, trial.record.rungs) for trial in whole
    ]


def test_a_trial_that_its_own_report_closes_is_told_of_once() -> None:
    """One of three goes on, the first, rather than to leave its worker idle; the others end as they report."""
    listener, records = Mock(), Records.in_memory()
    rule = Halving(epochs=3, eta=3, first_rung=1, trials=3, waves=1, min_full=0)
    search = Search(records, plan(rule=rule, budget=Budget(trials=3, concurrent=3)))
    bridge = Bridge(search, [listener], "accuracy")
    for tune_id in "abc":
        assert isinstance(bridge.next(tune_id), dict)
    first, second, third = (
        Report(validations=[{"epoch": 1.0, "scores": {"accuracy": score}}]) for score in (0.9, 0.2, 0.1)
    )
    assert bridge.reported("a", first)
    bridge.ended("a", replace(first, measurements=measured(search.records.get(0).configuration)))
    assert not bridge.reported("b", second)
    assert not bridge.reported("c", third)
    assert [call.args[0].number for call in listener.ended.call_args_list] == [0, 1, 2]
    assert [record.state for record in records.all()] == [State.COMPLETE, State.PRUNED, State.PRUNED]


def test_a_worker_is_told_of_the_twin_of_its_trial() -> None:
    configuration = Configuration(parse("bitfit"), TRAINING)
    chosen = plan(references={"bitfit": configuration}, enqueued=[Enqueued("", configuration)], budget=Budget(trials=1))
    bridge = Bridge(Search(Records.in_memory(), chosen), [], "accuracy")
    twins = []
    for tune_id in "ab":
        handed = bridge.next(tune_id)
        assert isinstance(handed, dict)
        twins.append(Assignment.from_json(handed["assignment"]).twin)
        bridge.ended(tune_id, Report(measurements=measured(configuration)))
    assert twins == [None, 0]


def test_one_that_its_patience_ended_at_a_rung_is_finished() -> None:
    """Its last report has that rung's score and the measurements: nothing is to be decided any more."""
    records = Records.in_memory()
    rule = Halving(epochs=9, eta=3, first_rung=1, trials=9, waves=1, min_full=1)
    space = resolve("unified", OPTIONS, replace(TRAINING, epochs=9))
    bridge = Bridge(Search(records, plan(space=space, rule=rule, budget=Budget(trials=9))), [], "accuracy")
    for tune_id in map(str, range(30)):
        if not isinstance(handed := bridge.next(tune_id), dict):
            break
        record = records.get(Assignment.from_json(handed["assignment"]).number)
        validations = [{"epoch": epoch, "scores": {"accuracy": 0.5 + record.number / 100}} for epoch in (1.0, 3.0)]
        if bridge.reported(tune_id, Report(validations=validations[:1])):
            whole = measured(record.configuration, epochs=9.0)
            last = Report(validations=validations, measurements=whole)
            assert bridge.reported(tune_id, last)
            bridge.ended(tune_id, last)
            assert records.get(record.number).state is State.COMPLETE
            assert records.get(record.number).rungs == {1.0: 0.5 + record.number / 100, 3.0: 0.5 + record.number / 100}
    assert [record.state for record in records.all()].count(State.COMPLETE) == 3


def test_replicates_whose_database_is_away_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    records, now = Records.in_memory(), [0.0]
    search = Search(records, plan(budget=Budget(trials=6)))
    train_all(search)
    meter = Meter(search.plan.budget, records, lambda: now[0])
    replicates = Replication(records, search.plan.budget, meter, seeds=3, extra=1.0)
    bridge = Bridge(replicates, [], "accuracy")
    assert isinstance(bridge.next("a"), dict)

    def away(*_: object) -> None:
        raise DatabaseError("the database is away")

    monkeypatch.setattr(records, "persist", away)
    now[0] = 61.0  # the time is put on record every minute
    assert bridge.reported("a", Report(validations=[{"epoch": 1.0, "scores": {"accuracy": 0.5}}]))
    assert bridge.cut_off


def test_what_a_killed_driver_left_of_closed_trials_is_removed(tmp_path: Path) -> None:
    """Two that wait are closed; one of them, and a replicate that was over, had not been tidied up."""
    records = Records.in_memory()
    search = Search(records, plan(budget=Budget(trials=3, concurrent=3)))
    for number in range(3):
        search.next(3)
        folder = TrialFolder(tmp_path, number)
        folder.begin("state-1")
        folder.commit("state-1")
    search.finish(0, stopped=True)
    search.finish(1, measured(records.get(1).configuration))
    replicate = Replicate(number=1, seed=2, failure="out of memory", ended=1.0)
    records.replicates = [replicate]
    TrialFolder(tmp_path, 1, 2).begin("state-1")
    Publisher(lambda *told: None, records, tmp_path).everything()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("state-1")}
    assert left == {"trials/0002/state-1"}  # which a resume goes on from
    assert not TrialFolder(tmp_path, 1, 2).path.exists()
