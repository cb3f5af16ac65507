"""What is still to be published, on the driver's disk: entries in order, and how far they were delivered.

    studies/NAME/journal/0000000017.jsonl   an entry a line, from number 17 on
                         0000000903.jsonl   the next file: a full one is left alone
                         delivered          the number of the last entry that has arrived

A file is removed once all its entries have arrived, so that the journal is as long as what waits. A line
that a SIGKILL or a full disk tore is the last of its file, and does not count: nobody has read it. All of
this is a copy of the records, from which a resume restores what is lost with a disk.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, TypeVar

from search.storage.address import one_line
from search.storage.errors import DamagedStoreError, StoreError, is_damaged
from search.tracking.client import refused
from search.tracking.entries import Entry, parsed, written
from search.tracking.tracker import Tracker

_DELIVERED: Final = "delivered"
_FULL: Final = 1_000_000  # bytes, from which on a file gets no further entries


@dataclass(frozen=True)
class Line:
    """Hold an entry as the journal does: `tell` is its kind, and `what` its fields.

    `at` is when it was written, in seconds since the epoch. Lines are at least a millisecond apart, since MLflow
    counts in milliseconds and takes the value with the latest time for a metric's last one.
    """

    number: int
    at: float
    tell: str
    what: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Raise TypeError for a field of another type, which no journal has."""
        for value, kind in ((self.number, int), (self.at, (int, float)), (self.tell, str), (self.what, Mapping)):
            if not isinstance(value, kind):
                raise TypeError(f"a line of a journal has {kind} there; received {value!r}")


class Journal:
    """Queue entries beyond the life of a process: one thread appends, another one takes from the front.

    A journal that is opened has what an earlier process left; StoreError is raised where it cannot be read. Where the
    disk takes no entries, they wait in memory, and `say` gets one line about it.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self._say = folder, say
        self._lock = threading.Lock()
        self._refused = False  # by the disk
        self._file: IO[bytes] | None = None  # a new one for every process: nothing is written behind a torn line
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stored = [(line, path) for path in sorted(folder.glob("*.jsonl")) for line in _lines(path)]
        except OSError as error:
            raise StoreError(
                f"the journal {folder} cannot be read ({one_line(error)}). It holds a copy of what MLflow has not "
                "received yet: move it away, and a resume publishes all of that again from the records"
            ) from error
        done = _number(folder / _DELIVERED)
        self._last = max((line.number for line, _ in stored), default=done)
        self._at = max((line.at for line, _ in stored), default=0.0)
        self._waiting: deque[tuple[Line, Path | None]] = deque(item for item in stored if item[0].number > done)
        for path in {*folder.glob("*.jsonl")} - {path for _, path in self._waiting}:
            path.unlink()

    def __len__(self) -> int:
        return len(self._waiting)

    def append(self, *entries: Entry) -> None:
        """Add entries at the end, safe on the disk when this returns. Raises nothing where the disk is full."""
        if not entries:
            return
        with self._lock:
            now = max(time.time(), self._at + 0.001)
            lines = [
                Line(self._last + 1 + i, round(now + i / 1000, 3), *written(entry)) for i, entry in enumerate(entries)
            ]
            self._last, self._at = lines[-1].number, lines[-1].at
            try:
                path: Path | None = self._write(lines)
                refusal = None
            except OSError as error:
                path, refusal = None, error
                self._abandon()
            self._waiting.extend((line, path) for line in lines)
        if refusal and not self._refused:
            self._say(
                f"the journal {self.folder} cannot be written ({refusal}); what is to be published waits in memory, "
                "and should this process die, a resume restores it from the records"
            )
        self._refused = refusal is not None

    def first(self) -> Line | None:
        """Return the line that waits longest, None where none waits."""
        return self._waiting[0][0] if self._waiting else None

    def delivered(self) -> None:
        """Remove the first line, which has arrived."""
        with self._lock:
            line, path = self._waiting.popleft()
            following = self._waiting[0][1] if self._waiting else None
            with suppress(OSError):  # after a crash the line is delivered again, which changes nothing
                mark = self.folder / f"{_DELIVERED}.new"
                mark.write_text(str(line.number))
                mark.replace(self.folder / _DELIVERED)
            if path and path != following:
                if self._file and Path(self._file.name) == path:
                    self._close()
                with suppress(OSError):
                    path.unlink()

    def close(self) -> None:
        """Close the file; what waits stays."""
        with self._lock:
            self._close()

    def _write(self, lines: list[Line]) -> Path:
        """Return the file that has the lines, safe on the disk. Raises OSError."""
        data = memoryview(b"".join(json.dumps(vars(line)).encode() + b"\n" for line in lines))
        if self._file and self._file.tell() >= _FULL:
            self._close()
        if self._file is None:
            self._file = (self.folder / f"{lines[0].number:010d}.jsonl").open("xb", buffering=0)
        path = Path(self._file.name)
        while data:
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())
        return path

    def _abandon(self) -> None:
        """Close a file that may end in a torn line; remove one without any whole line."""
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


def _lines(path: Path) -> Iterator[Line]:
    """Yield the whole lines of a file, up to a torn one."""
    with path.open("rb") as file:
        for text in file:
            try:
                line = Line(**json.loads(text))
            except (ValueError, TypeError):
                return
            if not text.endswith(b"\n"):
                return
            yield line


def _number(path: Path) -> int:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return 0


_PAUSES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds between attempts; the last one from then on
_EVERY: Final = 10.0  # seconds between two lines about what still waits
_GRACE: Final = 5.0  # seconds that a request under way is given to end

T = TypeVar("T")


class Delivery:
    """Publish a journal's entries from a thread of its own. Ctrl-C, or leaving the context, ends it within seconds.

    Example::

        with Delivery(journal, connect, folder, print) as delivery:
            delivery.send(Begin())
            arrived = delivery.drain(patience=60.0)

    `connect` opens the study's trackers, `trackers` are open already; `folder` is the study's.
    `say` gets a line when MLflow stays away and when it is back.
    """

    def __init__(
        self,
        journal: Journal,
        connect: Callable[[], Sequence[Tracker]],
        folder: Path,
        say: Callable[[str], None],
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.journal, self.folder = journal, folder
        self.left_out = 0  # entries that MLflow refused, and will
        self.trouble = ""  # what the last attempt ran into, "" where it went well
        self.damaged = False  # whether it was damage of the store, which waiting does not mend
        self._connect, self._say, self._trackers = connect, say, trackers
        self._failures = 0  # in a row
        self._away = 0.0  # since when, by the monotonic clock
        self._news, self._stopping = threading.Event(), threading.Event()
        # A daemon, since a request to a server that hangs must not keep the process.
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)

    def __enter__(self) -> Delivery:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._news.set()
        self._thread.join(_GRACE)
        self.journal.close()

    def send(self, *entries: Entry) -> None:
        """Publish entries, in this order and after all that were sent before. Returns at once, and raises nothing."""
        self.journal.append(*entries)
        self._news.set()

    def drain(self, patience: float, limit: float = math.inf) -> bool:
        """Wait until all has arrived, and return True.

        Return False after `limit` seconds, after `patience` seconds during which MLflow was away, or as soon as its
        store is found to be damaged.
        """
        began = said = time.monotonic()
        while len(self.journal) and self._thread.is_alive():
            now = time.monotonic()
            if self.damaged or now - began >= limit or (self._failures and now - max(began, self._away) >= patience):
                break
            if now - said >= _EVERY:
                self._say(f"{self.waiting} still to reach MLflow{', which does not answer' * bool(self._failures)}")
                said = now
            time.sleep(0.02)
        return not len(self.journal)

    @property
    def waiting(self) -> str:
        """How many entries wait, in words."""
        return f"{len(self.journal)} {'entry' if len(self.journal) == 1 else 'entries'}"

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._news.clear()
            line = self.journal.first()
            if line is None:
                self._news.wait()
            elif self._arrived(line):
                self.journal.delivered()
            else:
                self._stopping.wait(_PAUSES[min(self._failures, len(_PAUSES)) - 1])

    def _arrived(self, line: Line) -> bool:
        """Publish a line; return whether there is nothing more to do about it."""
        trackers, self._trackers = self._trackers, ()  # kept only where all went well
        fresh = not trackers
        try:
            trackers = trackers or self._connect()
        except Exception as error:  # whatever a store or a server of the user's raises
            return self._failed(error)
        try:
            entry = parsed(line.tell, line.what)
            for tracker in trackers:
                entry.apply(tracker, self.folder, line.at)
        except Exception as error:
            if not (fresh and refused(error)):  # an older tracker may have another picture of the store than the store
                return self._failed(error)
            self.left_out += 1
            self._say(f"MLflow refuses an entry ({line.tell}), and it is left out: {_brief(error)}")
        else:
            self._trackers = trackers
        if self._failures > 1:
            self._say(f"MLflow is back; {self.waiting} to go")
        self._failures, self.trouble, self.damaged = 0, "", False
        return True

    def _failed(self, error: Exception) -> bool:
        if not self._failures:
            self._away = time.monotonic()
        self._failures += 1
        self.trouble, self.damaged = _brief(error), is_damaged(error)
        if self._failures == 2:  # a single one is a connection that was dropped
            self._say(f"MLflow does not answer; the search continues, and its results wait: {self.trouble}")
        return False


def patiently(ask: Callable[[], T], patience: float) -> T:
    """Return what `ask` returns, asking again for `patience` seconds while it raises StoreError; raise the last one.

    A DamagedStoreError is raised at once.
    """
    began, pauses = time.monotonic(), chain(_PAUSES, repeat(_PAUSES[-1]))
    while True:
        try:
            return ask()
        except DamagedStoreError:
            raise
        except StoreError:
            pause = next(pauses)
            if time.monotonic() - began + pause > patience:
                raise
        time.sleep(pause)


def _brief(error: Exception) -> str:
    """Return an error on one line of at most 200 characters, without passwords."""
    text = one_line(error) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
