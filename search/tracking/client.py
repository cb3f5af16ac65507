"""Reach MLflow: clients, pages, retries, and its errors as ours."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from search.storage.address import expand_env, one_line, redacted, sqlite_file, without_password
from search.storage.database import is_database_error, is_postgresql, reaching, require_database
from search.storage.errors import DamagedStoreError, StoreError, is_damaged, writing
from search.storage.locations import is_absent, require_store
from search.storage.tables import require_tables
from search.tracking.moved import follow_home

_PASSING: Final = (401, 403, 408, 409, 425, 429, 499)  # answers 4xx that time or a person may mend
# Of a process that writes, unless the user says otherwise. The journal repeats what failed: MLflow's own retries take
# minutes, and repeat also what has arrived, so that a run would be created twice.
_IMPATIENT: Final = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
_PAGE: Final = 1_000
_TABLES: Final = ("experiments", "runs", "metrics", "params", "tags")
_REASON: Final = 300  # characters of what a library says

_OPENING: Final = threading.Lock()  # MLflow opens a database once a process, and imports for that


def refused(error: Exception) -> bool:
    """Return whether MLflow refused a request, or the request makes no sense: repeating it does not help."""
    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    else:  # an artifact goes past MLflow's own errors
        status = getattr(getattr(error, "response", None), "status_code", 500)
    return (400 <= status < 500 and status not in _PASSING) or isinstance(error, (LookupError, TypeError))


def open_client(uri: str, *, create: bool = False) -> MlflowClient:
    """Return a client. Raises StoreError where the store is missing or does not answer; `create` makes a new one."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a line for each of some fifty migrations
    # the same, and a traceback for every lost connection, which is raised as well
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    address = expand_env(uri)
    file = sqlite_file(address)
    if file and file.exists() and not file.is_file():
        raise damaged(uri, f"{file} is no file")
    if not create:
        require_store(address)
    else:
        for name, value in _IMPATIENT.items():
            os.environ.setdefault(name, value)
        if file and is_absent(file):
            with _OPENING:
                _make(file)
    if file:
        with answering(uri):
            require_tables(file, _TABLES)
        follow_home(file)
    if is_postgresql(address):
        require_database(address, None if create else "experiments")
        address = reaching(address)
    with answering(uri):
        with _OPENING:
            client = MlflowClient(_with_credentials(address))
        client.search_experiments(max_results=1)
    return client


def _make(file: Path) -> None:
    """Create a sqlite store, as a whole or not at all.

    Its tables are made by migrations that take seconds; a file in which they were interrupted can never be opened.
    """
    with tempfile.TemporaryDirectory(prefix="petl-mlflow-") as scratch, writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        made, new = Path(scratch) / file.name, file.with_name(f"{file.name}.{os.getpid()}")
        MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
        try:
            shutil.copyfile(made, new)
            if is_absent(file):  # nobody else made it meanwhile
                new.rename(file)
        finally:
            new.unlink(missing_ok=True)


def _with_credentials(address: str) -> str:
    """Return a server's address without user and password, which go to the environment, where MLflow looks for them.

    MLflow prints the address that it has, in messages and beside every run that ends.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return address
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    if parts.password is not None:
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    return without_password(address)


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Raise StoreError where MLflow does not answer within the context, DamagedStoreError where it never will.

    Other errors than MLflow's and those of databases are raised as they are: they are faults of ours.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, MlflowException) and not is_database_error(error):
            raise
        if sqlite_file(expand_env(uri)) and is_damaged(error):
            raise damaged(uri, error) from error
        raise StoreError(f"no store answers at {redacted(uri)}: {one_line(error)}") from None


def require_undamaged(uri: str) -> None:
    """Raise DamagedStoreError for an sqlite store that is damaged; one that is away or missing may come back."""
    file = sqlite_file(expand_env(uri))
    if file is None or is_absent(file):
        return
    try:
        open_client(uri)
        with answering(uri), closing(sqlite3.connect(file)) as database:
            (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise damaged(uri, verdict)
    except DamagedStoreError:
        raise
    except StoreError:
        return


def damaged(uri: str, reason: object) -> DamagedStoreError:
    """Return what to raise for an sqlite store of MLflow that is damaged."""
    return DamagedStoreError(
        f"MLflow's store {redacted(uri)} is damaged, or of another version ({one_line(reason)[:_REASON]}). Nothing was "
        "changed. The studies' records and the trials' folders are no part of it: move the file away, and "
        "`petl-search resume NAME` publishes all of a study again, adapters included"
    )
