"""Where studies live: under one home folder, except for what a server or another address has.

$PETL_SEARCH_HOME/optuna.db          the durable records, unless PostgreSQL has them
                  mlflow.db          MLflow's database, unless a server has it
                  artifacts/NAME/    MLflow's artifacts of a study
                  studies/NAME/      the study's own folder: see StudyHome
"""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from search.storage.address import database, expand_env, sqlite_file
from search.storage.errors import StoreError

PAGE: Final = "report.html"  # in a study's folder
_LONGEST: Final = 200  # bytes of a name, so that a file may be called after it


def is_study_name(name: str) -> bool:
    """Return whether a study may have this name: it is safe as a folder, in an address and in a shell.

    Letters and digits of any script, with their marks, '.', '_' and '-', in Unicode's form NFC.
    """
    return (
        unicodedata.is_normalized("NFC", name)
        and len(name.encode(errors="replace")) <= _LONGEST
        and all(character in "._-" or unicodedata.category(character)[0] in "LMN" for character in name)
        and name[:1].isalnum()
        and not name.endswith(".")
    )


def home() -> Path:
    """Return $PETL_SEARCH_HOME, else the default, as an absolute path. Creates nothing."""
    given = os.environ.get("PETL_SEARCH_HOME")
    return Path(given).absolute() if given else default_home()


def default_home() -> Path:
    """Return ./petl-search as an absolute path."""
    return Path("petl-search").absolute()


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
                     report.html    the page

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
    def page(self) -> Path:
        """The page that a study writes at its end."""
        return self.folder / PAGE

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
