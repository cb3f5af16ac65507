"""The studies of a database: created, opened, listed, deleted, each as the Records of its trials."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from search.storage.address import one_line, redacted, sqlite_file
from search.storage.commands import resume_command
from search.storage.database import (
    ConnectionLostError,
    DatabaseError,
    Persistence,
    arguments,
    is_postgresql,
    notice_losses,
)
from search.storage.errors import DamagedStoreError, is_damaged, writing
from search.storage.locations import is_absent
from search.storage.tables import require_tables
from search.trials import records
from search.trials.quiet import quiet
from search.trials.records import Records, RecordsError, UnreadableError

_TABLES: Final = ("studies", "study_user_attributes", "trials", "trial_user_attributes", "trial_values")
_FAILURES: Final = (
    ConnectionLostError,
    SQLAlchemyError,
    StorageInternalError,
    sqlite3.DatabaseError,
    UnreadableError,
    json.JSONDecodeError,
    RuntimeError,  # of Optuna, for tables of another version
)
_BUSY_SECONDS: Final = 60  # how long sqlite waits for another process's lock


def create_study(url: str, name: str, objectives: Sequence[str], guard: Callable[[], None] | None = None) -> Records:
    """Create a study, and the database where there is none. Raises RecordsError where the name is taken.

    `objectives` are the names of the score, the cost, and a second cost if there is one. `guard` is called before
    every operation, and may refuse it: see `search.storage.locks.driving`.
    """
    if file := sqlite_file(url):
        with writing(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
    storage = _storage(url)
    with _answering(url):
        return Records.create_study(storage, name, objectives, _persistence(url, name, guard))


def open_study(url: str, name: str, guard: Callable[[], None] | None = None, *, writes: bool = True) -> Records:
    """Open an existing study; one that another process drives is only read, so nothing `writes`.

    Raises RecordsError where there is none of that name, DamagedStoreError where it cannot be read.
    """
    if not _exists(url):
        raise RecordsError(f"there is no study {name!r}; there are: none")
    storage = _storage(url)
    with _answering(url, name):
        study_id = records.study_id_of(storage, name)
        opened = Records(storage, study_id, _persistence(url, name, guard), writes=writes)
        opened.require_readable()
        return opened


def study_names(url: str) -> list[str]:
    """Return the names of a database's studies, oldest first; none where the database was never created."""
    if not _exists(url):
        return []
    with _opened(url) as storage:
        return records.study_names(storage)


def study_exists(url: str, name: str) -> bool:
    """Return whether the database has a study of that name."""
    return name in study_names(url)


def study_info(url: str, name: str, key: str) -> Any:
    """Return what `Records.set_info` kept for a study; None where there is no such study."""
    with _opened(url, name) as storage:
        try:
            study_id = storage.get_study_id_from_name(name)
        except KeyError:
            return None
        return storage.get_study_user_attrs(study_id).get(key)


def study_begun(url: str, name: str) -> bool:
    """Return whether a study is on record; it is not where its driver died before recording what the study runs."""
    return _exists(url) and study_info(url, name, records.RESOLVED) is not None


def delete_study(url: str, name: str) -> None:
    """Remove a study and all its trials. Raises RecordsError where there is none of that name."""
    with _opened(url) as storage:
        storage.delete_study(records.study_id_of(storage, name))


def _storage(url: str) -> RDBStorage:
    """Return the storage at an address. Raises DatabaseError where no database answers."""
    options: dict[str, Any] = {"connect_args": {"timeout": _BUSY_SECONDS}}
    public = url
    if is_postgresql(url):
        public, options = arguments(url)
    with _answering(url), quiet():
        if file := sqlite_file(url):
            require_tables(file, _TABLES)
        storage = RDBStorage(public, engine_kwargs=options)
    if is_postgresql(url):
        notice_losses(storage.engine)
    return storage


@contextmanager
def _opened(url: str, name: str = "") -> Iterator[RDBStorage]:
    """Yield a storage for a short use, which is closed afterwards."""
    storage = _storage(url)
    try:
        with _answering(url, name):
            yield storage
    finally:
        storage.engine.dispose()


@contextmanager
def _answering(url: str, name: str = "") -> Iterator[None]:
    """Raise DatabaseError where the database fails within the context, DamagedStoreError where it always will.

    `name` is the study's, where only one is read.
    """
    try:
        yield
    except _FAILURES as error:
        if isinstance(error, RuntimeError) and not is_damaged(error):
            raise
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        cause = getattr(cause, "orig", None) or cause  # without the statement
        unreadable = isinstance(error, UnreadableError | json.JSONDecodeError)
        if not unreadable and not is_damaged(error):
            raise DatabaseError(f"the database {redacted(url)} fails: {one_line(cause)}") from None
        whose = f" of study {name!r}" if name else ""
        what = one_line(cause) if isinstance(error, UnreadableError) else f"{type(cause).__name__}: {one_line(cause)}"
        anew = ", or begin the study anew by `petl-search run FILE --fresh`" if name and unreadable else ""
        raise DamagedStoreError(
            f"the records{whose} in {redacted(url)} are damaged, or of another version ({what}). Nothing was changed. "
            "The trials' folders are no part of them, nor is MLflow's copy, which `petl-search ls`, `front`, `show` "
            f"and `export` read. Put a copy of the database back, and resume{anew}"
        ) from error


def _persistence(url: str, name: str, guard: Callable[[], None] | None) -> Persistence:
    persistence = Persistence(redacted(url), resume_command(name, database=url))
    if guard:
        persistence.guard = guard
    return persistence


def _exists(url: str) -> bool:
    """Return whether the database exists; opening an sqlite database would create it."""
    file = sqlite_file(url)
    return file is None or not is_absent(file)
