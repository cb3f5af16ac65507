"""What stores raise, and how a full disk and a damaged database are recognised."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from petl.errors import UserError


class StoreError(UserError):
    """A store, study, trial or adapter is missing, or a name is taken."""


class FullDiskError(StoreError):
    """A disk is full. A resume continues what was running from its last milestone once there is room."""


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Raise StoreError where the system refuses to write at `place` within the context, of the folder of studies.

    A full disk is raised as it is: see `is_full`.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise
        raise StoreError(
            f"{place} cannot be written: {error.strerror or error}. Studies lie in a folder that you may write: "
            "$PETL_SEARCH_HOME names another one"
        ) from None


class DamagedStoreError(StoreError):
    """A file of a store is damaged, or was written by a later version: waiting does not mend it."""


_FULL: Final = ("no space left on device", "disk quota exceeded", "database or disk is full", "disk full")


def is_full(error: BaseException | None) -> bool:
    """Return whether an error of Python, safetensors or a database was caused by a full disk or quota."""
    while error is not None:
        if isinstance(error, FullDiskError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(phrase in str(error).lower() for phrase in _FULL):
            return True
        error = error.__cause__
    return False


_DAMAGED: Final = (
    "file is not a database",
    "database disk image is malformed",
    "malformed database schema",
    "unsupported file format",
    "no such table",
    "no such column",
    "out-of-date database schema",
    "can't locate revision",
    "no longer compatible with the table schema",
)


def is_damaged(error: BaseException | None) -> bool:
    """Return whether an error of sqlite, MLflow or Optuna says that a database is damaged, or of another version."""
    while error is not None:
        if isinstance(error, DamagedStoreError) or any(phrase in str(error).lower() for phrase in _DAMAGED):
            return True
        error = error.__cause__
    return False
