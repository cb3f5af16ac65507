"""PostgreSQL behind a study's records: connection options, and repetition of what an outage interrupts.

Sqlite needs none of this: it is a file of this machine.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeVar

from petl.errors import UserError
from search.storage.address import POSTGRESQL, one_line, redacted
from search.storage.errors import FullDiskError, StoreError, is_full

if TYPE_CHECKING:
    from sqlalchemy import Engine
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


class ConnectionLostError(UserError, ConnectionError):
    """The database did not answer: whether it carried out the operation is not known."""


class DatabaseError(StoreError):
    """A database does not answer, or its driver is not installed."""


def is_postgresql(url: str) -> bool:
    """Return whether an address, as `search.storage.address.database` returns it, is PostgreSQL's."""
    return url.startswith(POSTGRESQL)


def arguments(url: str) -> tuple[str, dict[str, Any]]:
    """Return the address without any password, and the keyword arguments for SQLAlchemy's `create_engine`.

    Raises DatabaseError where psycopg is not installed.
    """
    from sqlalchemy.engine import URL, make_url

    if not find_spec("psycopg"):
        raise DatabaseError(
            f"{redacted(url)} needs the package psycopg, which is not installed: pip install 'petl-search[postgresql]'"
        )
    full = make_url(url)
    query = {name: value for name, value in full.query.items() if name not in _SECRETS}
    options: dict[str, Any] = {name: value for name, value in _REACHING.items() if name not in query}
    options |= {name: value for name, value in full.query.items() if name in _SECRETS}
    options |= {"password": full.password} if full.password is not None else {}
    options["options"] = f"{query.pop('options', '')} {_SERVER}".strip()
    options["application_name"] = query.pop("application_name", "petl-search")
    public = URL.create(
        full.drivername, full.username, host=full.host, port=full.port, database=full.database, query=query
    )
    return str(public), {"connect_args": options, "pool_pre_ping": True, "pool_size": 1, "max_overflow": 4}


def reaching(url: str) -> str:
    """Return the address for another library to open, with our limits on how long a lost connection goes unnoticed."""
    from sqlalchemy.engine import make_url

    full = make_url(url)
    limits = {name: value for name, value in _REACHING.items() if name not in full.query}
    return full.update_query_dict(limits).render_as_string(hide_password=False)


@cache
def require_database(url: str, table: str | None = None) -> None:
    """Raise DatabaseError where no PostgreSQL answers, and StoreError where it has no such table.

    MLflow would try for minutes, and create its tables for somebody who only reads.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    public, options = arguments(url)
    try:
        with create_engine(public, poolclass=NullPool, connect_args=options["connect_args"]).connect() as connection:
            exists = (
                table is None or connection.exec_driver_sql("SELECT to_regclass(%s)", (table,)).scalar() is not None
            )
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise DatabaseError(f"no database answers at {redacted(url)}: {one_line(cause)}") from None
    if not exists:
        raise StoreError(
            f"no store at {redacted(url)}: nothing was run there yet, or the store is elsewhere "
            "(--uri, $MLFLOW_TRACKING_URI, $PETL_SEARCH_HOME)"
        )


def notice_losses(engine: Engine) -> None:
    """Have the engine raise ConnectionLostError for a connection that is lost or refused.

    An error of SQLAlchemy's own would make Optuna repeat the operation, and a trial could exist twice.
    """
    from sqlalchemy import event

    def lost(context: ExceptionContext) -> None:
        if not context.is_pre_ping and (context.is_disconnect or context.connection is None):
            raise ConnectionLostError(one_line(context.original_exception)) from None

    event.listen(engine, "handle_error", lost)


@dataclass
class Persistence:
    """Repeat what a lost connection interrupted, until the database answers, for up to `seconds`.

    `guard` is called before each attempt. An outage is reported once; one that lasts too long raises DatabaseError,
    then and at every later call. The loop is our own: a repetition may differ from the first attempt, the end of an
    outage is reported as well, and giving up is remembered.
    """

    address: str
    resume: str = "petl-search resume"
    guard: Callable[[], None] = field(default=lambda: None)
    say: Callable[[str], None] = field(default=lambda text: print(text, file=sys.stderr, flush=True))
    seconds: float = PATIENCE
    _given_up: DatabaseError | None = None

    def announce(self, say: Callable[[str], None]) -> None:
        """Report outages to `say` from here on."""
        self.say = say

    def __call__(self, operation: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        """Return the operation's value. A repetition calls `again` instead, where the operation may have been done."""
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
                        f"that was finished is lost. When it is back, resume with: {self.resume}"
                    )
                    raise self._given_up from None
                if not said:
                    self.say(f"the database {self.address} does not answer ({error}); waiting up to {self.seconds:g} s")
                    said = True
            except Exception as error:
                if is_full(error):
                    cause = error.__cause__ or error
                    cause = getattr(cause, "orig", None) or cause  # without the statement
                    raise FullDiskError(f"the database {self.address} cannot be written: {one_line(cause)}") from None
                raise
            else:
                if said:
                    self.say(f"the database answers again after {time.monotonic() - began:.0f} s")
                return value
            operation = again or operation
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def is_database_error(error: BaseException) -> bool:
    """Return whether an error is of a database or of the version of its tables, through whatever library."""
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, (SQLAlchemyError, sqlite3.DatabaseError, CommandError))
