"""What a run says before its first trial, and what is left of one that never began."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import studies
from ray._private import services
from rich.console import Console

from petl.backbones.locate import BackboneError
from petl.errors import UserError
from search.config.loading import load_config
from search.storage.errors import StoreError
from search.storage.locks import StudyLock, is_driven
from search.study.resolve import resolve
from search.study.run import run
from search.workers.cluster import ClusterError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def refused(content: dict[str, Any], kind: type[UserError], match: str, **options: Any) -> list[str]:
    """Run a study that is refused, and return what it said."""
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(kind, match=match):
        run(content, console=console, **options)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_every_step_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    content = studies.study(tmp_path)
    resolve(load_config(content), say=said.append)
    model = content["backbone"]["model"]
    assert said == [
        f"reading the model {model} and its tokenizer",
        "reading the data of task words",
        "trying one row on the model",
    ]


def test_damaged_weights_leave_nothing_behind(tmp_path: Path, home: Path) -> None:
    content = studies.study(tmp_path)
    weights = tmp_path / "backbone" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for _ in range(2):  # not: there is a study already
        assert refused(content, BackboneError, "safetensors")
        assert not home.exists()


def test_an_address_where_nobody_listens_is_said_first(tmp_path: Path, home: Path) -> None:
    """A port that is bound and does not listen refuses whoever asks."""
    content = studies.study(tmp_path)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert refused(content, ClusterError, f"no Ray cluster answers at {address}", address=address) == []
    assert not home.exists()


def test_a_node_of_no_cluster_is_said_first(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Rays other tests have on this machine."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: None)
    reason = "no Ray runs on this one; .*--address host:port names a cluster"
    assert refused(studies.study(tmp_path), ClusterError, reason, address="auto") == []
    assert not home.exists()


@pytest.mark.parametrize("below", ["", "/home"])
def test_a_home_that_is_a_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    content = studies.study(tmp_path)
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("PETL_SEARCH_HOME", f"{tmp_path}/file{below}")
    assert refused(content, StoreError, r"file.* cannot be written: .*\$PETL_SEARCH_HOME names another one") == []
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not os.path.isdir("/sys"), reason="needs a folder in which nobody may write, not even root")
def test_a_home_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", "/sys/petl-search")
    message = r"/sys/petl-search.* cannot be written: .*names another one"
    assert refused(studies.study(tmp_path), StoreError, message) == []


@pytest.mark.parametrize("options", [{}, {"fresh": True}, {"or_resume": True}])
def test_a_folder_where_the_front_is_written_is_refused_first(
    tmp_path: Path, home: Path, options: dict[str, bool]
) -> None:
    content = studies.study(tmp_path)
    (home / "studies" / "tiny" / "front.png").mkdir(parents=True)
    assert refused(content, StoreError, r"studies/tiny/front\.png .* is no file: move it away", **options) == []
    assert {path.suffix for path in home.rglob("*") if path.is_file()} <= {".lock"}


def test_a_driver_takes_only_what_it_made(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    lock = StudyLock(tmp_path / "home" / "studies" / "demo")
    lock.drive()
    assert is_driven(tmp_path / "home" / "studies" / "demo")
    lock.release()
    assert list((tmp_path / "home").iterdir()) == []
    assert is_driven(tmp_path / "home" / "studies" / "demo") is None


def test_a_folder_with_anything_else_stays(tmp_path: Path) -> None:
    lock = StudyLock(tmp_path / "demo")
    lock.drive()
    (tmp_path / "demo" / "trials").mkdir()
    lock.release()
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["driver.lock", "trials", "workers.lock"]
    assert is_driven(tmp_path / "demo") is False


def test_a_lock_that_was_removed_keeps_nobody_away(tmp_path: Path) -> None:
    """Of two drivers one removes the file for which the other waits: the other one makes it anew."""
    first, second = StudyLock(tmp_path / "demo"), StudyLock(tmp_path / "demo")
    first.drive()
    first.release()
    second.drive()
    third = StudyLock(tmp_path / "demo")
    assert not third._take("driver.lock", 2)  # LOCK_EX
    second.release()
