"""Where studies live: under one home folder, except for what a server or another address has.

$PETL_SEARCH_HOME/optuna.db          the durable records, unless PostgreSQL has them
                  mlflow.db          MLflow's database, unless a server has it
                  artifacts/NAME/    MLflow's artifacts of a study
                  studies/NAME/      the study's own folder: see StudyHome
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from search.storage.address import AddressError, database, expand_env, sqlite_file, without_password
from search.storage.errors import StoreError

STUDY_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # safe as a folder and in a URL


def home() -> Path:
    """Return $PETL_SEARCH_HOME, else ./petl-search, as an absolute path. Creates nothing."""
    return Path(os.environ.get("PETL_SEARCH_HOME") or "petl-search").absolute()


def store_uri(uri: str | None = None) -> str:
    """Return MLflow's address: `uri`, else $MLFLOW_TRACKING_URI, else the database in `home()`."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def database_url(url: str | None = None) -> str:
    """Return the address of the durable records: `url`, else $PETL_SEARCH_DATABASE, else a file in `home()`.

    Raises AddressError for an address that no database of records can have.
    """
    chosen = url or os.environ.get("PETL_SEARCH_DATABASE")
    return database(chosen) if chosen else f"sqlite:///{home() / 'optuna.db'}"


def artifact_root(uri: str | None = None) -> Path | None:
    """Return the folder of a store's artifacts where they are written directly, None where a server has its own."""
    return None if expand_env(store_uri(uri)).startswith(("http://", "https://")) else home() / "artifacts"


def is_absent(file: Path) -> bool:
    """Return whether an sqlite store is not there, or an empty file, which holds as much."""
    return not file.exists() or (file.is_file() and not file.stat().st_size)


def require_store(uri: str) -> None:
    """Raise StoreError where `uri` is an sqlite store that does not exist: opening it would create it."""
    file = sqlite_file(uri)
    if file and is_absent(file):
        raise StoreError(
            f"no store at {file}: nothing was run there yet, or the store is elsewhere "
            "(--uri, $MLFLOW_TRACKING_URI, $PETL_SEARCH_HOME)"
        )


@dataclass(frozen=True)
class StudyHome:
    """Name every place of one study; create none of them.

        studies/NAME/trials/0007/   what a trial left: see search.storage.folder
                     journal/       what MLflow has not received yet
                     front.json     the published front; front.csv and front.png beside it

    `records` and `tracking` are the addresses that a study file gives for the records and for MLflow; None means
    those of the environment, or of the home folder. `store` is the address of the trials where they are not kept in
    the study's folder: see search.storage.remote.

    Example: StudyHome("demo").front("json")
    """

    name: str
    records: str | None = field(default=None, repr=False)  # either may have a password
    tracking: str | None = field(default=None, repr=False)
    store: str | None = None

    @property
    def folder(self) -> Path:
        return home() / "studies" / self.name

    @property
    def trials(self) -> Path:
        return self.folder / "trials"

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    def front(self, kind: str) -> Path:
        """Return the file of the published front: `kind` is json, csv or png."""
        return self.folder / f"front.{kind}"

    @property
    def shared_folder(self) -> Path | None:
        """The folder that every node has to see; None where nodes share a store."""
        return None if self.store else self.folder

    @property
    def database(self) -> str:
        """The address of the records, ready to be opened. Raises AddressError as `database_url` does."""
        return database_url(self.records)

    @property
    def uri(self) -> str:
        """MLflow's address, which may refer to variables of the environment."""
        return store_uri(self.tracking)

    @property
    def artifacts(self) -> Path | None:
        """The folder of the study's artifacts; None where a server keeps them."""
        root = artifact_root(self.tracking)
        return root / self.name if root else None

    @property
    def resume_command(self) -> str:
        """The command that resumes the study from this folder and environment."""
        return resume_command(self.name, database=self.database)


def resume_command(study: str, *, database: str | None = None, address: str | None = None, options: str = "") -> str:
    """Return the command that resumes a study.

    `database` is the address of its records, which the command names where the environment does not; `address` that
    of the cluster that a job is sent to; `options` are further ones, quoted already.
    """
    variable = ""
    if database and not _is_default(database):
        variable = f"PETL_SEARCH_DATABASE={shlex.quote(without_password(database))} "
    words = [f"{variable}petl-search resume {study}", f"--address {address}" if address else "", options]
    return " ".join(filter(None, words))


def _is_default(database: str) -> bool:
    try:
        return database == database_url()
    except AddressError:  # in the environment
        return False
