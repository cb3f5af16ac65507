"""PostgreSQL behind a study's records: reaching it, waiting while it is away, and the one driver of a study.

Sqlite needs none of this: it is a file of this machine, locked beside the study's folder.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeVar

from petl.errors import UserError
from search.storage.address import POSTGRESQL, one_line, redacted
from search.storage.locations import FullDiskError, StoreError, is_full

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
    """The database did not answer: whether it did what it was asked is not known."""


class DatabaseError(StoreError):
    """A database that does not answer, or that has no driver here."""


def is_postgresql(url: str) -> bool:
    """Whether it is such an address, as `search.storage.address.database` gives it."""
    return url.startswith(POSTGRESQL)


def arguments(url: str) -> tuple[str, dict[str, Any]]:
    """The address without any password, and what beside it goes into SQLAlchemy's `create_engine`.

    Raises DatabaseError where psycopg is not installed.
    """
    from sqlalchemy.engine import URL, make_url

    if not find_spec("psycopg"):
        raise DatabaseError(
            f"{redacted(url)} needs the package psycopg, which is not installed: pip install 'petl-search[postgresql]'"
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
        raise DatabaseError(f"no database answers at {redacted(url)}: {one_line(cause)}") from None
    if not there:
        raise StoreError(
            f"no store at {redacted(url)}: nothing was run there yet, or the store is elsewhere "
            "(--uri, $MLFLOW_TRACKING_URI, $PETL_SEARCH_HOME)"
        )


def notice_losses(engine: Engine) -> None:
    """From here on a connection that is lost, or not to be had, raises ConnectionLostError.

    It is no error of SQLAlchemy's, which Optuna would answer by trying again: a trial would be there twice.
    """
    from sqlalchemy import event

    def lost(context: ExceptionContext) -> None:
        if not context.is_pre_ping and (context.is_disconnect or context.connection is None):
            raise ConnectionLostError(one_line(context.original_exception)) from None

    event.listen(engine, "handle_error", lost)


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

    def announce(self, say: Callable[[str], None]) -> None:
        """Send what a person should know while it waits to `say`."""
        self.say = say

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
                    raise FullDiskError(f"the database {self.address} cannot be written: {one_line(cause)}") from None
                raise
            else:
                if said:
                    self.say(f"the database answers again after {time.monotonic() - began:.0f} s")
                return value
            operation = again or operation
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
