"""SIGKILL of drivers and workers at random moments: nothing lost, nothing repeated, nothing left running."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import studies
import yaml
from mlflow.tracking import MlflowClient
from scope import sampled
from survival import Kill, Victim, finished, left_running, progress

from search.results.query import load_study
from search.trials.record import State

SEED = int(os.environ.get("PETL_KILL_SEED", "0"))
# A random search without rungs can be compared with an undisturbed one, bit for bit; what asha and a
# GP decide depends on who finishes first.
PLAIN = {"scheduler": {"name": "none"}, "sampler": {"name": "random"}}
CLEVER = {"scheduler": {"name": "asha"}, "sampler": {"name": "gp"}}
TRIALS = len(sampled("trials of a study that is killed", range(8), lambda number: number < 4))
# How often a driver is killed in one study: a plain one, and one with everything that has a state. What takes another
# search, and a minute in which Ray's agents notice that their driver is gone, is left to the longer ones.
KILLS = sampled("kills of a driver", [("brief", 1), ("plain", 6), ("clever", 4)], lambda case: case[0] == "brief")
SECTIONS = {"brief": PLAIN, "plain": PLAIN, "clever": CLEVER}
OVER = {optuna.trial.TrialState.COMPLETE: "FINISHED", optuna.trial.TrialState.PRUNED: "KILLED"}


def write_study(home: Path, sections: dict[str, dict[str, str]]) -> Path:
    path = home / "study.yaml"
    content = studies.study(
        home / "inputs",
        rows=480,  # some seconds a trial
        study="victim",
        references=["majority", "head_only"],
        budget={"trials": TRIALS, "epochs": 3},
        **sections,
    )
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def check_consistent(home: Path) -> None:
    """One record a trial in Optuna and MLflow, all ended, saying the same."""
    study = optuna.load_study(study_name="victim", storage=f"sqlite:///{home / 'optuna.db'}")
    assert len(study.trials) == TRIALS + 2  # with the references
    assert {trial.state for trial in study.trials} <= set(OVER)
    keys = [trial.user_attrs["configuration"] for trial in study.trials if not trial.user_attrs["reference"]]
    assert len({str(key) for key in keys}) == TRIALS

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    runs = [run for experiment in client.search_experiments() for run in client.search_runs([experiment.experiment_id])]
    children = [run for run in runs if "trial" in run.data.tags]
    assert sorted(int(run.data.tags["trial"]) for run in children) == list(range(TRIALS + 2))
    assert len(runs) == TRIALS + 3
    assert [run.info.status for run in runs if run not in children] == ["FINISHED"]
    for run in children:
        trial = study.trials[int(run.data.tags["trial"])]
        assert run.info.status == OVER[trial.state]
        if trial.values:
            assert run.data.metrics["accuracy"] == trial.values[0]
        history = client.get_metric_history(run.info.run_id, "accuracy")
        assert len({point.step for point in history}) == len(history)


@pytest.mark.parametrize(("kind", "number"), KILLS)
def test_kills(home: Path, kind: str, number: int) -> None:
    sections = SECTIONS[kind]
    path, log, draw = write_study(home, sections), home / "log.txt", random.Random(SEED)
    # moments spread over the life of the study, as milestones that its trials passed, of 3 a trial
    moments = sorted(draw.sample(range(1, 3 * TRIALS - 3), number))
    kills: list[Kill] = []
    victims: list[Victim] = []
    command = ["run", str(path), "--or-resume"]

    def wait_for_moment(victim: Victim) -> None:
        victim.wait_for(lambda: progress(home, "victim") >= moments[len(kills)])
        time.sleep(draw.uniform(0, 1))

    while len(kills) < number:
        victim = Victim(command, log)
        victims.append(victim)
        if draw.random() < 1 / 4:  # a driver that does not live to see its workers
            time.sleep(draw.uniform(0, 10))
        else:
            wait_for_moment(victim)
            if len(kills) < number - 1 and victim.kill_worker(draw):
                kills.append(Kill("worker", time.monotonic() - victim.began, finished(home, "victim")))
                wait_for_moment(victim)
        assert victim.process.poll() is None, log.read_text()[-3000:]  # it ended before it could be killed
        victim.kill()
        kills.append(Kill("driver", time.monotonic() - victim.began, finished(home, "victim")))
    last = Victim(command, log)
    assert last.process.wait(timeout=300) == 0, log.read_text()[-3000:]

    for kill in kills:
        print(f"{kill.who} after {kill.after:.1f} s, {len(kill.finished)} trials finished by then")
    after = finished(home, "victim")
    for kill in kills:  # nothing finished was lost or trained again: the very files are there
        assert kill.finished.items() <= after.items()
    check_consistent(home)
    if kind == "plain":  # what came out is what an undisturbed search gives, bit for bit
        disturbed = load_study("victim")
        command = [sys.executable, "-m", "search.cli", "run", str(path), "--fresh"]
        subprocess.run(command, check=True, capture_output=True)
        calm = load_study("victim")
        assert [trial.design_text for trial in disturbed.trials] == [trial.design_text for trial in calm.trials]
        assert [trial.score for trial in disturbed.trials] == [trial.score for trial in calm.trials]
    if kind != "brief":
        assert left_running([*victims, last]) == []  # last: Ray's agents take a minute to leave


def test_ctrl_c_and_resume(home: Path) -> None:
    path, log = write_study(home, PLAIN), home / "log.txt"
    victim = Victim(["run", str(path)], log)
    victim.wait_for(lambda: progress(home, "victim") > 3)
    victim.watch()
    victim.process.send_signal(signal.SIGINT)
    victim.process.wait(timeout=60)
    assert "petl-search resume victim" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert left_running([victim]) == []
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    runs = [run for experiment in client.search_experiments() for run in client.search_runs([experiment.experiment_id])]
    assert "RUNNING" not in {run.info.status for run in runs}
    subprocess.run([sys.executable, "-m", "search.cli", "resume", "victim"], check=True, capture_output=True)
    check_consistent(home)
    assert all(trial.state is State.COMPLETE for trial in load_study("victim").trials)


# The first line of each moment of a search, in their order.
MOMENTS = (
    *("loading libraries", "reading the data", "trying a first", "starting Ray"),
    *("fitting", "(reference majority) starts", "scoring"),
)


@pytest.mark.full("a search for each moment")
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_ends_a_search_at_any_moment(home: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a terminal sends it, to all processes of the search, on a busy machine."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    path, log = write_study(home, PLAIN), home / "log.txt"
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        victim = Victim(["run", str(path)], log)
        victim.wait_for(lambda: moment in log.read_text())
        victim.watch()
        os.killpg(victim.process.pid, signal.SIGINT)
        began = time.monotonic()
        code = victim.process.wait(timeout=60)
        print(f"{moment}: {time.monotonic() - began:.1f} s")
    finally:
        for process in busy:
            process.kill()
    said = log.read_text()
    assert "Traceback" not in said
    if moment == MOMENTS[0]:  # nothing is to be put away, and libraries are being read: the process is just ended
        assert code == -signal.SIGINT
    else:
        begun = moment in MOMENTS[4:]
        assert code == 130, said
        assert ("petl-search resume victim" if begun else "interrupted before the study 'victim' began") in said
    assert left_running([victim]) == []
