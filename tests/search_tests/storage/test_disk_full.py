"""A disk that is full, for real: a small tmpfs. Nothing fails for good, and a resume goes on when there is room."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import studies
import torch
from rich.console import Console
from safetensors.torch import save_file

from search.storage.errors import FullDiskError
from search.storage.folder import TrialFolder
from search.storage.studies import open_study
from search.study.run import resume, run
from search.trials.record import State
from search.workers.training import failed


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here (root can): {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> Path:
    """Takes all that is left of a disk."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65_536))
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(b"0")
    return filler


def test_a_write_that_fails_is_no_part_and_says_why(small: Path) -> None:
    trial = TrialFolder(small, 0)
    folder = trial.begin("state-1")
    with pytest.raises(Exception, match="space") as raised:
        save_file({"x": torch.zeros(8_000_000)}, folder / "state.safetensors")
    assert failed(raised.value).failure.startswith("disk full: ")
    fill(small)
    trial.note("training 1/2")  # for people: no reason to fail
    with pytest.raises(OSError, match="No space left"):
        trial.commit("state-1")
    assert trial.find("state-1") is None
    assert trial.latest_state() is None


@pytest.mark.full("two searches")
def test_a_search_on_a_full_disk_ends_with_one_message_and_goes_on_later(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(small))
    content = studies.study(
        tmp_path / "inputs", references=["majority"], budget={"trials": 4, "epochs": 3}, scheduler={"name": "none"}
    )
    over = threading.Event()

    def fill_soon() -> None:
        while not list(small.glob("studies/tiny/trials/*/result/manifest.json")) and not over.wait(0.02):
            continue
        fill(small)

    filling = threading.Thread(target=fill_soon, daemon=True)
    filling.start()
    with pytest.raises(FullDiskError, match=r"a disk is full.*petl-search resume tiny"):
        run(content, console=Console(quiet=True))
    over.set()
    filling.join()
    whole = {path: path.read_text() for path in small.glob("studies/tiny/trials/*/result/manifest.json")}
    (small / "filler").unlink()
    records = open_study(f"sqlite:///{small / 'optuna.db'}", "tiny")
    assert State.FAIL not in {record.state for record in records.all()}
    records.disconnect()
    study = resume("tiny", console=Console(quiet=True))
    assert [trial.state for trial in (*study.trials, *study.references)] == [State.COMPLETE] * 5
    assert whole
    for path, text in whole.items():
        if text.strip().endswith("}"):
            assert path.read_text() == text
