"""Trials' folders: immutable parts that a manifest, written last, makes valid.

    studies/NAME/trials/0007/state-1/   training state at the first milestone
                             result/    measurements, adapter directory
                             test/      scores on whole splits, and predictions
                             progress   what its worker is doing: a line for people, in no part

A part without its manifest, or with a file that the manifest does not vouch for, was interrupted
and does not exist. Nothing needs to be renamed: object stores cannot.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

from search.home import FullDiskError

_MANIFEST: Final = "manifest.json"
_PROGRESS: Final = "progress"
_TRIALS: Final = "trials"
_FULL: Final = ("no space left on device", "disk quota exceeded", "database or disk is full", "disk full")


class TrialFolder:
    """What one trial left on disk. The files of a part are written first, then `commit` makes it count."""

    def __init__(self, study: Path, number: int) -> None:
        self.path = study / _TRIALS / f"{number:04d}"

    def begin(self, part: str) -> Path:
        """An empty folder for a part; an interrupted attempt at it is removed."""
        folder = self.path / part
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def commit(self, part: str) -> None:
        """Vouches for the files of a part as they are now."""
        folder = self.path / part
        hashes = {str(file.relative_to(folder)): _digest(file) for file in sorted(folder.rglob("*")) if file.is_file()}
        write_json(folder / _MANIFEST, hashes)

    def find(self, part: str) -> Path | None:
        """The folder of a committed and undamaged part, else None."""
        folder = self.path / part
        try:
            hashes = read_json(folder / _MANIFEST)
            whole = all(_digest(folder / name) == digest for name, digest in hashes.items())
        except (OSError, ValueError):
            return None
        return folder if whole else None

    def tell(self, text: str) -> None:
        """Says what is being done, for whoever watches."""
        with suppress(OSError):  # a full disk, say, ends no trial here
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / _PROGRESS).write_text(text)

    def told(self) -> str:
        """What was said last, "" where nothing was."""
        try:
            return (self.path / _PROGRESS).read_text()
        except OSError:
            return ""

    def latest_state(self) -> Path | None:
        """The newest committed training state: `state-N`, N the milestones passed."""
        states = sorted(self.path.glob("state-*"), key=lambda folder: int(folder.name.removeprefix("state-")))
        return next((found for folder in reversed(states) if (found := self.find(folder.name))), None)

    def drop_states(self, but: str = "") -> None:
        """Removes training states, except the part named `but`."""
        for folder in self.path.glob("state-*"):
            if folder.name != but:
                self.drop(folder.name)

    def drop_interrupted(self) -> None:
        """Removes parts that were never committed. Nobody may be writing one."""
        for folder in self.path.glob("*/"):
            if not (folder / _MANIFEST).exists():
                self.drop(folder.name)

    def drop(self, part: str) -> None:
        """Removes a part: its manifest first, so that it does not exist in between."""
        (self.path / part / _MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.path / part, ignore_errors=True)


def trial_files(study: Path) -> dict[int, dict[str, int]]:
    """The files of all trials: number -> path in the trial's folder -> bytes. Others may be writing them."""
    found: dict[int, dict[str, int]] = {}
    for path, size in files_in(study / _TRIALS).items():
        number, _, name = path.partition("/")
        if number.isdecimal():
            found.setdefault(int(number), {})[name] = size
    return found


def files_in(folder: Path) -> dict[str, int]:
    """The files under a folder, by their path below it with slashes, with their sizes in bytes; none without it."""
    found: dict[str, int] = {}
    for where, _, names in os.walk(folder):
        below = Path(where).relative_to(folder)
        for name in names:
            with suppress(OSError):  # it has gone since
                found[(below / name).as_posix()] = os.lstat(os.path.join(where, name)).st_size
    return found


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Indented JSON."""
    path.write_text(json.dumps(data, indent=1, allow_nan=False))


def read_json(path: Path) -> dict[str, Any]:
    """Raises OSError or ValueError where the file is missing or torn."""
    data = json.loads(path.read_text())
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds no JSON object")
    return data


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_full(error: BaseException | None) -> bool:
    """Whether it came of a disk, or quota, that is full: of Python, safetensors or a database."""
    while error is not None:
        if isinstance(error, FullDiskError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(phrase in str(error).lower() for phrase in _FULL):
            return True
        error = error.__cause__
    return False


class StudyBusyError(RuntimeError):
    """Another process drives the study, or its workers have not gone yet."""


class StudyLock:
    """One driver a study, and no worker of an earlier one: locks that the system drops when a process dies.

    The driver holds `driver.lock` alone; workers share `workers.lock` while they live.
    """

    def __init__(self, study: Path) -> None:
        study.mkdir(parents=True, exist_ok=True)
        self._study = study
        self._held: list[IO[bytes]] = []

    def drive(self, patience: float = 60.0) -> None:
        """For the driver. Waits up to `patience` seconds for workers that an earlier driver left.

        Raises StudyBusyError.
        """
        if not self._take("driver.lock", fcntl.LOCK_EX):
            raise StudyBusyError(f"the study {self._study.name!r} is being run by another process; end that one first")
        deadline = time.monotonic() + patience
        while not self._take("workers.lock", fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise StudyBusyError(f"workers of an earlier run of {self._study.name!r} are still alive")
            time.sleep(0.2)
        self._held.pop().close()

    def work(self) -> None:
        """For a worker, for as long as its process lives."""
        self._take("workers.lock", fcntl.LOCK_SH)

    def release(self) -> None:
        """Lets go of everything."""
        while self._held:
            self._held.pop().close()

    def _take(self, name: str, how: int) -> bool:
        file = (self._study / name).open("ab")
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        self._held.append(file)
        return True
