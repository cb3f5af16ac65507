"""Tables made once for all processes of a machine: found by what they were made from, never by age.

An entry is a folder `data/KEY` with one Dataset per split and `entry.json`: a hash of every file, and
facts about the tables. It is written beside its place and renamed, by the one process that holds the
key's lock, so that it is whole or not there.

The cache of `datasets.map` would not do. Its key is of the pickled function, so that it differs between machines and
releases, and its files cannot be shared by the nodes of a cluster; this key is of the data, the task and the tokenizer.
Nor does it lock, so that every process of a study would tokenise, nor notice a damaged file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from filelock import FileLock

from petl.hashing import sha256

if TYPE_CHECKING:
    from datasets import Dataset


_ENTRY: Final = "entry.json"


@dataclass(frozen=True)
class Tables:
    """A table for each split, and what is known of all of them, JSON-ready."""

    splits: Mapping[str, Dataset]
    facts: Mapping[str, Any]


def cache_folder() -> Path:
    """Return $PETL_CACHE, else petl-search in $XDG_CACHE_HOME, else in ~/.cache."""
    if own := os.environ.get("PETL_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "petl-search"


def key_of(parts: Mapping[str, Any]) -> str:
    """Return the key of what is made from `parts`, JSON-ready."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def fetch(key: str, make: Callable[[], Tables], folder: Path | None = None) -> Tables:
    """Return the tables of a key, memory-mapped: from the cache, or made and stored there for the next process.

    Others that ask for the same key meanwhile wait. A damaged entry is made again. Where `folder`, by
    default `cache_folder()`, cannot be written, the tables are made each time, with one warning.
    """
    root = (folder or cache_folder()) / "data"
    if tables := _read(root / key):
        return tables
    with ExitStack() as lock:
        try:
            root.mkdir(parents=True, exist_ok=True)
            lock.enter_context(FileLock(root / f"{key}.lock"))
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            return _uncached(make(), root, error)
        if tables := _read(root / key):
            return tables
        tables = make()
        try:
            _write(tables, root, key)
        except OSError as error:
            return _uncached(tables, root, error)
        return _read(root / key) or tables


def _uncached(tables: Tables, root: Path, error: Exception) -> Tables:
    warnings.warn(f"data is not cached, since {root} cannot be used: {error}; PETL_CACHE names another", stacklevel=4)
    return tables


def _write(tables: Tables, root: Path, key: str) -> None:
    """Write an entry; the caller holds the key's lock, so what others left of this key belongs to no one."""
    for rest in root.glob(f".{key}-*"):
        shutil.rmtree(rest, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=root))
    try:
        for split, table in tables.splits.items():
            table.save_to_disk(str(beside / split))
        files = {path: sha256(beside / path) for path in _files(beside)}
        entry = {"splits": list(tables.splits), "facts": tables.facts, "files": files}
        (beside / _ENTRY).write_text(json.dumps(entry))
        beside.chmod(0o755)  # mkdtemp's folder is its owner's alone; the cache may be shared
        shutil.rmtree(root / key, ignore_errors=True)
        beside.rename(root / key)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _read(entry: Path) -> Tables | None:
    """Return an entry; None where there is none, or it is not as it was written."""
    from datasets import load_from_disk

    try:
        stored = json.loads((entry / _ENTRY).read_text())
        if stored["files"] != {path: sha256(entry / path) for path in _files(entry) if path != _ENTRY}:
            return None
        splits = {split: load_from_disk(str(entry / split), keep_in_memory=False) for split in stored["splits"]}
        return Tables(splits, stored["facts"])
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged in entry.json itself
        return None


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
