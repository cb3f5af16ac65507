"""Pareto halving through everything real: trials that wait on the disk, workers that go on to the next trial."""

from __future__ import annotations

import io
import signal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import studies
import yaml
from mlflow import MlflowClient
from rich.console import Console
from test_core import plan

from search.budget import Budget
from search.core import Search
from search.halving import Halving
from search.home import store_uri
from search.query import Study, load_study
from search.ray_tune import Bridge
from search.record import Records, State
from search.store import TrialFolder
from search.study import InterruptedStudy, resume, run

TRIALS = 6
HALVING = {"name": "halving", "eta": 2, "first": 0.5, "waves": 1, "least": 1}  # 6 - 3 - 2 of 0.5, 1 and 2 epochs


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
    assert said.count(") goes on") == said.count(") waits") - 4  # those that were stopped waited too


def test_a_promoted_trial_is_trained_as_if_it_had_never_waited(
    paused: tuple[Study, str], home: Path, content: dict[str, Any]
) -> None:
    """Adapters bit for bit, and every score."""
    whole, _ = searched(home, content, "whole", {"name": "none"})
    beside = {trial.trial: trial for trial in whole.trials}
    waited = [trial for trial in paused[0].trials if trial.state is State.COMPLETE]
    assert waited
    for trial in waited:
        other = beside[trial.trial]
        assert trial.record.configuration == other.record.configuration
        assert trial.record.rungs[2.0] == other.record.rungs[2.0]
        files = [
            (home / "studies" / name / "trials" / f"{trial.trial:04d}/result/adapter/adapter.safetensors").read_bytes()
            for name in ("paused", "whole")
        ]
        assert files[0] == files[1]


def test_closed_trials_leave_no_training_state(paused: tuple[Study, str], home: Path) -> None:
    for trial in paused[0].trials:
        assert TrialFolder(home / "studies/paused", trial.trial).find("result") or trial.state is State.PRUNED
        assert not list((home / "studies/paused/trials" / f"{trial.trial:04d}").glob("state-*"))


class Terminating(io.StringIO):
    """Has this process terminated when two trials wait."""

    def write(self, text: str) -> int:
        done = super().write(text)
        if ") waits" in text and self.getvalue().count(") waits") == 2:
            signal.raise_signal(signal.SIGTERM)
        return done


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
    folders = [home / "studies/late/trials" / f"{trial.trial:04d}" for trial in waiting]
    assert all(list(folder.glob("state-*")) for folder in folders)

    resume("late", console=Console(quiet=True))
    over, whole = load_study("late").trials, paused[0].trials
    assert [(trial.state, trial.record.rungs) for trial in over] == [
        (trial.state, trial.record.rungs) for trial in whole
    ]


def test_a_trial_that_its_own_report_closes_is_told_of_once() -> None:
    """One of three goes on, the first, rather than to leave its worker idle; the others are over as they report."""
    listener, records = Mock(), Records.in_memory()
    rule = Halving(epochs=3, eta=3, first=1, trials=3, waves=1, least=0)
    search = Search(records, plan(rule=rule, budget=Budget(trials=3, concurrent=3)))
    bridge = Bridge(search, [listener], "accuracy")
    for tune_id in "abc":
        assert isinstance(bridge.next(tune_id), dict)
    went_on = [
        bridge.heard(tune_id, {"validations": [{"epoch": 1.0, "scores": {"accuracy": score}}]})
        for tune_id, score in (("a", 0.9), ("b", 0.2), ("c", 0.1))
    ]
    assert went_on == [True, False, False]
    assert [call.args[0].number for call in listener.ended.call_args_list] == [1, 2]
