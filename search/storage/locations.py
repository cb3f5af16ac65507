"""Where studies live: a folder with MLflow's database and artifacts, unless a server keeps them."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Final

from search.storage.address import database, sqlite_file, whole

STUDY_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # safe as a folder and in a URL


class StoreError(ValueError):
    """A store, study, trial or adapter that is not there, or a name that is taken."""


class FullDiskError(StoreError):
    """A disk that is full. What was running goes on from its last milestone when there is room."""


def home() -> Path:
    """$PETL_SEARCH_HOME, else ./petl-search. Absolute; not created here."""
    return Path(os.environ.get("PETL_SEARCH_HOME") or "petl-search").absolute()


def store_uri(uri: str | None = None) -> str:
    """MLflow's address: `uri`, else $MLFLOW_TRACKING_URI, else the database in `home()`."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def database_url(url: str | None = None) -> str:
    """The durable records' address: `url`, else $PETL_SEARCH_DATABASE, else a file in `home()`.

    Raises AddressError where it is none.
    """
    chosen = url or os.environ.get("PETL_SEARCH_DATABASE")
    return database(chosen) if chosen else f"sqlite:///{home() / 'optuna.db'}"


def artifact_root(uri: str | None = None) -> Path | None:
    """The folder that gets the artifacts of a store written directly; None where a server has its own."""
    return None if whole(store_uri(uri)).startswith(("http://", "https://")) else home() / "artifacts"


def require_store(uri: str) -> None:
    """Raises StoreError where `uri` is an sqlite store that was never made: opening it would make it."""
    file = sqlite_file(uri)
    if file and not file.exists():
        raise StoreError(
            f"no store at {file}: nothing was run there yet, or the store is elsewhere "
            "(--uri, $MLFLOW_TRACKING_URI, $PETL_SEARCH_HOME)"
        )


_FULL: Final = ("no space left on device", "disk quota exceeded", "database or disk is full", "disk full")


def is_full(error: BaseException | None) -> bool:
    """Whether it came of a disk, or quota, that is full: of Python, safetensors or a database."""
    while error is not None:
        if isinstance(error, FullDiskError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(phrase in str(error).lower() for phrase in _FULL):
            return True
        error = error.__cause__
    return False
