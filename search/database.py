"""PostgreSQL behind a study's records: reaching it, waiting while it is away, and the one driver of a study.

Sqlite needs none of this: it is a file of this machine, locked beside the study's folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeVar

from search.address import POSTGRESQL, masked
from search.home import FullDiskError, StoreError
from search.store import StudyBusyError, is_full

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine import ExceptionContext

PATIENCE: Final = 300.0  # seconds that a search waits for its database
_LONGEST_PAUSE: Final = 5.0  # between two attempts
# A machine that is gone is noticed within a minute, by the driver and by the server, which then drops its lock.
_REACHING: Final = {
    "connect_timeout": "10",
    "keepalives_idle": "20",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "50000",
}
_SERVER: Final = "-c tcp_keepalives_idle=20 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
_SECRETS: Final = ("password", "sslpassword", "oauth_client_secret")

T = TypeVar("T")


class ConnectionLostError(ConnectionError):
    """The database did not answer: whether it did what it was asked is not known."""


class DatabaseError(StoreError):
    """A database that does not answer, or that has no driver here."""


def is_postgresql(url: str) -> bool:
    """Whether it is such an address, as `search.address.database` gives it."""
    return url.startswith(POSTGRESQL)


def arguments(url: str) -> tuple[str, dict[str, Any]]:
    """The address without any password, and what beside it goes into SQLAlchemy's `create_engine`.

    Raises DatabaseError where psycopg is not installed.
    """
    from sqlalchemy.engine import URL, make_url

    if not find_spec("psycopg"):
        raise DatabaseError(
            f"{masked(url)} needs the package psycopg, which is not installed: pip install 'petl-search[postgresql]'"
        )
    given = make_url(url)
    query = {name: value for name, value in given.query.items() if name not in _SECRETS}
    beside: dict[str, Any] = {name: value for name, value in _REACHING.items() if name not in query}
    beside |= {name: value for name, value in given.query.items() if name in _SECRETS}
    beside |= {"password": given.password} if given.password is not None else {}
    beside["options"] = f"{query.pop('options', '')} {_SERVER}".strip()
    beside["application_name"] = query.pop("application_name", "petl-search")
    public = URL.create(
        given.drivername, given.username, host=given.host, port=given.port, database=given.database, query=query
    )
    return str(public), {"connect_args": beside, "pool_pre_ping": True, "pool_size": 1, "max_overflow": 4}


def reaching(url: str) -> str:
    """The address for others who open it, with our limits on how long a lost connection goes unnoticed."""
    from sqlalchemy.engine import make_url

    given = make_url(url)
    limits = {name: value for name, value in _REACHING.items() if name not in given.query}
    return given.update_query_dict(limits).render_as_string(hide_password=False)


@cache
def require_database(url: str, table: str | None = None) -> None:
    """Raises DatabaseError where no PostgreSQL answers, and StoreError where it has no such table.

    For MLflow, which would try for minutes, and make its tables for somebody who only reads.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    public, options = arguments(url)
    try:
        with create_engine(public, poolclass=NullPool, connect_args=options["connect_args"]).connect() as connection:
            there = table is None or connection.exec_driver_sql("SELECT to_regclass(%s)", (table,)).scalar() is not None
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise DatabaseError(f"no database answers at {masked(url)}: {reason(cause)}") from None
    if not there:
        raise StoreError(
            f"no store at {masked(url)}: nothing was run there yet, or the store is elsewhere "
            "(--uri, $MLFLOW_TRACKING_URI, $PETL_SEARCH_HOME)"
        )


def notice_losses(engine: Engine) -> None:
    """From here on a connection that is lost, or not to be had, raises ConnectionLostError.

    It is no error of SQLAlchemy's, which Optuna would answer by trying again: a trial would be there twice.
    """
    from sqlalchemy import event

    def lost(context: ExceptionContext) -> None:
        if not context.is_pre_ping and (context.is_disconnect or context.connection is None):
            raise ConnectionLostError(reason(context.original_exception)) from None

    event.listen(engine, "handle_error", lost)


def reason(error: BaseException) -> str:
    """What a database said, in one line, without passwords."""
    return masked(" ".join(str(error).split()))


@dataclass
class Persistence:
    """Repeats what a lost connection interrupted, until the database answers, for up to `seconds`.

    `guard` is called before each attempt. An outage is said once; one that lasts too long raises
    DatabaseError, then and for every later call.
    """

    address: str
    resume: str = "petl-search resume"
    guard: Callable[[], None] = field(default=lambda: None)
    say: Callable[[str], None] = field(default=lambda text: print(text, file=sys.stderr, flush=True))
    seconds: float = PATIENCE
    _given_up: DatabaseError | None = None

    def __call__(self, operation: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        """The operation's value. `again` replaces it where it may have been done already."""
        if self._given_up:
            raise self._given_up
        began, pause, said = time.monotonic(), 0.1, False
        while True:
            try:
                self.guard()
                value = operation()
            except ConnectionLostError as error:
                waited = time.monotonic() - began
                if waited + pause > self.seconds:
                    self._given_up = DatabaseError(
                        f"the database {self.address} has not answered for {self.seconds:g} seconds ({error}); nothing "
                        f"that was finished is lost. When it is back, go on with: {self.resume}"
                    )
                    raise self._given_up from None
                if not said:
                    self.say(f"the database {self.address} does not answer ({error}); waiting up to {self.seconds:g} s")
                    said = True
            except Exception as error:
                if is_full(error):
                    cause = error.__cause__ or error
                    cause = getattr(cause, "orig", None) or cause  # without the statement
                    raise FullDiskError(f"the database {self.address} cannot be written: {reason(cause)}") from None
                raise
            else:
                if said:
                    self.say(f"the database answers again after {time.monotonic() - began:.0f} s")
                return value
            operation = again or operation
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


class DriverLock:
    """The one driver of a study in a PostgreSQL: an advisory lock, which ends with the connection that took it."""

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
        self._address = masked(public)
        self._connection: Connection | None = None

    def take(self, patience: float = 3.0) -> None:
        """For the driver, when it begins. Waits up to `patience` seconds, which the server may need to notice a death.

        Raises StudyBusyError, and DatabaseError where no database answers.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                return self._take()
            except ConnectionLostError as error:
                raise DatabaseError(f"no database answers at {self._address}: {error}") from None
            except StudyBusyError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def hold(self) -> None:
        """Makes sure that the lock is still held, and takes it again where its connection was lost.

        Raises StudyBusyError where another driver has it by now, ConnectionLostError while nothing answers.
        """
        if self._connection is not None:
            try:
                self._connection.exec_driver_sql("SELECT 1")
            except ConnectionLostError:
                self.release()
        if self._connection is None:
            self._take()

    def release(self) -> None:
        """Lets go of it."""
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
    """This process is the one driver of the study in this database inside. What it yields makes sure that it still is.

    Raises StudyBusyError, and DatabaseError.
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
