"""Telling MLflow what the journal holds: in order, each entry until it has arrived, from a thread of its own.

An entry may be told twice: MLflow may have taken in what it never answered, or the driver may have died
before the journal knew. Trackers make that the same as once, as long as they know what MLflow has; so one
that failed is thrown away, and the next one reads it all anew.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from itertools import chain, repeat
from pathlib import Path
from types import TracebackType
from typing import Final, TypeAlias, TypeVar

from search.address import masked
from search.home import StoreError
from search.journal import Entry, Journal, Told
from search.seeds import Believed, Replicate
from search.store import TrialFolder
from search.tracking import Tracker, from_dict, refused

_PAUSES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds between attempts; the last one from then on
_EVERY: Final = 10.0  # seconds between two lines about what still waits
_GRACE: Final = 5.0  # seconds that a request under way is given to end

T = TypeVar("T")
Telling: TypeAlias = Callable[[Tracker, Path, Entry], object]

# What an entry's `tell` means; paths are relative to the study's folder, which may have moved in between.
TELLINGS: Final[Mapping[str, Telling]] = {
    "begin": lambda tracker, folder, entry: tracker.begin(),
    "ensure": lambda tracker, folder, entry: tracker.ensure(from_dict(entry.what["record"])),
    "publish": lambda tracker, folder, entry: tracker.publish(
        from_dict(entry.what["record"]), entry.what["counts"], at=entry.at
    ),
    "progress": lambda tracker, folder, entry: tracker.progress(
        entry.what["number"], entry.what["points"], at=entry.at
    ),
    "tested": lambda tracker, folder, entry: tracker.tested(entry.what["number"], entry.what["scores"], at=entry.at),
    "replicate": lambda tracker, folder, entry: tracker.replicate(
        Replicate.from_dict(entry.what["run"]), entry.what["points"], at=entry.at
    ),
    "believed": lambda tracker, folder, entry: tracker.believed(
        entry.what["number"], Believed(**entry.what["what"]), at=entry.at
    ),
    "artifacts": lambda tracker, folder, entry: tracker.artifacts(
        entry.what["number"], folder / entry.what["folder"], entry.what["name"]
    ),
    "withdraw": lambda tracker, folder, entry: _withdraw(tracker, folder, entry.what["number"], entry.what["why"]),
    "disk": lambda tracker, folder, entry: tracker.disk(entry.what["used"], entry.what["limit"]),
    "spent": lambda tracker, folder, entry: tracker.spent(entry.what),
    "front": lambda tracker, folder, entry: tracker.front(
        entry.what["rows"], entry.what["references"], [folder / file for file in entry.what["files"]]
    ),
    "close": lambda tracker, folder, entry: tracker.close(entry.what["status"]),
}


class Delivery:
    """The one that talks to MLflow while a study runs. Ctrl-C, or leaving the block, ends it within seconds.

    Example::

        with Delivery(journal, connect, folder, print) as delivery:
            delivery.tell(("begin", {}))
            arrived = delivery.drain(patience=60.0)

    `connect` opens the study's Tracker, `tracker` is one that is open already; `folder` is the study's.
    `say` hears when MLflow stays away and when it is back.
    """

    def __init__(
        self,
        journal: Journal,
        connect: Callable[[], Tracker],
        folder: Path,
        say: Callable[[str], None],
        tracker: Tracker | None = None,
    ) -> None:
        self.journal, self.folder = journal, folder
        self.left_out = 0  # entries that MLflow refused, and will
        self.trouble = ""  # what the last attempt ran into, "" where it went well
        self._connect, self._say, self._tracker = connect, say, tracker
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

    def tell(self, *told: Told) -> None:
        """Has MLflow told, in this order and after all that was told before. Returns at once, and raises nothing."""
        self.journal.append(*told)
        self._news.set()

    def drain(self, patience: float, limit: float = math.inf) -> bool:
        """Waits until all has arrived. False after `limit` seconds, or `patience` during which MLflow was away."""
        began = said = time.monotonic()
        while len(self.journal) and self._thread.is_alive():
            now = time.monotonic()
            if now - began >= limit or (self._failures and now - max(began, self._away) >= patience):
                break
            if now - said >= _EVERY:
                self._say(f"{self.waiting} still to reach MLflow{', which does not answer' * bool(self._failures)}")
                said = now
            time.sleep(0.02)
        return not len(self.journal)

    @property
    def waiting(self) -> str:
        """How much that is, in words."""
        return f"{len(self.journal)} {'entry' if len(self.journal) == 1 else 'entries'}"

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._news.clear()
            entry = self.journal.first()
            if entry is None:
                self._news.wait()
            elif self._arrived(entry):
                self.journal.delivered()
            else:
                self._stopping.wait(_PAUSES[min(self._failures, len(_PAUSES)) - 1])

    def _arrived(self, entry: Entry) -> bool:
        """Whether there is nothing more to do about it."""
        tracker, self._tracker = self._tracker, None  # kept only where all went well
        fresh = tracker is None
        try:
            tracker = tracker or self._connect()
        except Exception as error:  # whatever a store or a server of the user's raises
            return self._failed(error)
        try:
            TELLINGS[entry.tell](tracker, self.folder, entry)
        except Exception as error:
            if not (fresh and refused(error)):  # a tracker that has just read what is there errs no more
                return self._failed(error)
            self.left_out += 1
            self._say(f"MLflow refuses an entry ({entry.tell}), and it is left out: {_line(error)}")
        else:
            self._tracker = tracker
        if self._failures > 1:
            self._say(f"MLflow is back; {self.waiting} to go")
        self._failures, self.trouble = 0, ""
        return True

    def _failed(self, error: Exception) -> bool:
        if not self._failures:
            self._away = time.monotonic()
        self._failures += 1
        self.trouble = _line(error)
        if self._failures == 2:  # one alone is nothing to speak of: a connection that was dropped
            self._say(f"MLflow does not answer; the search goes on, and what it is to be told waits: {self.trouble}")
        return False


def _withdraw(tracker: Tracker, folder: Path, number: int, why: str) -> None:
    """A trial's result goes in both places; from the folder last, by which it is known to be there."""
    if tracker.run_of(number):
        tracker.withdraw(number, why)
    TrialFolder(folder, number).drop("result")


def patiently(ask: Callable[[], T], patience: float) -> T:
    """What `ask` gives; asked again for so many seconds while it raises StoreError, and raises the last one."""
    began, pauses = time.monotonic(), chain(_PAUSES, repeat(_PAUSES[-1]))
    while True:
        try:
            return ask()
        except StoreError:
            pause = next(pauses)
            if time.monotonic() - began + pause > patience:
                raise
        time.sleep(pause)


def _line(error: Exception) -> str:
    """An error on one line, without passwords, not too long."""
    text = " ".join(masked(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
