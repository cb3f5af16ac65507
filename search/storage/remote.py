"""A study's trials on another path than its folder: an object store (s3://, gs://), or a folder that nodes share.

    s3://bucket/prefix/NAME/trials/0007/result/manifest.json

The study's folder is then each node's scratch, and says in the file `store` where the trials are kept. Any path
that pyarrow's filesystems take will do, as with Ray's storage; who may read it is the environment's to say
(AWS_ACCESS_KEY_ID, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS ...), never the address's.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

from search.storage.address import one_line, redacted
from search.storage.locations import StoreError

_MARK: Final = "store"
_PAUSES: Final[tuple[float, ...]] = (
    1.0,
    4.0,
)  # seconds before a request is made again, beside pyarrow's own retries
_CHUNK: Final = 64 * 1024 * 1024

T = TypeVar("T")


class StoreAwayError(StoreError):
    """A store of trials that cannot be reached, or does not do what it is asked."""


class Mirror:
    """The folder of one study in a store. Paths are relative to it, with slashes."""

    def __init__(self, address: str, study: str) -> None:
        self.address = address
        self._files, root = _opened(address)
        self._root = f"{root.rstrip('/')}/{study}"

    def require(self) -> None:
        """Raises StoreAwayError where it cannot be written and read."""
        path = f"{self._root}/.seen-{uuid.uuid4().hex}"
        self._ask(lambda: self._write(path, b"seen"), pauses=())
        self._ask(lambda: self._files.delete_file(path), pauses=())

    def read(self, path: str) -> bytes | None:
        """A file's content, None where there is none."""

        def read() -> bytes | None:
            try:
                with self._files.open_input_stream(f"{self._root}/{path}") as file:
                    content: bytes = file.read()
                    return content
            except FileNotFoundError:
                return None

        return self._ask(read)

    def write(self, path: str, content: bytes) -> None:
        """A small file."""
        self._ask(lambda: self._write(f"{self._root}/{path}", content))

    def upload(self, file: Path, path: str) -> None:
        """Copies a file there."""

        def upload() -> None:
            with file.open("rb") as source, self._created(f"{self._root}/{path}") as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)

        self._ask(upload)

    def download(self, path: str, file: Path) -> None:
        """Copies a file from there. Raises FileNotFoundError where there is none."""

        def download() -> None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with self._files.open_input_stream(f"{self._root}/{path}") as source, file.open("wb") as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)

        self._ask(download)

    def files(self, path: str) -> dict[str, int]:
        """The files under a path, by their path below it, with their sizes in bytes."""
        from pyarrow.fs import FileSelector, FileType

        where = "/".join(filter(None, (self._root, path)))
        selector = FileSelector(where, recursive=True, allow_not_found=True)
        found = self._ask(lambda: self._files.get_file_info(selector))
        return {info.path[len(where) + 1 :]: info.size for info in found if info.type == FileType.File}

    def delete(self, path: str = "") -> None:
        """Removes a folder, manifests first, so that no part of it is valid in between; nothing where there is none."""
        names = sorted(self.files(path), key=lambda name: not name.endswith("manifest.json"))
        where = "/".join(filter(None, (self._root, path)))
        for name in names:
            self._ask(lambda name=name: _gone(self._files.delete_file, f"{where}/{name}"))  # type: ignore[misc]
        if self._files.type_name == "local":
            self._ask(lambda: _gone(self._files.delete_dir, where))

    def _write(self, path: str, content: bytes) -> None:
        with self._created(path) as file:
            file.write(content)

    def _created(self, path: str) -> Any:
        if self._files.type_name == "local":  # elsewhere there are no folders to create
            self._files.create_dir(path.rpartition("/")[0], recursive=True)
        return self._files.open_output_stream(path)

    def _ask(self, request: Callable[[], T], pauses: tuple[float, ...] | None = None) -> T:
        for pause in (*(_PAUSES if pauses is None else pauses), None):
            try:
                return request()
            except FileNotFoundError:
                raise
            except OSError as error:  # pyarrow's for all that goes wrong
                if pause is None:
                    reason = one_line(error)[:300]
                    raise StoreAwayError(
                        f"the store {redacted(self.address)} does not do what it is asked: {reason}"
                    ) from error
                time.sleep(pause)
        raise AssertionError


def keep_at(study: Path, address: str | None) -> None:
    """From now on the trials of the study with this folder are at `address`, on this node; None: in the folder."""
    mark = study / _MARK
    if address is None:
        mark.unlink(missing_ok=True)
        return
    study.mkdir(parents=True, exist_ok=True)
    new = study / f".{_MARK}-{uuid.uuid4().hex}"
    new.write_text(address)
    os.replace(new, mark)


def mirror_of(study: Path) -> Mirror | None:
    """Where the trials of the study with this folder are, if elsewhere."""
    try:
        address = (study / _MARK).read_text()
    except OSError:
        return None
    return mirror(address, study.name)


@lru_cache(maxsize=16)
def mirror(address: str, study: str) -> Mirror:
    """The study's folder in the store at this address."""
    return Mirror(address, study)


def _opened(address: str) -> tuple[Any, str]:
    """pyarrow's filesystem, and the path in it. Raises StoreAwayError where there is none for such an address."""
    import pyarrow
    from pyarrow.fs import FileSystem

    given = address
    if address.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in address:
        given += f"{'&' if '?' in address else '?'}retry_limit_seconds=10"  # it would try for a quarter of an hour
    try:
        files, root = FileSystem.from_uri(given)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise StoreAwayError(
            f"storage.path is a folder or an address such as s3://bucket/prefix, of a kind that pyarrow "
            f"{pyarrow.__version__} reads here; received {redacted(address)}: {redacted(reason)}"
        ) from None
    return files, root


def _gone(delete: Callable[[str], None], path: str) -> None:
    try:
        delete(path)
    except FileNotFoundError:
        return
