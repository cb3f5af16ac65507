"""Both stores on PostgreSQL: a study from its run to its front, its pages, and a hundred who read it meanwhile."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import optuna
import psutil
import pytest
import studies
import yaml
from mlflow.tracking import MlflowClient
from postgresql import PASSWORD, QUOTED, PostgreSQL, postgresql  # noqa: F401 (a fixture)
from published import INFO, record
from survival import Victim, finished, progress

from search import load_study
from search.storage.address import database
from search.storage.errors import StoreError
from search.tracking.writer import MlflowTracker

READERS = 100
READER = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from search import load_study

def read(_):
    return [(trial.number, trial.score) for trial in load_study("demo", sys.argv[1]).front()]

with ThreadPoolExecutor(int(sys.argv[2])) as pool:
    print(json.dumps(list(pool.map(read, range(int(sys.argv[2]))))))
"""


def secret_in(text: str) -> bool:
    return PASSWORD in text or QUOTED in text


def rising(number: int) -> object:
    """Each trial is better and larger than the one before: all are on the front."""
    return record(number, 0.5 + number / 1000, 100 * number)


@pytest.mark.full("a hundred processes")
def test_a_hundred_read_while_one_writes(postgresql: PostgreSQL, tmp_path: Path) -> None:  # noqa: F811
    uri = postgresql.url(postgresql.database())
    with pytest.raises(StoreError, match="nothing was run there yet") as raised:
        load_study("demo", uri)
    assert not secret_in(str(raised.value))
    tracker = MlflowTracker.open(uri, "demo", tmp_path / "artifacts", INFO)
    for number in range(3):
        tracker.publish(rising(number))
    processes = [
        subprocess.Popen([sys.executable, "-c", READER, uri, str(READERS // 2)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers: list[str] = []
    outputs = [threading.Thread(target=lambda p=p: answers.append(p.stdout.read())) for p in processes]
    began = time.monotonic()
    for thread in outputs:
        thread.start()
    written = 3
    while any(thread.is_alive() for thread in outputs):
        if written < 100:
            tracker.publish(rising(written))
            written += 1
        time.sleep(0.02)
    assert [process.wait() for process in processes] == [0, 0]
    fronts = [front for text in answers for front in json.loads(text)]
    print(f"{len(fronts)} readers in {time.monotonic() - began:.1f} s, {written - 3} trials written meanwhile")
    assert len(fronts) == READERS
    for front in fronts:
        assert 3 <= len(front) <= written
        assert front == [[number, 0.5 + number / 1000] for number in range(len(front))]
    assert len({len(front) for front in fronts}) > 1  # it was written meanwhile
    assert len(load_study("demo", uri).front()) == written


def test_reading_needs_no_records(postgresql: PostgreSQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Not the database of the trials' records, nor the home of the driver but for the artifacts."""
    uri = postgresql.url(postgresql.database())
    tracker = MlflowTracker.open(uri, "demo", tmp_path / "artifacts", INFO)
    tracker.publish(replace(record(0, 0.5, 10), name="first"))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "design.json").write_text("{}")
    tracker.artifacts(0, tmp_path / "adapter")
    monkeypatch.setenv("PETL_SEARCH_DATABASE", "postgresql://nobody@127.0.0.1:1/nowhere")
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path / "elsewhere"))
    study = load_study("demo", uri)
    assert [trial.name for trial in study.front()] == ["first"]
    assert (study.trial(0).export(tmp_path / "out") / "design.json").read_text() == "{}"
    assert not secret_in(repr(study))
    assert not (tmp_path / "elsewhere").exists()


def test_the_pages_show_no_password(postgresql: PostgreSQL, tmp_path: Path) -> None:  # noqa: F811
    uri = postgresql.url(postgresql.database())
    MlflowTracker.open(uri, "demo", tmp_path / "artifacts", INFO).publish(record(0, 0.5, 10))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log.txt"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PETL_SEARCH_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "search.cli", "ui", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT)
    family: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                assert urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read() == b"OK"
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            assert not secret_in(" ".join(member.cmdline()))
        found = MlflowClient(f"http://127.0.0.1:{port}").get_experiment_by_name("demo")
        assert found is not None
        assert not secret_in(log.read_text())
    finally:
        for member in family or [psutil.Process(process.pid)]:
            member.kill()
        process.wait()


def test_one_database_cannot_be_both(postgresql: PostgreSQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    from search.study.places import StudyError
    from search.study.run import run

    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path))
    address = postgresql.url(postgresql.database())
    content = studies.study(tmp_path / "inputs", storage={"database": address}, tracking={"uri": address})
    with pytest.raises(StudyError, match="need a database each") as raised:
        run(content)
    assert not secret_in(str(raised.value))


@pytest.mark.full("a search of minutes")
def test_a_study_on_both_through_kills_of_driver_and_server(
    postgresql: PostgreSQL,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home, log = tmp_path / "home", tmp_path / "log.txt"
    home.mkdir()
    monkeypatch.setenv("PETL_SEARCH_HOME", str(home))
    records, uri = (postgresql.url(postgresql.database()) for _ in range(2))
    content = studies.study(
        tmp_path / "inputs",
        study="victim",
        references=["majority"],
        scheduler={"name": "none"},
        storage={"database": records},
        tracking={"uri": uri},
    )
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))

    first = Victim(["run", str(path)], log)
    first.wait_for(lambda: progress(home, "victim") >= 2)
    postgresql.restart("immediate")
    first.wait_for(lambda: progress(home, "victim") >= 5)
    assert first.process.poll() is None, log.read_text()[-3000:]
    first.kill()
    before = finished(home, "victim")
    # Passwords of a resume come from the environment: nothing of the first run has kept them.
    monkeypatch.setenv("PETL_SEARCH_DATABASE", records)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    second = Victim(["resume", "victim"], log)
    assert second.process.wait(timeout=300) == 0, log.read_text()[-3000:]
    assert before.items() <= finished(home, "victim").items()

    study = optuna.load_study(study_name="victim", storage=database(records))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 5
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    read = load_study("victim")
    assert {trial.number: trial.score for trial in (*read.trials, *read.references)} == {
        trial.number: trial.values[0] for trial in study.trials
    }
    client = MlflowClient(database(uri))
    runs = client.search_runs([read.summary.experiment_id])
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 6
    assert (read.front().best().export(tmp_path / "out") / "design.json").is_file()
    for address in (records, uri):
        name = address.rpartition("/")[2]
        dump = postgresql.dump(name)
        assert "victim" in dump
        assert not secret_in(dump)
    assert not secret_in(log.read_text())
    for file in home.rglob("*"):
        assert not file.is_file() or not secret_in(file.read_text(errors="replace")), file
    shown = subprocess.run(
        [sys.executable, "-m", "search.cli", "show", "victim"], capture_output=True, text=True, check=True
    )
    assert not secret_in(shown.stdout + shown.stderr)


IMPATIENT = """
import sys
from search import cli
from search.storage import studies

persistence = studies._persistence
def impatient(*arguments):
    made = persistence(*arguments)
    made.seconds = 2.0
    return made

studies._persistence = impatient
sys.argv = ["petl-search", "run", sys.argv[1]]
cli.main()
"""


@pytest.mark.full("minutes of waiting for what is away")
def test_databases_that_stay_away_end_a_study_which_then_goes_on(
    postgresql: PostgreSQL,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home, log = tmp_path / "home", tmp_path / "log.txt"
    home.mkdir()
    monkeypatch.setenv("PETL_SEARCH_HOME", str(home))
    records, uri = (postgresql.url(postgresql.database()) for _ in range(2))
    stores = {"storage": {"database": records}, "tracking": {"uri": uri}}
    path = tmp_path / "study.yaml"
    content = studies.study(tmp_path / "inputs", study="victim", references=["majority"], **stores)
    path.write_text(yaml.safe_dump(content))
    with log.open("w") as output:
        driver = subprocess.Popen([sys.executable, "-c", IMPATIENT, str(path)], stdout=output, stderr=subprocess.STDOUT)
        while progress(home, "victim") < 2:
            assert driver.poll() is None, log.read_text()
            time.sleep(0.05)
        postgresql.stop()
        try:
            assert driver.wait(120) == 2
        finally:
            postgresql.start()
    said = log.read_text()
    assert "Traceback" not in said
    assert "has not answered for 2 seconds" in said.splitlines()[-1]
    assert said.endswith("petl-search resume victim\n")
    assert not secret_in(said)
    subprocess.run(
        [sys.executable, "-m", "search.cli", "run", str(path), "--or-resume"], check=True, capture_output=True
    )
    assert {trial.state.name for trial in load_study("victim", uri).trials} <= {"COMPLETE", "PRUNED"}
    trials = optuna.load_study(study_name="victim", storage=database(records)).trials
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert len(trials) == 5
