"""Where studies live: a folder with MLflow's database and artifacts, unless a server keeps them."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """$PETL_SEARCH_HOME, else ./petl-search. Absolute; not created here."""
    return Path(os.environ.get("PETL_SEARCH_HOME") or "petl-search").absolute()


def store_uri(uri: str | None = None) -> str:
    """MLflow's address: `uri`, else $MLFLOW_TRACKING_URI, else the database in `home()`."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def artifact_root(uri: str | None = None) -> Path | None:
    """The folder that gets the artifacts of a store written directly; None where a server has its own."""
    return None if store_uri(uri).startswith(("http://", "https://")) else home() / "artifacts"
