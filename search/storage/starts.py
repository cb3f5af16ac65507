"""What the heads of a study start from: files in its folder, or in its store, beside the trials."""

from __future__ import annotations

import os
from pathlib import Path

from search.storage.remote import find_store


def read_start(study: Path, pooling: str) -> bytes | None:
    """Return the file of the study with this folder, None where there is none."""
    if store := find_store(study):
        return store.read(_name(pooling))
    try:
        return (study / _name(pooling)).read_bytes()
    except FileNotFoundError:
        return None


def write_start(study: Path, pooling: str, content: bytes) -> None:
    """Write the file, whole or not at all."""
    if store := find_store(study):
        return store.write(_name(pooling), content)
    path = study / _name(pooling)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_bytes(content)
    os.replace(new, path)


def _name(pooling: str) -> str:
    return f"starts/{pooling}.safetensors"
