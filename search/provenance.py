"""Which code ran: versions of the libraries, and the commit."""

from __future__ import annotations

import getpass
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

_LIBRARIES: Final = ("petl-search", "torch", "transformers", "deepspeed", "ray", "optuna", "mlflow")


@cache
def provenance() -> dict[str, str]:
    """Tags that say who ran which code: versions of the libraries, and the commit where it runs from a checkout."""
    versions = []
    for name in _LIBRARIES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue  # a reader's machine has fewer of them
    tags = {"versions": ", ".join(versions), "mlflow.source.name": "petl-search", "mlflow.user": _user()}
    # asking for this very file keeps out the commit of a repository that merely contains our .venv
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
    if tracked and (commit := _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*")):
        tags |= {"commit": commit, "mlflow.source.git.commit": commit.removesuffix("-dirty")}
    return tags


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "unknown"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
