"""Records on a PostgreSQL that crashes, is away, or has two drivers; what an address shows of its password."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from postgresql import PASSWORD, QUOTED, PostgreSQL, postgresql  # noqa: F401 (a fixture)
from sqlalchemy import event

from petl.configuration import Configuration
from petl.design import Design
from petl.measurements import Measurements
from search.storage.address import AddressError, database
from search.storage.database import ConnectionLostError, DatabaseError
from search.storage.locks import DriverLock, StudyBusyError, driving
from search.storage.studies import create_study, open_study, study_names
from search.trials.record import State
from search.trials.records import Records

OBJECTIVES = ("accuracy", "stored_parameters")


@pytest.fixture
def server(postgresql: PostgreSQL) -> Iterator[PostgreSQL]:  # noqa: F811
    yield postgresql
    if not postgresql.sql_works():
        postgresql.start()


@pytest.fixture
def url(server: PostgreSQL) -> str:
    return database(server.url(server.database()))


def one_trial(records: Records) -> int:
    number = records.create(Configuration(Design(), seed=len(records.all())), {"a": 1}).number
    records.rung(number, 1.0, number / 1000)
    records.close(number, State.COMPLETE, Measurements(accuracy=number / 1000, stored_parameters=number))
    return number


def test_crashes_lose_nothing_and_double_nothing(server: PostgreSQL, url: str) -> None:
    """The server crashes and restarts while trials are created and closed as fast as can be."""
    said: list[str] = []
    with driving(url, "demo") as guard:
        records = create_study(url, "demo", OBJECTIVES, guard)
        records.persist.say = said.append
        over, numbers = threading.Event(), []

        def crash() -> None:
            draw = random.Random(0)
            for crashes in range(6):
                while len(numbers) < 4 * crashes and not over.is_set():
                    time.sleep(0.01)
                time.sleep(draw.uniform(0, 0.1))
                server.restart()
            over.set()

        thread = threading.Thread(target=crash)
        thread.start()
        try:
            while not over.is_set():
                numbers.append(one_trial(records))
        finally:
            over.set()
            thread.join()
        numbers += [one_trial(records) for _ in range(3)]
        records.disconnect()
    assert numbers == list(range(len(numbers)))
    trials = optuna.load_study(study_name="demo", storage=url).trials
    assert [trial.number for trial in trials] == numbers
    assert [trial.values for trial in trials] == [[number / 1000, number] for number in numbers]
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert [trial.user_attrs["configuration"]["seed"] for trial in trials] == numbers
    again = open_study(url, "demo")
    assert [dict(record.rungs) for record in again.all()] == [{1.0: number / 1000} for number in numbers]
    assert again.all() == records.all()
    print(f"{len(numbers)} trials, said: {said}")


@pytest.mark.parametrize("before", [True, False], ids=["unsent", "unanswered"])
@pytest.mark.parametrize("operation", ["create", "rung", "outcome", "tell", "info"])
def test_every_write_happens_once_when_its_connection_is_lost(
    server: PostgreSQL, url: str, operation: str, before: bool
) -> None:
    """Each write in turn loses its connection right before its commit, or right after, when only the answer is lost."""
    records = create_study(url, "demo", OBJECTIVES)
    records.persist.say = lambda text: None
    engine = records._storage.engine  # type: ignore[attr-defined]
    table = {
        "create": "INSERT INTO trials",
        "rung": "INSERT INTO trial_user_attributes",
        "outcome": "INSERT INTO trial_user_attributes",
        "tell": "UPDATE trials",
        "info": "INSERT INTO study_user_attributes",
    }[operation]
    armed, hit = [], []

    def executed(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if armed and statement.startswith(table):
            hit.append(statement)

    def committing(connection: object) -> None:
        if armed and hit:
            armed.clear()
            if not before:
                connection.connection.driver_connection.commit()  # type: ignore[attr-defined]
            connection.connection.driver_connection.close()  # type: ignore[attr-defined]

    event.listen(engine, "after_cursor_execute", executed)
    event.listen(engine, "commit", committing)

    def arm(name: str) -> None:
        if operation == name:
            armed.append(name)

    arm("create")
    records.create(Configuration(Design()), {"a": 1})
    arm("rung")
    records.rung(0, 1.0, 0.5)
    arm("outcome")
    arm("tell")
    records.close(0, State.COMPLETE, Measurements(accuracy=0.5, stored_parameters=7))
    arm("info")
    records.set_info("k", [1])
    assert hit
    assert not armed
    one_trial(records)
    trials = optuna.load_study(study_name="demo", storage=url).trials
    assert [(trial.number, trial.state.name, trial.values) for trial in trials] == [
        (0, "COMPLETE", [0.5, 7.0]),
        (1, "COMPLETE", [0.001, 1.0]),
    ]
    again = open_study(url, "demo")
    assert again.all() == records.all()
    assert again.info("k") == [1]


def test_a_trial_that_the_server_still_creates_is_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is lost, and what it had asked for is committed only after the next attempt has begun."""
    records = create_study(url, "demo", OBJECTIVES)
    records.persist.say = lambda text: None
    ghost = open_study(url, "demo")._storage
    create, committing = records._storage.create_new_trial, threading.Event()

    def commit_late(connection: object) -> None:
        committing.set()
        time.sleep(2)

    event.listen(ghost.engine, "commit", commit_late)  # type: ignore[attr-defined]

    def lose(study_id: int, trial: optuna.trial.FrozenTrial) -> int:
        monkeypatch.setattr(records._storage, "create_new_trial", create)
        threading.Thread(target=ghost.create_new_trial, args=(study_id, trial)).start()
        assert committing.wait(60)
        raise ConnectionLostError("in the middle of it")

    monkeypatch.setattr(records._storage, "create_new_trial", lose)
    assert one_trial(records) == 0
    assert one_trial(records) == 1
    assert len(optuna.load_study(study_name="demo", storage=url).trials) == 2


def test_a_trial_of_another_writer_is_not_taken_for_our_own(url: str) -> None:
    """The connection is lost while a trial is created; meanwhile somebody else creates one of that number."""
    records = create_study(url, "demo", OBJECTIVES)
    records.persist.say = lambda text: None
    other = open_study(url, "demo")
    engine = records._storage.engine  # type: ignore[attr-defined]
    intruded = []

    def committing(connection: object) -> None:
        if not intruded:
            connection.connection.driver_connection.close()  # type: ignore[attr-defined]
            intruded.append(other.create(Configuration(Design(), seed=9)))

    event.listen(engine, "commit", committing)
    with pytest.raises(ValueError, match="trial 0 of the study was created by another writer"):
        records.create(Configuration(Design()))
    assert intruded


def test_a_database_that_stays_away_ends_the_search_with_what_to_do(server: PostgreSQL, url: str) -> None:
    records = create_study(url, "demo", OBJECTIVES)
    said: list[str] = []
    records.persist.say, records.persist.seconds = said.append, 1.5
    server.stop()
    with pytest.raises(DatabaseError) as raised:
        records.create(Configuration(Design()))
    began = time.monotonic()
    with pytest.raises(DatabaseError, match="has not answered"):  # at once, not after another wait
        records.seconds = 1.0
    assert time.monotonic() - began < 1
    text = str(raised.value)
    assert "has not answered for 1.5 seconds" in text
    assert f"petl@127.0.0.1:{server.port}/" in text.split("resume with: ")[1].split("PETL_SEARCH_DATABASE=")[1]
    assert text.endswith("petl-search resume demo")
    assert len(said) == 1
    assert "does not answer" in said[0]
    for shown in (text, said[0]):
        assert PASSWORD not in shown
        assert QUOTED not in shown


def test_no_database_at_the_start_is_said_at_once(server: PostgreSQL) -> None:
    name = server.database()
    for address in (
        server.url(name, "wrong").replace("petl:", "petl:se"),
        server.url("nowhere"),
        server.url(name).replace(f":{server.port}", ":1"),
    ):
        began = time.monotonic()
        with pytest.raises(DatabaseError) as raised:
            study_names(database(address))
        with pytest.raises(DatabaseError), driving(database(address), "demo"):
            pass
        assert time.monotonic() - began < 20
        assert PASSWORD not in str(raised.value)
        assert QUOTED not in str(raised.value)
        assert "sewrong" not in str(raised.value)
        assert "//petl:…@127.0.0.1" in str(raised.value)


def _drive(url: str, held: Path) -> None:
    with driving(url, "demo"):
        held.touch()
        time.sleep(600)


def test_a_second_driver_is_refused_until_the_first_is_dead(url: str, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_drive, args=(url, tmp_path / "held"))
    process.start()
    assert process.pid is not None
    try:
        while not (tmp_path / "held").exists():
            assert process.is_alive()
            time.sleep(0.05)
        with pytest.raises(StudyBusyError, match=rf"another process \(petl-search .*:{process.pid} "):
            DriverLock(url, "demo").take(patience=0.3)
        with driving(url, "another"):  # the lock is of one study
            pass
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    with driving(url, "demo") as guard:
        guard()


def test_a_driver_takes_its_lock_again_after_a_crash(server: PostgreSQL, url: str) -> None:
    with driving(url, "demo") as guard:
        server.restart()
        guard()
        with pytest.raises(StudyBusyError):
            DriverLock(url, "demo").take(patience=0.1)


def test_a_driver_that_was_replaced_writes_nothing_more(server: PostgreSQL, url: str) -> None:
    with driving(url, "demo") as guard:
        records = create_study(url, "demo", OBJECTIVES, guard)
        one_trial(records)
        server.restart()
        other = DriverLock(url, "demo")
        other.take()
        with pytest.raises(StudyBusyError, match="another process"):
            one_trial(records)
        other.release()
    assert len(open_study(url, "demo").all()) == 1


def test_a_connection_that_only_the_server_takes_for_alive_is_ended(url: str) -> None:
    """As after a cut cable: the driver gave its connection up, the server has not noticed."""
    lock = DriverLock(url, "demo")
    lock.take()
    lost, lock._connection = lock._connection, None
    with pytest.raises(ConnectionLostError):
        lock.hold()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            lock.hold()
            break
        except ConnectionLostError:
            time.sleep(0.05)
    lock.hold()
    assert lost is not None
    lost.invalidate()
    lock.release()


def test_the_server_notices_a_machine_that_is_gone_within_a_minute(url: str) -> None:
    """By TCP's keepalives, which sessions set for the server's side."""
    lock = DriverLock(url, "demo")
    lock.take()
    assert lock._connection is not None
    values = [
        int(lock._connection.exec_driver_sql(f"SHOW tcp_keepalives_{name}").scalar_one())
        for name in ("idle", "interval", "count")
    ]
    assert values[0] + values[1] * values[2] <= 60
    lock.release()


def test_passwords_come_from_wherever_libpq_finds_them(
    server: PostgreSQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = server.database()
    without = server.url(name, None)
    with pytest.raises(DatabaseError, match="no password supplied"):
        study_names(database(without))
    monkeypatch.setenv("DB_WORD", PASSWORD)
    assert study_names(database(server.url(name, "${DB_WORD}"))) == []
    assert study_names(database(f"{without}?password={QUOTED}")) == []
    monkeypatch.setenv("WHOLE", server.url(name))
    assert study_names(database("${WHOLE}")) == []
    with monkeypatch.context() as patch:
        patch.setenv("PGPASSWORD", PASSWORD)
        assert study_names(database(without)) == []
    file = tmp_path / "pgpass"
    file.write_text(f"127.0.0.1:{server.port}:*:petl:{PASSWORD.replace(':', chr(92) + ':')}\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    assert study_names(database(without)) == []


def test_a_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DB_WORD", raising=False)
    with pytest.raises(AddressError, match=r"\$\{DB_WORD\}@host/db names the environment variable DB_WORD"):
        database("postgresql://petl:${DB_WORD}@host/db")
