"""Trials' folders: immutable parts that a manifest, written last, makes valid.

    studies/NAME/trials/0007/state-1/   training state at the first milestone
                             result/    measurements, adapter directory
                             test/      scores on whole splits, and predictions
                             seed-1/    the same trained with another seed, a folder of this kind, while it trains
                             progress   what its worker is doing: a line for people, in no part

A part without its manifest, or with a file that the manifest does not vouch for, was interrupted
and does not exist. Nothing needs to be renamed: object stores cannot.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from search.storage.remote import mirror_of

_MANIFEST: Final = "manifest.json"
_PROGRESS: Final = "progress"
_TRIALS: Final = "trials"


class TrialFolder:
    """What one trial left on disk. The files of a part are written first, then `commit` makes it count.

    Where the study's trials are kept elsewhere (`search.storage.remote`), that place is the truth and this folder a
    copy.     All of it then raises StoreAwayError where the store cannot be reached.
    """

    def __init__(self, study: Path, number: int, seed: int | None = None) -> None:
        """`seed` is that of a replicate of the trial."""
        self._there = f"{_TRIALS}/{number:04d}" + ("" if seed is None else f"/seed-{seed}")
        self.path = study / self._there
        self._mirror = mirror_of(study)

    def begin(self, part: str) -> Path:
        """An empty folder for a part; an interrupted attempt at it is removed."""
        self.drop(part)
        folder = self.path / part
        folder.mkdir(parents=True)
        return folder

    def commit(self, part: str) -> None:
        """Vouches for the files of a part as they are now."""
        folder = self.path / part
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        hashes = {str(file.relative_to(folder)): _digest(file) for file in files}
        for file in files:
            _settle(file)
        if self._mirror:
            for name in hashes:
                self._mirror.upload(folder / name, f"{self._there}/{part}/{name}")
            self._mirror.write(f"{self._there}/{part}/{_MANIFEST}", _json(hashes).encode())
        write_json(folder / _MANIFEST, hashes)
        for path in (folder / _MANIFEST, folder, self.path):
            _settle(path)

    def find(self, part: str) -> Path | None:
        """The folder of a committed and undamaged part, else None."""
        folder = self.path / part
        if self._mirror is None:
            return folder if _is_whole(folder) else None
        manifest = self._mirror.read(f"{self._there}/{part}/{_MANIFEST}")
        if manifest is None:
            return None
        return folder if _has(folder, manifest) else self._fetched(part, manifest)

    def tell(self, text: str) -> None:
        """Says what is being done, for whoever watches on this node."""
        with suppress(OSError):  # a full disk, say, ends no trial here
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / _PROGRESS).write_text(text)

    def told(self) -> str:
        """What was said last, "" where nothing was."""
        try:
            return (self.path / _PROGRESS).read_text()
        except OSError:
            return ""

    def latest_state(self) -> Path | None:
        """The newest committed training state: `state-N`, N the milestones passed."""
        states = sorted(
            (part for part in self._parts() if part.startswith("state-")),
            key=lambda part: int(part.removeprefix("state-")),
        )
        return next((found for part in reversed(states) if (found := self.find(part))), None)

    def drop_states(self, but: str = "") -> None:
        """Removes training states, except the part named `but`."""
        for part in self._parts():
            if part.startswith("state-") and part != but:
                self.drop(part)

    def drop_interrupted(self) -> None:
        """Removes parts that were never committed. Nobody may be writing one."""
        for part, committed in self._parts().items():
            if not committed:
                self.drop(part)

    def remove(self) -> None:
        """Removes all of it."""
        if self._mirror:
            self._mirror.delete(self._there)
        shutil.rmtree(self.path, ignore_errors=True)

    def drop(self, part: str) -> None:
        """Removes a part: its manifest first, so that it does not exist in between."""
        if self._mirror:
            self._mirror.delete(f"{self._there}/{part}")
        (self.path / part / _MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.path / part, ignore_errors=True)

    def _parts(self) -> dict[str, bool]:
        """The parts, here and where they are kept, with whether they were committed."""
        here = {folder.name: (folder / _MANIFEST).exists() for folder in self.path.glob("*/")}
        if self._mirror is None:
            return here
        names = self._mirror.files(self._there)
        parts = {*here, *(name.partition("/")[0] for name in names if "/" in name)}
        return {part: f"{part}/{_MANIFEST}" in names for part in parts}

    def _fetched(self, part: str, manifest: bytes) -> Path | None:
        """The part as it is in the store; None where it is damaged there."""
        assert self._mirror is not None
        folder = self.path / part
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):  # the ranks of a gang on this node fetch the same
            if _has(folder, manifest):
                return folder
            shutil.rmtree(folder, ignore_errors=True)
            try:
                for name in _named(manifest):
                    self._mirror.download(f"{self._there}/{part}/{name}", folder / name)
            except (FileNotFoundError, ValueError):
                return None
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _MANIFEST).write_bytes(manifest)
            return folder if _is_whole(folder) else None


def _is_whole(folder: Path) -> bool:
    """Whether a part has its manifest, and all that this vouches for."""
    try:
        hashes = read_json(folder / _MANIFEST)
        return all(_digest(folder / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError):
        return False


def _has(folder: Path, manifest: bytes) -> bool:
    """Whether a folder is a whole copy of the part with this manifest, and not of one that was there before."""
    try:
        return (folder / _MANIFEST).read_bytes() == manifest and _is_whole(folder)
    except OSError:
        return False


def _named(manifest: bytes) -> list[str]:
    """The files that a manifest from a store vouches for. Raises ValueError where one would lie elsewhere."""
    hashes = json.loads(manifest)
    if not isinstance(hashes, dict):
        raise ValueError("a manifest is a JSON object")
    for name in hashes:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"a part's files lie in its folder; received {name}")
    return list(hashes)


def trial_files(study: Path) -> dict[int, dict[str, int]]:
    """The files of all trials, where they are kept: number -> path in the trial's folder -> bytes.

    Others may be writing them.
    """
    found: dict[int, dict[str, int]] = {}
    mirror = mirror_of(study)
    for path, size in (mirror.files(_TRIALS) if mirror else files_in(study / _TRIALS)).items():
        number, _, name = path.partition("/")
        if number.isdecimal():
            found.setdefault(int(number), {})[name] = size
    return found


def files_in(folder: Path) -> dict[str, int]:
    """The files under a folder, by their path below it with slashes, with their sizes in bytes; none without it."""
    found: dict[str, int] = {}
    for where, _, names in os.walk(folder):
        below = Path(where).relative_to(folder)
        for name in names:
            with suppress(OSError):  # it has gone since
                found[(below / name).as_posix()] = os.lstat(os.path.join(where, name)).st_size
    return found


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Indented JSON."""
    path.write_text(_json(data))


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, allow_nan=False)


def read_json(path: Path) -> dict[str, Any]:
    """Raises OSError or ValueError where the file is missing or torn."""
    data = json.loads(path.read_text())
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds no JSON object")
    return data


def _settle(path: Path) -> None:
    """Returns when a file or folder is on the disk: what older parts have is deleted once a part is committed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SCORES: Final = "scores.json"
PREDICTIONS: Final = "predictions"
