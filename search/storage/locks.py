"""One driver a study: a lock on its folder, and one in its database."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from petl.errors import UserError
from search.storage.address import redacted
from search.storage.database import ConnectionLostError, DatabaseError, arguments, is_postgresql, notice_losses
from search.storage.errors import StoreError, writing

if TYPE_CHECKING:
    from sqlalchemy import Connection


class DriverLock:
    """The one driver of a study in PostgreSQL: an advisory lock, which ends with the connection that took it."""

    def __init__(self, url: str, study: str) -> None:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        self._study = study
        self._key = int.from_bytes(hashlib.sha256(f"petl-search {study}".encode()).digest()[:8], signed=True)
        # as pg_stat_activity shows it, in at most 63 characters; the end tells this driver from every other
        self._name = f"petl-search {socket.gethostname()[:30]}:{os.getpid()} {uuid.uuid4().hex[:8]}"
        public, options = arguments(url)
        self._engine = create_engine(
            public,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={**options["connect_args"], "application_name": self._name},
        )
        notice_losses(self._engine)
        self._address = redacted(public)
        self._connection: Connection | None = None

    def take(self, patience: float = 3.0) -> None:
        """Take the lock, waiting up to `patience` seconds, which the server may need to notice a driver's death.

        Raises StudyBusyError, and DatabaseError where no database answers.
        """
        attempts = Retrying(
            retry=retry_if_exception_type(StudyBusyError),
            wait=wait_fixed(0.1),
            stop=stop_after_delay(patience),
            reraise=True,
        )
        try:
            attempts(self._take)
        except ConnectionLostError as error:
            raise DatabaseError(f"no database answers at {self._address}: {error}") from None

    def hold(self) -> None:
        """Check that the lock is still held, and take it again where its connection was lost.

        Raises StudyBusyError where another driver has the lock by now, ConnectionLostError while nothing answers.
        """
        if self._connection is not None:
            try:
                self._connection.exec_driver_sql("SELECT 1")
            except ConnectionLostError:
                self.release()
        if self._connection is None:
            self._take()

    def release(self) -> None:
        """Release the lock."""
        if self._connection is not None:
            with contextlib.suppress(ConnectionLostError):
                self._connection.close()
            self._connection = None

    def _take(self) -> None:
        connection = self._engine.connect()
        if connection.exec_driver_sql("SELECT pg_try_advisory_lock(%s)", (self._key,)).scalar():
            self._connection = connection
            return
        with connection:
            holder = connection.exec_driver_sql(
                "SELECT pid, application_name FROM pg_locks JOIN pg_stat_activity USING (pid) "
                "WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND database = "
                "(SELECT oid FROM pg_database WHERE datname = current_database()) "
                "AND (classid::bigint << 32) | objid::bigint = %s",
                (self._key,),
            ).first()
            if holder and holder.application_name == self._name:  # a connection of ours that the server holds for alive
                connection.exec_driver_sql("SELECT pg_terminate_backend(%s)", (holder.pid,))
                raise ConnectionLostError("the server still has a lost connection of this driver")
        who = f" ({holder.application_name})" if holder and holder.application_name else ""
        raise StudyBusyError(f"the study {self._study!r} is being run by another process{who}; end that one first")


@contextmanager
def driving(url: str, study: str) -> Iterator[Callable[[], None]]:
    """Hold the lock of a study in its database within the context; yield a check that the lock is still held.

    Raises StudyBusyError, and DatabaseError where no database answers.
    """
    if not is_postgresql(url):
        yield lambda: None
        return
    lock = DriverLock(url, study)
    lock.take()
    try:
        yield lock.hold
    finally:
        lock.release()


_DRIVER: Final = "driver.lock"
_WORKERS: Final = "workers.lock"
_ORPHANED: Final = 180.0  # seconds: Ray's nodes take up to 130 to notice that their head is dead, and end its workers
_SOON: Final = 1.0


class StudyBusyError(UserError):
    """Another process drives the study, or workers of an earlier driver still live."""


def run_token(study: Path) -> str:
    """Return the token of the run that drives the study with this folder, or drove it last; "" where none did.

    A node that reads the driver's own token in its folder of that name shares the driver's folder.
    """
    try:
        return (study / _DRIVER).read_text()
    except OSError:
        return ""


class StudyLock:
    """One driver a study, and no worker of an earlier one: locks that the system drops when a process dies.

    The driver holds `driver.lock` alone, and writes the token of its run there; workers share `workers.lock` while
    they live. Where a driver leaves nothing else, it leaves no folder either.
    """

    def __init__(self, study: Path) -> None:
        self._study = study
        self._made = [folder for folder in (study, *study.parents) if not folder.exists()]
        self._held: list[IO[bytes]] = []
        self._drives = False

    def drive(self, patience: float = _ORPHANED, say: Callable[[str], object] = lambda _: None) -> None:
        """Take the driver's lock, after waiting up to `patience` seconds for workers of an earlier driver; say so once.

        Raises StudyBusyError, and StoreError where the folder cannot be written.
        """
        if not self._take_soon(_DRIVER, fcntl.LOCK_EX):
            raise StudyBusyError(f"the study {self._study.name!r} is being run by another process; end that one first")
        self._drives = True
        driver = self._held[-1]
        driver.truncate(0)
        driver.write(uuid.uuid4().hex.encode())
        driver.flush()
        os.fsync(driver.fileno())
        began, said = time.monotonic(), False
        while not self._take(_WORKERS, fcntl.LOCK_EX):
            waited = time.monotonic() - began
            if waited > patience:
                raise StudyBusyError(
                    f"workers of an earlier run of {self._study.name!r} are still alive after {waited:.0f} s; end them "
                    "or wait longer"
                )
            if waited > _SOON and not said:
                say(f"waiting up to {patience:.0f} s for workers that an earlier run left")
                said = True
            time.sleep(0.2)
        self._held.pop().close()

    def work(self) -> None:
        """Share the workers' lock for as long as this process lives. A driver holds that lock for a moment at most."""
        while not self._take(_WORKERS, fcntl.LOCK_SH):
            time.sleep(0.05)

    def release(self) -> None:
        """Release every lock. A driver removes the files of its locks where nothing else lies beside them."""
        if self._drives and {path.name for path in self._study.glob("*")} <= {_DRIVER, _WORKERS}:
            for name in (_WORKERS, _DRIVER):
                (self._study / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # one that others use by now
                for folder in self._made:
                    folder.rmdir()
        self._drives = False
        while self._held:
            self._held.pop().close()

    def _take_soon(self, name: str, how: int) -> bool:
        """Take a lock that `is_driven` may hold for a moment."""
        deadline = time.monotonic() + _SOON
        while not self._take(name, how):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def _take(self, name: str, how: int) -> bool:
        path = self._study / name
        while True:
            with writing(self._study):
                self._study.mkdir(parents=True, exist_ok=True)
                try:
                    file = path.open("a+b")  # NFS shares a lock only where the file may be read
                except (FileNotFoundError, IsADirectoryError) as error:
                    if os.path.lexists(path):
                        raise StoreError(
                            f"the lock {path} is a file that can be written: {error.strerror}. It holds nothing of the "
                            "study; where something else has its place, remove that"
                        ) from error
                    continue  # another driver has just removed the folder
            try:
                fcntl.flock(file, how | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return False
            if _lies_at(path, file):
                self._held.append(file)
                return True
            file.close()  # another driver has removed it: its lock keeps nobody away


def is_driven(study: Path) -> bool | None:
    """Return whether a process drives the study with this folder; None where no driver's lock lies here."""
    try:
        with (study / _DRIVER).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def _lies_at(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
