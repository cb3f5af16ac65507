"""A study's trials in a store of their own: an object store (s3://, gs://), or another folder that nodes share.

    s3://bucket/prefix/NAME/trials/0007/result/manifest.json

The store has the primary copy. The study's folder is then each node's scratch, and says in its file `store` where the
trials are kept. Any path that pyarrow's filesystems take will do, as with Ray's storage; who may read the store is a
matter of the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS ...), never of the address.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

from tenacity import Retrying, retry_if_exception_type, retry_if_not_exception_type, stop_after_attempt, wait_chain
from tenacity.wait import wait_fixed

from search.storage.address import one_line, redacted
from search.storage.errors import StoreError

_MARK: Final = "store"
_PAUSES: Final = (1.0, 4.0)  # seconds before a request is repeated, beside pyarrow's own retries
_ATTEMPTS: Final = 1 + len(_PAUSES)
_CHUNK: Final = 64 * 1024 * 1024
_REASON: Final = 300  # characters of what a store's library says

T = TypeVar("T")


class StoreAwayError(StoreError):
    """A store of trials cannot be reached, or refuses a request."""


class RemoteStore:
    """The folder of one study in a store. Paths are relative to it, with slashes.

    Every method raises StoreAwayError where the store still fails after some repetitions.
    """

    def __init__(self, address: str, study: str) -> None:
        self.address = address
        self._files, root = _opened(address)
        self._root = f"{root.rstrip('/')}/{study}"

    def require(self) -> None:
        """Raise StoreAwayError at once where the store cannot be written and read."""
        path = f"{self._root}/.seen-{uuid.uuid4().hex}"
        self._ask(lambda: self._write(path, b"seen"), repeat=False)
        self._ask(lambda: self._files.delete_file(path), repeat=False)

    def read(self, path: str) -> bytes | None:
        """Return the content of a file, None where there is none."""

        def read() -> bytes | None:
            try:
                with self._files.open_input_stream(f"{self._root}/{path}") as file:
                    content: bytes = file.read()
                    return content
            except FileNotFoundError:
                return None

        return self._ask(read)

    def write(self, path: str, content: bytes) -> None:
        """Write a small file."""
        self._ask(lambda: self._write(f"{self._root}/{path}", content))

    def upload(self, file: Path, path: str) -> None:
        """Copy a file into the store."""

        def upload() -> None:
            with file.open("rb") as source, self._created(f"{self._root}/{path}") as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)

        self._ask(upload)

    def download(self, path: str, file: Path) -> None:
        """Copy a file from the store. Raises FileNotFoundError where there is none."""

        def download() -> None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with self._files.open_input_stream(f"{self._root}/{path}") as source, file.open("wb") as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)

        self._ask(download)

    def files(self, path: str) -> dict[str, int]:
        """Return the files under a path, by their path below it, with their sizes in bytes."""
        from pyarrow.fs import FileSelector, FileType

        folder = self._path(path)
        selector = FileSelector(folder, recursive=True, allow_not_found=True)
        listed = self._ask(lambda: self._files.get_file_info(selector))
        return {info.path[len(folder) + 1 :]: info.size for info in listed if info.type == FileType.File}

    def has_committed_parts(self) -> bool:
        """Return whether any trial of the study has a committed part here."""
        return any(name.endswith("/manifest.json") for name in self.files(""))

    def delete(self, path: str = "") -> None:
        """Remove a folder, if it exists: manifests first, so that no part is valid while its files go."""
        names = sorted(self.files(path), key=lambda name: not name.endswith("manifest.json"))
        for name in names:
            self._delete(self._files.delete_file, f"{self._path(path)}/{name}")
        if self._files.type_name == "local":
            self._delete(self._files.delete_dir, self._path(path))

    def _path(self, path: str) -> str:
        return "/".join(filter(None, (self._root, path)))

    def _write(self, path: str, content: bytes) -> None:
        with self._created(path) as file:
            file.write(content)

    def _created(self, path: str) -> Any:
        if self._files.type_name == "local":  # elsewhere there are no folders to create
            self._files.create_dir(path.rpartition("/")[0], recursive=True)
        return self._files.open_output_stream(path)

    def _delete(self, delete: Callable[[str], None], path: str) -> None:
        with suppress(FileNotFoundError):
            self._ask(lambda: delete(path))

    def _ask(self, request: Callable[[], T], *, repeat: bool = True) -> T:
        attempts = Retrying(
            # pyarrow raises OSError for whatever goes wrong
            retry=retry_if_exception_type(OSError) & retry_if_not_exception_type(FileNotFoundError),
            wait=wait_chain(*map(wait_fixed, _PAUSES)),
            stop=stop_after_attempt(_ATTEMPTS if repeat else 1),
            reraise=True,
        )
        try:
            return attempts(request)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreAwayError(f"the store {redacted(self.address)} fails: {one_line(error)[:_REASON]}") from error


def set_store(study: Path, address: str | None) -> None:
    """Keep the trials of the study with this folder at `address`, as far as this node knows; None: in the folder."""
    mark = study / _MARK
    if address is None:
        mark.unlink(missing_ok=True)
        return
    study.mkdir(parents=True, exist_ok=True)
    new = study / f".{_MARK}-{uuid.uuid4().hex}"
    new.write_text(address)
    os.replace(new, mark)


def find_store(study: Path) -> RemoteStore | None:
    """Return the store of the study with this folder, None where its trials are in the folder."""
    try:
        address = (study / _MARK).read_text()
    except OSError:
        return None
    return _remote_store(address, study.name)


@lru_cache(maxsize=16)
def _remote_store(address: str, study: str) -> RemoteStore:
    return RemoteStore(address, study)


def _opened(address: str) -> tuple[Any, str]:
    """Return pyarrow's filesystem, and the path in it. Raises StoreAwayError where there is none for the address."""
    import pyarrow
    from pyarrow.fs import FileSystem

    uri = address
    if address.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in address:
        uri += f"{'&' if '?' in address else '?'}retry_limit_seconds=10"  # pyarrow would try for a quarter of an hour
    try:
        files, root = FileSystem.from_uri(uri)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise StoreAwayError(
            f"storage.path is a folder or an address such as s3://bucket/prefix, of a kind that pyarrow "
            f"{pyarrow.__version__} reads here; received {redacted(address)}: {redacted(reason)}"
        ) from None
    return files, root
