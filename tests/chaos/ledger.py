"""What a study's trials leave on the disk, as it happens: milestones, and training that was thrown away.

It looks at the trials' folders four times a second, from outside of everything that trains.
"""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_EVERY: Final = 0.25  # seconds between two looks
_TRAINING: Final = re.compile(r"training ([\d,]+)/")


@dataclass
class Course:
    """One trial. Times are seconds since the epoch."""

    commits: dict[str, int] = field(default_factory=dict)  # part -> when its manifest was written, in ns
    passed: list[float] = field(default_factory=list)  # when milestones were passed
    twice: int = 0  # milestones whose training was repeated, result included
    began: list[float] = field(default_factory=list)  # when each attempt at it did
    seen: float = 0.0  # when it was last seen to train
    step: int = 0
    wasted: list[tuple[float, float]] = field(default_factory=list)  # (when, seconds of training thrown away)

    @property
    def finished(self) -> bool:
        return "result" in self.commits

    def look(self, folder: Path) -> None:
        """Takes in what the trial's folder has now."""
        for manifest in folder.glob("*/manifest.json"):
            with suppress(FileNotFoundError):
                at, part = manifest.stat().st_mtime_ns, manifest.parent.name
                if part != "test" and self.commits.get(part) != at:
                    self.twice += part in self.commits
                    self.commits[part] = at
                    self.passed.append(at / 1e9)
        with suppress(OSError):
            text, at = (folder / "progress").read_text(), (folder / "progress").stat().st_mtime
            found = _TRAINING.match(text)
            if found and at > self.seen:
                step = int(found[1].replace(",", ""))
                if step < self.step:  # another process took it up
                    self.wasted.append((at, self.since_milestone(self.seen)))
                if step < self.step or not self.began:
                    self.began.append(at)
                self.seen, self.step = at, step

    def since_milestone(self, at: float) -> float:
        """For how long it had trained at that moment since its last milestone, in this attempt."""
        return at - max([moment for moment in (*self.began, *self.passed) if moment <= at], default=at)


class Ledger:
    """All trials of a study, watched from a thread while the block runs."""

    def __init__(self, study: Path) -> None:
        self._trials = study / "trials"
        self._lock, self._over = threading.Lock(), threading.Event()
        self.courses: dict[str, Course] = {}
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Ledger:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def progress(self) -> int:
        """Milestones passed by all trials."""
        with self._lock:
            return sum(len(course.passed) for course in self.courses.values())

    def finished(self) -> dict[str, int]:
        """Finished trials, with when their results were committed."""
        with self._lock:
            return {name: course.commits["result"] for name, course in self.courses.items() if course.finished}

    def under_way(self) -> set[str]:
        """Trials that have begun and not finished."""
        with self._lock:
            return {name for name, course in self.courses.items() if not course.finished and course.seen}

    def next_milestones(self, trials: set[str], after: float) -> list[float] | None:
        """When each of these trials passed its first milestone after that moment; None while one has not.

        One that had finished by then, which was not seen yet, has none to pass.
        """
        with self._lock:
            courses = [self.courses.get(name, Course()) for name in sorted(trials)]
            courses = [course for course in courses if not course.finished or max(course.passed) > after]
            found = [next((at for at in sorted(course.passed) if at > after), None) for course in courses]
        return None if None in found else [at for at in found if at is not None]

    def since_milestone(self, trials: set[str], at: float) -> list[float]:
        """How long each of these trials had trained at that moment, since its last milestone."""
        with self._lock:
            courses = [self.courses[name] for name in sorted(trials & set(self.courses))]
            return [course.since_milestone(min(at, course.seen)) for course in courses]  # who stood still lost nothing

    def wasted(self, since: float, until: float) -> list[float]:
        """The seconds of training that were thrown away, of each attempt that another one replaced in this time."""
        with self._lock:
            return [seconds for course in self.courses.values() for at, seconds in course.wasted if since < at <= until]

    def _watch(self) -> None:
        while True:
            last = self._over.is_set()
            for folder in sorted(self._trials.glob("*")):
                with self._lock:
                    course = self.courses.setdefault(folder.name, Course())
                    if last or not course.finished:
                        course.look(folder)
            if last:
                return
            self._over.wait(_EVERY)
