"""The tables of an sqlite database: a library would create those that were lost anew, empty, as if nothing had been."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Final

_BUSY_SECONDS: Final = 60  # how long sqlite waits for another process's lock


def require_tables(file: Path, tables: Collection[str]) -> None:
    """Raise sqlite3.DatabaseError where a database that was made as a whole lacks one of these tables, or is no file.

    The table `alembic_version` has a row once the others were made. A file that is missing is left to who opens it.
    """
    if not file.exists():
        return
    if not file.is_file():
        raise sqlite3.DatabaseError("file is not a database: it is a folder, or a device")
    with closing(sqlite3.connect(file, timeout=_BUSY_SECONDS)) as database:
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "alembic_version" in names and database.execute("SELECT 1 FROM alembic_version").fetchone():
            for name in sorted(set(tables) - names):
                raise sqlite3.DatabaseError(f"no such table: {name}")
