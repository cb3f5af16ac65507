"""The commands that messages and tables print: runnable as printed, from the current folder."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

from search.storage.address import AddressError, without_password
from search.storage.locations import database_url, default_home, home

_NAME: Final = "petl-search"


def command(*words: str, options: str = "", database: str | None = None, remote: bool = False) -> str:
    """Return the command of these words for a shell. `options` are further ones, quoted already.

    It names what a new shell would not find: the folder of this interpreter where that is not on the path, the home
    where it is not the default, and `database`, the address of a study's records, where the environment has another
    one. A `remote` command asks a cluster, which has a home of its own.
    """
    variables = {}
    if not remote and home() != default_home():
        variables["PETL_SEARCH_HOME"] = str(home())
    if database and not _is_default(database):
        variables["PETL_SEARCH_DATABASE"] = without_password(database)
    assignments = (f"{name}={shlex.quote(value)}" for name, value in variables.items())
    return " ".join(filter(None, [*assignments, _program(), *map(shlex.quote, words), options]))


def resume_command(study: str, *, database: str | None = None, address: str | None = None, options: str = "") -> str:
    """Return the command that resumes a study, or sends that as a job to the cluster at `address`."""
    where = ("--address", address) if address else ()
    return command("resume", study, *where, options=options, database=database, remote=bool(address))


def _program() -> str:
    """Return how a shell calls the command of this interpreter."""
    script, found = Path(sys.executable).with_name(_NAME), shutil.which(_NAME)
    if found and (not script.is_file() or os.path.realpath(found) == os.path.realpath(script)):
        return _NAME
    if script.is_file():
        return shlex.quote(_from_here(script))
    return f"{shlex.quote(_from_here(Path(sys.executable)))} -m search.cli"


def _from_here(file: Path) -> str:
    """Return the path relative to the current folder where the file lies below it, else the whole path."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def _is_default(database: str) -> bool:
    try:
        return database == database_url()
    except AddressError:  # in the environment
        return False
