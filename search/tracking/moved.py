"""MLflow's artifacts after their home was moved or copied: the database has the absolute paths of the place before.

The artifacts of a study lie in `artifacts/NAME` beside `mlflow.db`, wherever both are now.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

_RUNS: Final = (
    "UPDATE runs SET artifact_uri = :new || substr(artifact_uri, length(:old) + 1) "
    "WHERE experiment_id = :experiment AND substr(artifact_uri, 1, length(:old) + 1) = :old || '/'"
)
_EXPERIMENT: Final = "UPDATE experiments SET artifact_location = :new WHERE experiment_id = :experiment"
_FOLDER: Final = "artifacts"


def follow_home(file: Path) -> None:
    """Record in the sqlite store `file` where the artifacts of its studies are, if they were moved or copied with it.

    A store that cannot be read or written stays as it is: its next reader says what is wrong.
    """
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)) as database:
        experiments = database.execute("SELECT experiment_id, name, artifact_location FROM experiments").fetchall()
        for experiment, name, old in experiments:
            new = file.absolute().parent / _FOLDER / name
            if _was_moved(database, experiment, old or "", new):
                place = {"experiment": experiment, "old": old, "new": new.as_uri()}
                with database:
                    database.execute(_RUNS, place)
                    database.execute(_EXPERIMENT, place)


def _was_moved(database: sqlite3.Connection, experiment: int, old: str, new: Path) -> bool:
    """Return whether artifacts that were begun at the URI `old` are in the folder `new`, or belong there."""
    before = Path(unquote(urlsplit(old).path)) if old.startswith("file:") else new
    if before == new or before.parts[-2:] != new.parts[-2:]:
        return False
    if not before.parents[1].is_dir():  # the home before
        return True
    runs = database.execute("SELECT run_uuid FROM runs WHERE experiment_id = ?", (experiment,))
    return any((new / run).is_dir() for (run,) in runs)
