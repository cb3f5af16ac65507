"""A small study whose driver and workers are killed, again and again, at random moments: see test_survival."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_READY = 180.0  # seconds until a driver gets anywhere
_GONE = 90.0  # seconds until nothing of a killed driver lives: two agents of Ray's take 60 to give up on it


@dataclass
class Kill:
    """Who was killed, when in the life of its driver (seconds), and what was finished at that moment."""

    who: str
    after: float
    finished: dict[int, str]


@dataclass
class Victim:
    """A driver as a child process, and all the processes that it ever started."""

    command: list[str]
    log: Path
    family: dict[int, psutil.Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "search.cli", *self.command],
            stdout=self.log.open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def watch(self) -> None:
        """Remembers the processes that there are now."""
        try:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self.family.setdefault(child.pid, child)
        except psutil.NoSuchProcess:
            pass

    def workers(self) -> list[psutil.Process]:
        """The live processes that train."""
        self.watch()
        titles = {child: _title(child) for child in self.family.values()}
        return [child for child, title in titles.items() if title.startswith("ray::ResourceTrainable")]

    def wait_for(self, reached: Callable[[], object]) -> None:
        """Until `reached`, or the driver is done."""
        deadline = time.monotonic() + _READY
        while not reached() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)

    def kill_worker(self, draw: random.Random) -> bool:
        """SIGKILL to one of the workers; False where there is none."""
        workers = sorted(self.workers(), key=lambda worker: worker.pid)
        if workers:
            draw.choice(workers).kill()
        return bool(workers)

    def kill(self) -> None:
        """SIGKILL to the driver alone."""
        self.watch()
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


def left_running(victims: list[Victim]) -> list[str]:
    """The processes that outlived these drivers."""
    everybody = [process for victim in victims for process in victim.family.values()]
    _, alive = psutil.wait_procs(everybody, timeout=_GONE)
    return [_title(process) for process in alive]


def progress(home: Path, study: str) -> int:
    """Milestones that the study's trials have passed, three for a finished one."""
    reached: dict[str, int] = {}
    for path in (home / "studies" / study / "trials").glob("*/*/manifest.json"):
        part, trial = path.parts[-2], path.parts[-3]
        passed = 3 if part == "result" else int(part.removeprefix("state-")) if part.startswith("state-") else 0
        reached[trial] = max(reached.get(trial, 0), passed)
    return sum(reached.values())


def finished(home: Path, study: str) -> dict[int, str]:
    """Trials with a committed result: number -> the manifest's text, which has the hash of every file."""
    trials = (home / "studies" / study / "trials").glob("*/result/manifest.json")
    return {int(path.parts[-3]): path.read_text() for path in trials if _is_json(path.read_text())}


def fill(ballast: Path) -> None:
    """Leaves no byte free on a disk."""
    with suppress(OSError), ballast.open("ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
