"""What MLflow is to be told, on disk while it is away: a real server that is killed and brought back."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import studies
import yaml
from mlflow import MlflowClient
from scope import sampled
from servers import Proxy, Server
from survival import Victim, finished, left_running

from petl.configuration import Configuration
from petl.measurements import Measurements
from petl.presets import parse
from search.results.query import load_study
from search.storage.errors import StoreError
from search.tracking.entries import Close, Entry, Progress, Withdraw, parsed
from search.tracking.experiment import discard
from search.tracking.outbox import Delivery, Journal, patiently
from search.tracking.writer import MlflowTracker
from search.trials.record import State, TrialRecord

INFO = {
    "study": "demo",
    "backbone": {"model": "tiny"},
    "task": {"name": "tweets"},
    "objectives": {"score": "accuracy", "cost": "stored_parameters"},
    "constraints": {},
}
RECORD = TrialRecord(
    number=0, state=State.RUNNING, configuration=Configuration(parse("lora:rank=2")), started=1_700_000_000.0
)
COUNTS = {"stored_parameters": 1234.0}


# --- the queue on disk ---------------------------------------------------------------------------


def quiet(text: str) -> None:
    raise AssertionError(f"said: {text}")


def note(number: int, text: str = "") -> Entry:
    return Withdraw(number, text)


def left(folder: Path) -> list[int]:
    """What another process finds."""
    journal = Journal(folder, quiet)
    there = []
    while entry := journal.first():
        there.append(entry.what["number"])
        journal.delivered()
    return there


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_what_was_not_delivered_is_there_in_order_with_the_next_numbers_after_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path, quiet)
    journal.append(*map(note, range(5)))
    journal.append(note(5))
    before = time.time()
    for expected in range(3):
        entry = journal.first()
        assert entry is not None
        assert (entry.what, entry.tell) == ({"number": expected, "why": ""}, "withdraw")
        assert before - 60 < entry.at <= before + 0.006  # they are a millisecond apart, at least
        journal.delivered()
    journal.close()
    second = Journal(tmp_path, quiet)
    assert len(second) == 3
    second.append(note(6))
    first = second.first()
    assert first is not None
    assert first.number == 4  # they count from 1
    assert left(tmp_path) == [3, 4, 5, 6]
    assert left(tmp_path) == []
    third = Journal(tmp_path, quiet)
    third.append(note(7))
    entry = third.first()
    assert entry is not None
    assert entry.number == 8  # a number is never used again


def test_a_torn_last_line_does_not_count_wherever_it_is_torn(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "whole", quiet)
    journal.append(note(0), note(1))
    journal.append(note(2))
    (file,) = (tmp_path / "whole").glob("*.jsonl")
    content = file.read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last, len(content)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / file.name).write_bytes(content[:cut])
        torn = Journal(folder, quiet)
        torn.append(note(3))
        torn.close()
        assert left(folder) == [0, 1, 3]


def test_a_killed_process_leaves_all_that_it_appended(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from search.tracking.outbox import Journal\n"
        "from search.tracking.entries import Withdraw\n"
        "journal = Journal(Path(sys.argv[1]), print)\n"
        "for n in range(10**9):\n"
        "    journal.append(Withdraw(n, 'x' * 500))\n"
        "    print(n, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(50):
        last = int(process.stdout.readline())
    process.kill()
    last = int((process.stdout.read().split("\n")[-2:-1] or [last])[0])
    process.wait()
    there = left(tmp_path)
    assert there == list(range(len(there)))
    assert last <= there[-1] <= last + 1


def test_what_was_delivered_takes_no_room(tmp_path: Path) -> None:
    journal, text, most = Journal(tmp_path, quiet), "x" * 50_000, 0
    for number in range(200):  # 10 MB
        journal.append(note(number, text))
        if number >= 3:  # it never comes to an end of it
            journal.delivered()
        most = max(most, size(tmp_path))
    assert most < 2_500_000  # two files, each closed at the first line beyond a million
    entry = journal.first()
    assert entry is not None
    assert entry.what["number"] == 197
    for _ in range(3):
        journal.delivered()
    assert [path.name for path in tmp_path.iterdir()] == ["delivered"]
    journal.append(note(200))
    assert left(tmp_path) == [200]


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Writes beyond so many bytes fail, after as much as fits: what a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_once_and_nothing_is_lost_in_this_process(tmp_path: Path) -> None:
    folder, said = tmp_path / "journal", []
    journal = Journal(folder, said.append)
    journal.append(note(0), note(1))
    with no_file_above(size(folder) + 100):  # one line and a part of the next
        journal.append(note(2), note(3))
    with no_file_above(30):  # not one line
        for number in range(4, 8):
            journal.append(note(number))
    assert len(said) == 1
    assert "cannot be written" in said[0]
    journal.append(note(8))
    journal.append(note(9))
    shutil.copytree(folder, tmp_path / "after")
    assert left(tmp_path / "after") == [0, 1, 2, 8, 9]  # what the next process would find
    delivered = []
    while entry := journal.first():
        delivered.append(entry.what["number"])
        journal.delivered()
    assert delivered == list(range(10))
    assert [path.name for path in folder.iterdir()] == ["delivered"]


# --- the delivery --------------------------------------------------------------------------------


def entries(event: list[tuple[str, dict[str, Any]]]) -> list[Entry]:
    return [parsed(kind, values) for kind, values in event]


def story(trials: int, folder: Path) -> list[list[tuple[str, dict[str, Any]]]]:
    """What a driver publishes of some trials, event by event, as the journals of ba3158e hold it."""
    told = []
    for number in range(trials):
        adapter = folder / f"trials/{number:04d}/result/adapter"
        adapter.mkdir(parents=True, exist_ok=True)
        (adapter / "design.json").write_text(json.dumps({"trial": number}))
        record = replace(RECORD, number=number, started=1_700_000_000.0 + number)
        done = replace(
            record,
            state=State.COMPLETE,
            ended=1_700_000_100.0 + number,
            rungs={1.0: 0.5},
            measurements=Measurements(accuracy=0.5 + number / 100, stored_parameters=1234, steps=60),
        )
        told.append([("publish", {"record": record.to_dict(), "counts": COUNTS})])
        for rung in (0, 30):
            points = [{"step": rung + step, "train_loss": 1 / (rung + step)} for step in (10, 20, 30)]
            told.append(
                [
                    (
                        "publish",
                        {"record": replace(record, rungs={1.0: 0.5} if rung else {}).to_dict(), "counts": COUNTS},
                    ),
                    ("progress", {"number": number, "points": points}),
                ]
            )
        told.append(
            [
                ("publish", {"record": done.to_dict(), "counts": COUNTS}),
                ("artifacts", {"number": number, "folder": str(adapter.relative_to(folder)), "name": "adapter"}),
            ]
        )
        told.append([("tested", {"number": number, "scores": {"test": {"accuracy": 0.4}}})])
    return told


def told_directly(uri: str, trials: int, artifacts: Path) -> MlflowTracker:
    """The same by hand, without any journal."""
    tracker = MlflowTracker.open(uri, "demo", artifacts, INFO)
    for number in range(trials):
        done = replace(
            RECORD,
            number=number,
            started=1_700_000_000.0 + number,
            state=State.COMPLETE,
            ended=1_700_000_100.0 + number,
            rungs={1.0: 0.5},
            measurements=Measurements(accuracy=0.5 + number / 100, stored_parameters=1234, steps=60),
        )
        tracker.publish(replace(done, state=State.RUNNING, rungs={}, measurements=None, ended=None), COUNTS)
        tracker.progress(number, [{"step": step, "train_loss": 1 / step} for step in range(10, 70, 10)])
        tracker.publish(done, COUNTS)
        adapter = artifacts / f"of-{number}"
        adapter.mkdir(parents=True)
        (adapter / "design.json").write_text(json.dumps({"trial": number}))
        tracker.artifacts(number, adapter)
        tracker.facts(number, {"final": {"test": {"accuracy": 0.4}}})
    return tracker


def rows(uri: str) -> list[dict[str, Any]]:
    """All that a store has of the trials of a study, in an order of its own: every point, in the order of arrival."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    found = []
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        if "trial" in run.data.tags:
            told = {name: value for name, value in run.data.tags.items() if name != "mlflow.parentRunId"}
            histories = {
                name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            }
            files = [(file.path, file.file_size) for file in client.list_artifacts(run.info.run_id, "adapter")]
            info = (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time)
            found.append(
                {
                    "tags": told,
                    "params": run.data.params,
                    "metrics": histories,
                    "last": run.data.metrics,
                    "files": files,
                    "info": info,
                }
            )
    return sorted(found, key=lambda row: int(row["tags"]["trial"]))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server")).start()
    yield server
    server.kill()


@pytest.fixture
def emptied(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, up, without the study."""
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    if server.process is None:
        server.start()
    discard(server.uri, "demo")
    return server


@contextmanager
def delivering(folder: Path, uri: str, said: list[str]) -> Iterator[Delivery]:
    artifacts = folder / "artifacts" if uri.startswith("sqlite") else None

    def connect() -> list[MlflowTracker]:
        return [MlflowTracker.open(uri, "demo", artifacts, INFO)]

    with Delivery(Journal(folder / "journal", said.append), connect, folder, said.append) as delivery:
        yield delivery


def until(reached: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.full("half a minute")
def test_a_server_killed_in_mid_stream_has_every_row_once(emptied: Server, tmp_path: Path) -> None:
    trials, said, longest = 6, [], 0.0
    events = story(trials, tmp_path)
    with delivering(tmp_path, emptied.uri, said) as delivery:
        for number, event in enumerate(events):
            if number == len(events) // 3:
                until(lambda: len(delivery.journal) < 4)  # some of it is there, and some under way
                emptied.kill()
            began = time.monotonic()
            delivery.send(*entries(event))
            longest = max(longest, time.monotonic() - began)
        assert not delivery.drain(patience=3.0)
        waiting = len(delivery.journal)
        assert waiting >= sum(map(len, events[len(events) // 3 :]))
        emptied.start()
        assert delivery.drain(patience=60.0)
        delivery.send(Close("FINISHED"))
        assert delivery.drain(patience=60.0)
    assert longest < 2.0  # a request to a server that is away takes that long, with MLflow's own retries minutes
    away, back = [text for text in said if "still to reach MLflow" not in text]
    assert away.startswith("MLflow does not answer; the search continues, and its results wait:")
    assert back.startswith("MLflow is back;")
    assert [path.name for path in (tmp_path / "journal").iterdir()] == ["delivered"]

    reference = f"sqlite:///{tmp_path}/direct.db"
    told_directly(reference, trials, tmp_path / "direct").close()
    assert rows(emptied.uri) == rows(reference)


def test_a_killed_driver_leaves_what_waits_to_the_next(emptied: Server, tmp_path: Path) -> None:
    emptied.kill()
    events = story(2, tmp_path)
    (tmp_path / "events.json").write_text(json.dumps(events))
    code = (
        "import json, sys, time; from pathlib import Path\n"
        "from search.tracking.entries import parsed; from search.tracking.outbox import Delivery, Journal\n"
        "from search.tracking.writer import MlflowTracker\n"
        "folder, uri, info = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])\n"
        "connect = lambda: [MlflowTracker.open(uri, 'demo', None, info)]\n"
        "with Delivery(Journal(folder / 'journal', print), connect, folder, print) as delivery:\n"
        "    for event in json.loads((folder / 'events.json').read_text()):\n"
        "        delivery.send(*(parsed(*entry) for entry in event))\n"
        "    print('told', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), emptied.uri, json.dumps(INFO)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "told\n"
    process.kill()
    process.wait()
    emptied.start()
    with delivering(tmp_path, emptied.uri, []) as delivery:
        assert len(delivery.journal)
        assert delivery.drain(patience=60.0)
    reference = f"sqlite:///{tmp_path}/direct.db"
    told_directly(reference, 2, tmp_path / "direct")
    assert rows(emptied.uri) == rows(reference)


def only_first(what: str, fate: str) -> Callable[[str], str]:
    seen: list[str] = []

    def lose(path: str) -> str:
        if path.endswith(what) and not seen:
            seen.append(path)
            return fate
        return ""

    return lose


REQUESTS = ["runs/log-batch", "runs/update", "adapter/design.json"]


@pytest.mark.parametrize(
    "what", sampled("requests whose answer is lost", REQUESTS, lambda what: what == "runs/log-batch")
)
def test_a_request_that_arrived_without_its_answer_is_not_made_again(
    emptied: Server, tmp_path: Path, what: str
) -> None:
    with Proxy(emptied, only_first(what, "reply")) as proxy, delivering(tmp_path, proxy.uri, []) as delivery:
        for event in story(1, tmp_path):
            delivery.send(*entries(event))
        assert delivery.drain(patience=60.0)
    reference = f"sqlite:///{tmp_path}/direct.db"
    told_directly(reference, 1, tmp_path / "direct")
    assert rows(emptied.uri) == rows(reference)


@pytest.mark.parametrize("fate", ["reply", "late"])
def test_a_run_that_was_created_without_an_answer_is_not_created_again(
    emptied: Server, tmp_path: Path, fate: str
) -> None:
    """At once, the next tracker finds it; long after the client gave up, it is one too many, and goes."""
    creations: list[str] = []

    def lose(path: str) -> str:
        if not path.endswith("runs/create"):
            return ""
        creations.append(path)
        return fate if len(creations) == 2 else ""  # the first is the parent's

    with Proxy(emptied, lose) as proxy, delivering(tmp_path, proxy.uri, []) as delivery:
        for event in story(1, tmp_path):
            delivery.send(*entries(event))
        assert delivery.drain(patience=60.0)
        assert len(creations) == (2 if fate == "reply" else 3)
        proxy.arrive()
        if fate == "late":
            assert len(rows(emptied.uri)) == 2
        delivery.send(Close("FINISHED"))
        assert delivery.drain(patience=60.0)
    reference = f"sqlite:///{tmp_path}/direct.db"
    told_directly(reference, 1, tmp_path / "direct")
    assert rows(emptied.uri) == rows(reference)


def test_a_refused_entry_is_left_out_and_said_and_stops_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with delivering(tmp_path, uri, said) as delivery:
        delivery.send(Progress(9, [{"step": 1, "train_loss": 1.0}]))  # no such run
        for event in story(1, tmp_path):
            delivery.send(*entries(event))
        assert delivery.drain(patience=60.0)
        assert delivery.left_out == 1
    (refusal,) = [text for text in said if "still to reach MLflow" not in text]
    assert refusal.startswith("MLflow refuses an entry (progress), and it is left out: trial 9 has no run")
    assert len(rows(uri)) == 1


def test_ctrl_c_ends_the_waiting(tmp_path: Path) -> None:
    uri = "http://127.0.0.1:9"  # where nobody listens
    began = time.monotonic()
    interrupt = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), delivering(tmp_path, uri, []) as delivery:  # noqa: PT012
        delivery.send(*entries(story(1, tmp_path)[0]))
        interrupt.start()
        delivery.drain(patience=600.0)
    assert time.monotonic() - began < 30
    assert len(Journal(tmp_path / "journal", quiet)) == 1


def test_asking_patiently() -> None:
    calls: list[float] = []

    def ask() -> str:
        calls.append(time.monotonic())
        if len(calls) < 2:
            raise StoreError("away")
        return "there"

    assert patiently(ask, 10.0) == "there"
    calls.clear()
    with pytest.raises(StoreError, match="away"):
        patiently(ask, 0.5)
    assert len(calls) == 1


# --- a whole study -------------------------------------------------------------------------------

TRIALS = 3
COUNTED = ("stored_parameters", "stored_percent", "trained_parameters", "trained_percent", "paper_parameters")


def write_study(home: Path, server: Server, patience: float) -> Path:
    path = home / "study.yaml"
    content = studies.study(
        home / "inputs",
        study="demo",
        references=["majority"],
        scheduler={"name": "none"},
        budget={"trials": TRIALS, "epochs": 3},
        resources={"concurrent": 1},
        tracking={"uri": server.uri, "patience": patience},
    )
    path.write_text(yaml.safe_dump(content))
    return path


def check_consistent(home: Path, uri: str) -> None:
    """MLflow says what Optuna does, of every trial once, and the study is over."""
    optuna_study = optuna.load_study(study_name="demo", storage=f"sqlite:///{home / 'optuna.db'}")
    assert len(optuna_study.trials) == TRIALS + 1
    found = rows(uri)
    assert [int(row["tags"]["trial"]) for row in found] == list(range(TRIALS + 1))
    for row, trial in zip(found, optuna_study.trials, strict=True):
        assert row["info"][1] == "FINISHED"
        assert row["metrics"]["accuracy"][-1][1] == row["last"]["accuracy"] == trial.values[0]
        measured = trial.user_attrs["outcome"]["measurements"]
        assert row["last"].items() >= {name: value for name, value in measured.items() if value is not None}.items()
        for name, points in row["metrics"].items():
            assert len(set(points)) == len(points), (name, points)
            assert [step for step, _ in points] == sorted(step for step, _ in points), (name, points)
        report = json.loads((home / f"studies/demo/trials/{trial.number:04d}/result/report.json").read_text())
        curve = [(point["step"], point["loss"]) for point in report.get("points", ())]
        assert row["metrics"].get("train_loss", []) == curve
    study = load_study("demo", uri)
    assert study.summary.status == "FINISHED"
    front = {trial.number for trial in study.front()}
    assert front
    assert {int(row["tags"]["trial"]) for row in found if row["tags"]["on_front"] == "true"} == front
    assert all(trial.test_score is not None for trial in study.front())
    assert all(row["files"] for row in found if int(row["tags"]["trial"]) in front)
    assert [path.name for path in (home / "studies/demo/journal").iterdir()] == ["delivered"]


@pytest.fixture
def victims() -> Iterator[list[Victim]]:
    """Drivers that do not outlive their test."""
    victims: list[Victim] = []
    yield victims
    for victim in victims:
        if victim.process.poll() is None:
            victim.kill()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.full("a search of minutes; the outbox itself is tried below")
def test_a_search_goes_on_while_mlflow_is_away(home: Path, emptied: Server, victims: list[Victim]) -> None:
    log = home / "log.txt"
    victim = Victim(["run", str(write_study(home, emptied, 120.0))], log)
    victims.append(victim)
    victim.wait_for(lambda: len(finished(home, "demo")) >= 1)
    emptied.kill()
    before = len(finished(home, "demo"))
    victim.wait_for(lambda: len(finished(home, "demo")) > before)  # the search did not wait
    assert victim.process.poll() is None, log.read_text()[-3000:]
    emptied.start()
    assert victim.process.wait(timeout=300) == 0, log.read_text()[-3000:]
    text = log.read_text()
    assert text.count("MLflow does not answer") == text.count("MLflow is back") == 1
    check_consistent(home, emptied.uri)

    # What a journal was lost with is made good from the records: all of it, if need be.
    before = rows(emptied.uri)
    discard(emptied.uri, "demo")
    victims.append(Victim(["resume", "demo"], log))
    assert victims[-1].process.wait(timeout=300) == 0, log.read_text()[-3000:]
    check_consistent(home, emptied.uri)
    assert list(map(trained, rows(emptied.uri))) == list(map(trained, before))


def trained(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the counts before training, at step 0, which a run that is told of afterwards never has."""
    points = {
        name: [point for point in points if point[0] or name not in COUNTED] for name, points in row["metrics"].items()
    }
    return {**row, "metrics": points}


@pytest.mark.full("minutes of waiting for what is away")
def test_what_waits_outlives_the_driver(home: Path, emptied: Server, victims: list[Victim]) -> None:
    """SIGKILL, Ctrl-C while it waits at the end, an end without MLflow, and at last a resume that delivers."""
    log = home / "log.txt"

    def driving(*command: str) -> Victim:
        log.write_text("")
        victims.append(Victim([*command], log))
        return victims[-1]

    first = driving("run", str(write_study(home, emptied, 15.0)))
    first.wait_for(lambda: len(finished(home, "demo")) >= 1)
    emptied.kill()
    first.wait_for(lambda: len(finished(home, "demo")) >= 2)
    first.kill()
    assert list((home / "studies/demo/journal").glob("*.jsonl"))

    second = driving("resume", "demo")
    second.wait_for(lambda: "still to reach MLflow, which does not answer" in log.read_text())
    second.process.send_signal(signal.SIGINT)
    assert second.process.wait(timeout=60) == 130, log.read_text()[-3000:]
    assert "wait on disk; a resume delivers them" in log.read_text()
    assert "Traceback" not in log.read_text()
    trained = finished(home, "demo")
    assert len(trained) == TRIALS + 1

    assert driving("resume", "demo").process.wait(timeout=300) == 75, log.read_text()[-3000:]
    assert "`petl-search resume demo` delivers them" in log.read_text()
    assert "Traceback" not in log.read_text()

    emptied.start()
    assert driving("resume", "demo").process.wait(timeout=300) == 0, log.read_text()[-3000:]
    check_consistent(home, emptied.uri)
    assert finished(home, "demo") == trained
    assert left_running(victims) == []
