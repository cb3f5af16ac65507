"""Trials' folders: what was interrupted or damaged does not exist; one driver at a time."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from search.storage.folder import TrialFolder
from search.storage.locks import StudyBusyError, StudyLock


def write(trial: TrialFolder, part: str, text: str = "x") -> Path:
    folder = trial.begin(part)
    (folder / "inner").mkdir()
    (folder / "inner" / "a.txt").write_text(text)
    return folder


def test_a_part_counts_once_committed(tmp_path: Path) -> None:
    trial = TrialFolder(tmp_path, 7)
    assert trial.find("result") is None
    folder = write(trial, "result")
    assert trial.find("result") is None
    trial.commit("result")
    assert trial.find("result") == folder == tmp_path / "trials" / "0007" / "result"
    write(trial, "result", "anew")
    assert trial.find("result") is None


@pytest.mark.parametrize("damage", ["change", "remove", "tear"])
def test_a_damaged_part_does_not_exist(tmp_path: Path, damage: str) -> None:
    trial = TrialFolder(tmp_path, 0)
    folder = write(trial, "result")
    trial.commit("result")
    if damage == "change":
        (folder / "inner" / "a.txt").write_text("y")
    elif damage == "remove":
        (folder / "inner" / "a.txt").unlink()
    else:
        manifest = folder / "manifest.json"
        manifest.write_text(manifest.read_text()[:-5])
    assert trial.find("result") is None


def test_each_file_of_a_part_counts(tmp_path: Path) -> None:
    for damaged in ("a.txt", "b.txt", "inner/c.txt"):
        trial = TrialFolder(tmp_path, 0)
        folder = trial.begin("result")
        (folder / "inner").mkdir()
        for name in ("a.txt", "b.txt", "inner/c.txt"):
            (folder / name).write_text(name)
        trial.commit("result")
        assert trial.find("result")
        (folder / damaged).write_text("another")
        assert trial.find("result") is None


def test_a_part_that_is_being_dropped_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of it the killed process had not removed yet."""
    trial = TrialFolder(tmp_path, 0)
    folder = write(trial, "result")
    trial.commit("result")

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        trial.drop("result")
    assert (folder / "inner" / "a.txt").exists()
    assert trial.find("result") is None
    assert not trial.files().has("result")


def test_latest_state_is_the_newest_whole_one(tmp_path: Path) -> None:
    trial = TrialFolder(tmp_path, 0)
    for step in (9, 80, 100):
        write(trial, f"state-{step}")
        if step != 100:
            trial.commit(f"state-{step}")
    latest = trial.latest_state()
    assert latest is not None
    assert latest.name == "state-80"
    trial.drop_states(keep="state-80")
    assert [folder.name for folder in trial.path.iterdir()] == ["state-80"]
    trial.drop_states()
    assert trial.latest_state() is None


def test_what_is_interrupted_in_a_replicate_goes_and_what_it_committed_stays(tmp_path: Path) -> None:
    """Its folder lies among the parts of its trial, and is none of them."""
    trial, replicate = TrialFolder(tmp_path, 7), TrialFolder(tmp_path, 7, 1)
    for folder, part in ((trial, "result"), (replicate, "state-1")):
        write(folder, part)
        folder.commit(part)
    write(trial, "test")
    write(replicate, "state-2")
    trial.drop_interrupted()
    state = replicate.latest_state()
    assert state is not None
    assert state.name == "state-1"
    assert {path.name for path in replicate.path.iterdir()} == {"state-1"}
    assert {path.name for path in trial.path.iterdir()} == {"result", "seed-1"}
    trial.drop_states()
    assert replicate.latest_state()


def _hold(study: Path, role: str) -> None:
    lock = StudyLock(study)
    lock.drive() if role == "drive" else lock.work()
    (study / "held").touch()
    time.sleep(60)


@pytest.mark.parametrize("role", ["drive", "work"])
def test_a_second_driver_waits_for_nobody_but_the_dead(tmp_path: Path, role: str) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path, role))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    lock, said = StudyLock(tmp_path), list[str]()
    with pytest.raises(StudyBusyError, match="another process" if role == "drive" else "still alive"):
        lock.drive(patience=1.5, say=said.append)
    assert [text.split(" for ", 1)[1] for text in said] == ["workers that an earlier run left"] * (role == "work")
    lock.release()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    lock.drive(patience=5)
    lock.release()
