"""What MLflow is still to be told, on the driver's disk: entries in order, and how far they were delivered.

    studies/NAME/journal/0000000017.jsonl   an entry a line, from number 17 on
                         0000000903.jsonl   the next file: a full one is left alone
                         delivered          the number of the last entry that has arrived

A file is removed once all its entries have arrived, so that the journal is as long as what waits. A line
that a SIGKILL or a full disk tore is the last of its file, and does not count: nobody was told of it. All of
this is a copy of what the records say, so that what is lost with a disk can be made good from them.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

Told: TypeAlias = tuple[str, Mapping[str, Any]]  # what to do, with which JSON-ready arguments

_DELIVERED: Final = "delivered"
_FULL: Final = 1_000_000  # bytes, from which on a file gets no further entries


@dataclass(frozen=True)
class Entry:
    """One thing that MLflow is to be told.

    `at` is when it was written, in seconds since the epoch. Entries are at least a millisecond apart, MLflow's
    unit, which takes of a metric's values the one with the latest time for the last.
    """

    number: int
    at: float
    tell: str
    what: Mapping[str, Any]


class Journal:
    """A queue of entries that outlives its process: one thread appends, another one takes from the front.

    Opening it finds what an earlier process left. `say` is told, once, of a disk that takes no entries;
    those wait in memory then.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._say = folder, say
        self._lock = threading.Lock()
        self._refused = False  # by the disk
        self._file: IO[bytes] | None = None  # a new one for every process: nothing is written behind a torn line
        done = _number(folder / _DELIVERED)
        kept = [(entry, path) for path in sorted(folder.glob("*.jsonl")) for entry in _entries(path)]
        self._last = max((entry.number for entry, _ in kept), default=done)
        self._at = max((entry.at for entry, _ in kept), default=0.0)
        self._waiting: deque[tuple[Entry, Path | None]] = deque(item for item in kept if item[0].number > done)
        for path in {*folder.glob("*.jsonl")} - {path for _, path in self._waiting}:
            path.unlink()

    def __len__(self) -> int:
        return len(self._waiting)

    def append(self, *told: Told) -> None:
        """New entries at the end, safe on the disk when this returns. Raises nothing where the disk is full."""
        if not told:
            return
        with self._lock:
            now = max(time.time(), self._at + 0.001)
            entries = [
                Entry(self._last + 1 + i, round(now + i / 1000, 3), tell, what) for i, (tell, what) in enumerate(told)
            ]
            self._last, self._at = entries[-1].number, entries[-1].at
            try:
                path: Path | None = self._write(entries)
                refusal = None
            except OSError as error:
                path, refusal = None, error
                self._abandon()
            self._waiting.extend((entry, path) for entry in entries)
        if refusal and not self._refused:
            self._say(
                f"the journal {self.folder} cannot be written ({refusal}); what MLflow is to be told waits in memory, "
                "and should this process die, a resume makes it good from the records"
            )
        self._refused = refusal is not None

    def first(self) -> Entry | None:
        """The entry that waits longest."""
        return self._waiting[0][0] if self._waiting else None

    def delivered(self) -> None:
        """The first entry has arrived."""
        with self._lock:
            entry, path = self._waiting.popleft()
            following = self._waiting[0][1] if self._waiting else None
            with suppress(OSError):  # then it is delivered again after a crash, which changes nothing
                mark = self.folder / f"{_DELIVERED}.new"
                mark.write_text(str(entry.number))
                mark.replace(self.folder / _DELIVERED)
            if path and path != following:
                if self._file and Path(self._file.name) == path:
                    self._close()
                with suppress(OSError):
                    path.unlink()

    def close(self) -> None:
        """Lets go of the file; what waits stays."""
        with self._lock:
            self._close()

    def _write(self, entries: list[Entry]) -> Path:
        """The file that has them, safe on the disk. Raises OSError."""
        lines = memoryview(b"".join(json.dumps(vars(entry)).encode() + b"\n" for entry in entries))
        if self._file and self._file.tell() >= _FULL:
            self._close()
        if self._file is None:
            self._file = (self.folder / f"{entries[0].number:010d}.jsonl").open("xb", buffering=0)
        path = Path(self._file.name)
        while lines:
            lines = lines[self._file.write(lines) :]
        os.fsync(self._file.fileno())
        return path

    def _abandon(self) -> None:
        """No further entries for a file that may end in a torn line; nor any file at all without a whole one."""
        if self._file:
            path = Path(self._file.name)
            self._close()
            if all(path != other for _, other in self._waiting):
                with suppress(OSError):
                    path.unlink()

    def _close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None


def _entries(path: Path) -> Iterator[Entry]:
    """The whole ones of a file, up to a torn line."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):
                return
            if not line.endswith(b"\n"):
                return
            yield entry


def _number(path: Path) -> int:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return 0
