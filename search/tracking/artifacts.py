"""The files that are published of a run: the hashes that its tags have of them, and the store that keeps them.

A tag `adapter.sha256` holds the SHA-256 of each file in the run's folder `adapter`, by its path in the run. It is
written before the first file: a reader refuses what has not arrived as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from pydantic import TypeAdapter, ValidationError

from petl.hashing import sha256
from petl.untrusted import parse
from search.storage.errors import StoreError
from search.tracking.schema import joined, split_text

_SUFFIX: Final = ".sha256"
_HASHES: Final = TypeAdapter(dict[str, str])


def files_below(folder: Path, name: str) -> dict[str, Path]:
    """Return the files of a folder that is published as `name`, by their paths in the run."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {f"{name}/{file.relative_to(folder).as_posix()}": file for file in files}


def hash_tags(name: str, hashes: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that hold the hashes of a published folder's files."""
    return split_text(name + _SUFFIX, json.dumps(hashes, sort_keys=True))


def published_hashes(run: Run, name: str) -> dict[str, str] | None:
    """Return the hashes of a published folder's files by their paths in the run; None for a run that has none.

    Raises StoreError for a tag that this module does not write.
    """
    if (text := joined(run.data.tags, name + _SUFFIX)) is None:
        return None
    try:
        return _HASHES.validate_python(parse(text))
    except (ValueError, ValidationError):
        raise StoreError(f"the tag {name}{_SUFFIX} of run {run.info.run_id} holds no hashes of files") from None


def repository(client: MlflowClient, run: Run) -> ArtifactRepository:
    """Return the store of a run's artifacts. MLflow's client would keep it for the process, wherever they move."""
    return get_artifact_repository(run.info.artifact_uri, client.tracking_uri)


def listing(artifacts: ArtifactRepository, folder: str) -> Iterator[tuple[str, int | None]]:
    """Yield the files below a folder by their paths in the run, with their sizes."""
    for item in artifacts.list_artifacts(folder):
        if item.is_dir:
            yield from listing(artifacts, item.path)
        else:
            yield item.path, item.file_size


def differs(artifacts: ArtifactRepository, path: str, size: int | None, file: Path, digest: str) -> bool:
    """Return whether a published file of this listed size is not `file`, whose hash is `digest`.

    Only files on a disk of this machine are read; others are compared by their sizes.
    """
    if size != file.stat().st_size:  # a torn upload is shorter
        return True
    if not isinstance(artifacts, LocalArtifactRepository):
        return False
    try:
        return sha256(Path(artifacts.artifact_dir, path)) != digest
    except OSError:
        return True


def make_way(artifacts: ArtifactRepository, path: str) -> None:
    """Remove from a disk of this machine a folder where a published file belongs, and files where its folders do."""
    if not isinstance(artifacts, LocalArtifactRepository):
        return
    if Path(artifacts.artifact_dir, path).is_dir():
        artifacts.delete_artifacts(path)  # type: ignore[no-untyped-call]
    for folder in PurePosixPath(path).parents:
        if Path(artifacts.artifact_dir, folder).is_file():
            Path(artifacts.artifact_dir, folder).unlink()
