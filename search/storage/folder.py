"""Trials' folders: immutable parts that a manifest, written last, makes valid.

    studies/NAME/trials/0007/state-1/   training state at the first milestone
                             result/    report.json: measurements and curves; adapter/: the adapter directory
                             test/      scores.json: scores on whole splits; predictions/: a file a split
                             seed-1/    the same trained with another seed, a folder of this kind, while it trains
                             progress   what its worker is doing: a line for people, in no part

A part without its manifest, or with a file whose hash the manifest does not have, was interrupted
and does not exist. Nothing needs to be renamed: object stores cannot.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from petl.hashing import sha256
from search.storage.remote import find_store

TRIALS: Final = "trials"
RESULT: Final = "result"
ADAPTER: Final = f"{RESULT}/adapter"
SCORED: Final = "test"
PREDICTIONS: Final = "predictions"
_STATE: Final = "state-"
_SEED: Final = "seed-"
MANIFEST: Final = "manifest.json"
_PROGRESS: Final = "progress"


def state_part(milestones: int) -> str:
    """Return the name of the training state after so many milestones."""
    return f"{_STATE}{milestones}"


def replicate_folder(seed: int) -> str:
    """Return the name of a replicate's folder in its trial's."""
    return f"{_SEED}{seed}"


@dataclass(frozen=True)
class ResultPart:
    """The files of a part `result`, whether they are there or still to be written."""

    folder: Path

    @property
    def report(self) -> Path:
        return self.folder / "report.json"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"


@dataclass(frozen=True)
class ScoredPart:
    """The files of a part `test`, whether they are there or still to be written."""

    folder: Path

    @property
    def scores(self) -> Path:
        return self.folder / "scores.json"

    @property
    def predictions(self) -> Path:
        return self.folder / PREDICTIONS

    def predictions_of(self, split: str) -> Path:
        return self.predictions / f"{split}.jsonl"


class TrialFolder:
    """What one trial left on disk. The files of a part are written first, then `commit` makes the part valid.

    Where the study's trials are kept in a store (`search.storage.remote`), the store is the truth and this folder a
    copy. Every method then raises StoreAwayError where the store cannot be reached.
    """

    def __init__(self, study: Path, number: int, seed: int | None = None) -> None:
        """`seed` is that of a replicate of the trial."""
        self._key = f"{TRIALS}/{number:04d}" + ("" if seed is None else f"/{replicate_folder(seed)}")
        self.path = study / self._key
        self._store = find_store(study)

    def begin(self, part: str) -> Path:
        """Return an empty folder for a part, after removing an interrupted attempt at the part."""
        self.drop(part)
        folder = self.path / part
        folder.mkdir(parents=True)
        return folder

    def commit(self, part: str) -> None:
        """Make the part valid with its files as they are now."""
        folder = self.path / part
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        hashes = {str(file.relative_to(folder)): sha256(file) for file in files}
        for file in files:
            _sync(file)
        if self._store:
            for name in hashes:
                self._store.upload(folder / name, f"{self._key}/{part}/{name}")
            self._store.write(f"{self._key}/{part}/{MANIFEST}", _json(hashes).encode())
        write_json(folder / MANIFEST, hashes)
        for path in (folder / MANIFEST, folder, self.path):
            _sync(path)

    def copy(self, part: str, source: Path) -> Path:
        """Begin a part with the files of another trial's committed one, whose folder is `source`; return its folder."""
        folder = self.begin(part)
        shutil.copytree(source, folder, dirs_exist_ok=True)
        (folder / MANIFEST).unlink()
        return folder

    def find(self, part: str) -> Path | None:
        """Return the folder of a committed and undamaged part, else None."""
        folder = self.path / part
        if self._store is None:
            return folder if _is_valid(folder) else None
        manifest = self._store.read(f"{self._key}/{part}/{MANIFEST}")
        if manifest is None:
            return None
        return folder if _is_copy(folder, manifest) else self._fetched(part, manifest)

    def result(self) -> ResultPart | None:
        """Return the trial's committed result, else None."""
        folder = self.find(RESULT)
        return ResultPart(folder) if folder else None

    def scored(self) -> ScoredPart | None:
        """Return the trial's committed scores on whole splits, else None."""
        folder = self.find(SCORED)
        return ScoredPart(folder) if folder else None

    def note(self, text: str) -> None:
        """Write down what is being done, for whoever watches on this node."""
        with suppress(OSError):  # a full disk, say, ends no trial here
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / _PROGRESS).write_text(text)

    def last_note(self) -> str:
        """Return the last note, "" where there is none."""
        try:
            return (self.path / _PROGRESS).read_text()
        except OSError:
            return ""

    def latest_state(self) -> Path | None:
        """Return the newest committed training state, else None."""
        states = sorted(self.files().states, key=lambda part: int(part.removeprefix(_STATE)), reverse=True)
        return next((folder for part in states if (folder := self.find(part))), None)

    def drop_states(self, keep: str = "") -> None:
        """Remove training states, except the part named `keep`."""
        for part in self.files().states:
            if part != keep:
                self.drop(part)

    def drop_interrupted(self) -> None:
        """Remove the parts that were never committed, those of replicates included. Nobody may be writing one."""
        for part in self.files().interrupted:
            self.drop(part)

    def remove(self) -> None:
        """Remove the whole folder."""
        if self._store:
            self._store.delete(self._key)
        shutil.rmtree(self.path, ignore_errors=True)

    def drop(self, part: str) -> None:
        """Remove a part, its manifest first, so that no part is valid while its files go."""
        if self._store:
            self._store.delete(f"{self._key}/{part}")
        (self.path / part / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.path / part, ignore_errors=True)

    def files(self) -> TrialFiles:
        """Return the trial's files, here and in the store, of which the store decides what is committed."""
        local = files_in(self.path)
        return _merged(local, None if self._store is None else self._store.files(self._key))

    def stored_files(self) -> TrialFiles:
        """Return the trial's files where they are kept: in the store, if there is one."""
        return TrialFiles(self._store.files(self._key) if self._store else files_in(self.path))

    def _fetched(self, part: str, manifest: bytes) -> Path | None:
        """Return the part as it is in the store; None where it is damaged there."""
        assert self._store is not None
        folder = self.path / part
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):  # the ranks of a gang on this node fetch the same
            if _is_copy(folder, manifest):
                return folder
            shutil.rmtree(folder, ignore_errors=True)
            try:
                for name in _listed(manifest):
                    self._store.download(f"{self._key}/{part}/{name}", folder / name)
            except (FileNotFoundError, ValueError):
                return None
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MANIFEST).write_bytes(manifest)
            return folder if _is_valid(folder) else None


@dataclass(frozen=True)
class TrialFiles:
    """The files of one trial as they were listed: path in the trial's folder -> bytes.

    Parts are named by their paths: `result`, `state-2`, and `seed-1/state-2` of a replicate.
    """

    sizes: Mapping[str, int]

    def size(self, part: str = "") -> int:
        """Return the bytes of all files, or of those under a path."""
        below = f"{part}/" if part else ""
        return sum(size for path, size in self.sizes.items() if path.startswith(below))

    def has(self, part: str) -> bool:
        """Return whether the part is committed."""
        return f"{part}/{MANIFEST}" in self.sizes

    @property
    def states(self) -> list[str]:
        """The trial's own training states, committed or not."""
        return [part for part in self._parts() if part.startswith(_STATE)]

    @property
    def interrupted(self) -> list[str]:
        """The parts that were never committed."""
        return [part for part in self._parts() if not self.has(part)]

    def _parts(self) -> list[str]:
        return sorted({part for path in self.sizes if (part := _part_of(path))})


def _part_of(path: str) -> str:
    """Return the part that a file belongs to, "" for a file beside the parts."""
    first, *rest = path.split("/")
    if first.startswith(_SEED):
        return f"{first}/{rest[0]}" if len(rest) > 1 else ""
    return first if rest else ""


def _merged(local: Mapping[str, int], stored: Mapping[str, int] | None) -> TrialFiles:
    if stored is None:
        return TrialFiles(local)
    # a manifest here proves nothing where the store lacks it
    return TrialFiles({path: size for path, size in local.items() if not path.endswith(MANIFEST)} | dict(stored))


def _is_valid(folder: Path) -> bool:
    """Return whether a part has its manifest, and every file with the hash that the manifest has."""
    try:
        hashes = read_json(folder / MANIFEST)
        return all(sha256(folder / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError):
        return False


def _is_copy(folder: Path, manifest: bytes) -> bool:
    """Return whether a folder is a valid copy of the part with this manifest, not of an earlier part of that name."""
    try:
        return (folder / MANIFEST).read_bytes() == manifest and _is_valid(folder)
    except OSError:
        return False


def _listed(manifest: bytes) -> list[str]:
    """Return the files of a manifest from a store. Raises ValueError where one would lie outside its part."""
    hashes = json.loads(manifest)
    if not isinstance(hashes, dict):
        raise ValueError("a manifest is a JSON object")
    for name in hashes:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"a part's files lie in its folder; received {name}")
    return list(hashes)


def files_in(folder: Path, skip: Collection[str] = ()) -> dict[str, int]:
    """Return the files under a folder by their path below it, with slashes, and their sizes in bytes.

    A missing folder has none. `skip` names folders directly below it that are left out.
    """
    sizes: dict[str, int] = {}
    for where, folders, names in os.walk(folder):
        below = Path(where).relative_to(folder)
        if where == os.fspath(folder):
            folders[:] = [name for name in folders if name not in skip]
        for name in names:
            with suppress(OSError):  # it has gone since
                sizes[(below / name).as_posix()] = os.lstat(os.path.join(where, name)).st_size
    return sizes


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(_json(data))


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, allow_nan=False)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises OSError or ValueError where the file is missing or torn."""
    data = json.loads(path.read_text())
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds no JSON object")
    return data


def _sync(path: Path) -> None:
    """Return when a file or folder is on the disk: once a part is committed, older parts are deleted."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
