"""Read studies, trials and adapters from MLflow."""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.utils.rest_utils import augmented_raise_for_status, http_request  # type: ignore[attr-defined]

from petl.errors import UserNotice
from petl.hashing import sha256
from petl.untrusted import MOST_JSON, printable
from search.storage.address import one_line, redacted
from search.storage.commands import resume_command
from search.storage.errors import StoreError
from search.storage.folder import ADAPTER as RESULT_ADAPTER
from search.storage.folder import TRIALS
from search.tracking.artifacts import published_hashes, repository
from search.tracking.client import answering, open_client
from search.tracking.runs import pages, parent_run, trial_runs
from search.tracking.schema import (
    ADAPTER,
    INFO,
    RECORD,
    STUDY,
    STUDY_TAG,
    TRIAL,
    WITHDRAWN,
    StudySummary,
    TrialRow,
    study_summary,
    trial_row,
)

_MOST_FILES: Final = 100  # of an adapter
_MOST_TENSORS: Final = 2**36  # bytes of a file: full fine-tuning of a 16 B model in float32
_ADAPTER_FOLDER: Final = re.compile(ADAPTER + r"(/\w[\w.-]*){1,2}", re.ASCII)
_ADAPTER_FILE: Final = re.compile(
    ADAPTER + r"(/\w[\w.-]*){0,2}/\w[\w.-]*\.(json|safetensors|txt|model|jinja)", re.ASCII
)
_PIECE: Final = 2**20


class LeftOutWarning(UserNotice):
    """A run, or a study, that is left out because it makes no sense."""


class UncheckedWarning(UserNotice):
    """An adapter that was published before there were hashes, by which damage would be noticed."""


def studies(uri: str) -> list[StudySummary]:
    """Return the studies of a store, the newest first, with a LeftOutWarning for each that makes no sense.

    Raises StoreError where there is no store.
    """
    client = open_client(uri)
    with answering(uri):
        parents = [
            (experiment, parent)
            for experiment in pages(client.search_experiments)
            if STUDY_TAG in experiment.tags
            and (parent := parent_run(client, experiment.experiment_id))
            and INFO in parent.data.tags
        ]
    summaries = []
    for experiment, parent in parents:
        try:
            summaries.append(study_summary(experiment, parent))
        except StoreError as error:
            warnings.warn(f"left out: {error}", LeftOutWarning, stacklevel=2)
    return sorted(summaries, key=lambda summary: -summary.started)


def summary(uri: str, study: str) -> StudySummary:
    """Return one study. Raises StoreError where it is missing, naming those there are, or does not say what it is."""
    client = open_client(uri)
    with answering(uri):
        experiment = client.get_experiment_by_name(study)
    if experiment and experiment.lifecycle_stage == "active" and STUDY_TAG in experiment.tags:
        with answering(uri):
            parent = parent_run(client, experiment.experiment_id)
        if parent and INFO not in parent.data.tags:
            raise StoreError(
                f"the study {study!r} in {redacted(uri)} does not say what it is: run {parent.info.run_id} has no tag "
                f"`info`. `{resume_command(study)}` writes it"
            )
        if parent:
            return study_summary(experiment, parent)
    names = ", ".join(sorted(other.name for other in studies(uri))) or "none"
    raise StoreError(f"no study {study!r} in {redacted(uri)}; studies there: {names}")


def records(uri: str, study: str) -> list[TrialRow]:
    """Return every trial and reference of a study, by number, with a LeftOutWarning for each that makes no sense.

    Raises StoreError as `summary` does.
    """
    experiment_id = summary(uri, study).experiment_id
    client = open_client(uri)
    with answering(uri):
        runs = trial_runs(client, experiment_id)
    rows = []
    for run in runs:
        try:
            rows += [trial_row(run)] if RECORD in run.data.tags else []
        except StoreError as error:
            warnings.warn(f"left out of study {study}: {error}", LeftOutWarning, stacklevel=2)
    return sorted(rows, key=lambda row: row.record.number)


def download(uri: str, run_id: str, destination: Path) -> Path:
    """Download the adapter directory of a trial's run as the folder `destination`, which must be new or empty.

    Raises StoreError where the run has no adapter, one with files that none has, or one of which a file is missing or
    has not the hash that the run has of it, and where the folder holds something. Warns of a run without hashes.
    """
    must_be_new(destination)
    client = open_client(uri)
    with _fetching(run_id):
        run = client.get_run(run_id)
        artifacts = repository(client, run)
        hashes, files = published_hashes(run, ADAPTER), _adapter_files(artifacts, run_id)
    _require_adapter(run, files, hashes)
    if hashes is None:
        warnings.warn(
            f"the adapter of run {run_id} was published without hashes, so that nobody can tell whether it is whole; "
            f"{_resumption(run)} publishes them",
            UncheckedWarning,
            stacklevel=2,
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    if sum(files.values()) > shutil.disk_usage(destination.parent).free:
        raise StoreError(f"there is no room for the adapter of run {run_id} in {destination.parent}")
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".petl-search-") as folder:
        for path in files if hashes is None else hashes:  # a file beside them is not the trial's
            (target := Path(folder, path)).parent.mkdir(parents=True, exist_ok=True)
            with _fetching(run_id):
                _fetch(artifacts, path, target, files[path], run_id)
            if hashes and sha256(target) != hashes[path]:
                raise StoreError(
                    f"{path} of run {run_id} is damaged: its SHA-256 is not the published one. {_whole(run)}"
                )
        # moved when whole, so that an interrupted download is not taken for an adapter
        if destination.exists():
            destination.rmdir()
        shutil.move(Path(folder, ADAPTER), destination)
    return destination


def _require_adapter(run: Run, files: Mapping[str, int], hashes: Mapping[str, str] | None) -> None:
    """Raise StoreError where the run has no adapter, or not every file that it has a hash of."""
    run_id = run.info.run_id
    if withdrawn := printable(run.data.tags.get(WITHDRAWN, "")):
        raise StoreError(f"run {run_id} has no adapter; it was {withdrawn}")
    if not files and not hashes:
        raise StoreError(f"run {run_id} has no adapter; trained trials that completed have one")
    if missing := sorted(set(hashes or ()) - set(files)):
        raise StoreError(f"{printable(', '.join(missing))} of run {run_id} is missing. {_whole(run)}")


def _whole(run: Run) -> str:
    """Return where a whole copy of a run's adapter is, and how it is put back."""
    study, trial = (printable(run.data.tags.get(name, "")) for name in (STUDY, TRIAL))
    folder = f"studies/{study}/{TRIALS}/{trial:>04}/{RESULT_ADAPTER}"
    return (
        f"A whole copy is in {folder} of the study's home, and {_resumption(run)} puts it back (in an object store, "
        "whose files a resume compares by size, once the damaged one is deleted)"
    )


def _resumption(run: Run) -> str:
    return f"`petl-search resume {printable(run.data.tags.get(STUDY, ''))}`"


@contextmanager
def _fetching(run_id: str) -> Iterator[None]:
    """Raise StoreError where an artifact cannot be fetched within the context."""
    try:
        yield
    except (MlflowException, OSError) as error:
        text = printable(one_line(error))
        raise StoreError(f"the adapter of run {run_id} cannot be fetched: {text}") from None


def _adapter_files(artifacts: ArtifactRepository, run_id: str) -> dict[str, int]:
    """Return the files of a run's adapter with their sizes, before any is fetched.

    Raises StoreError for what no adapter directory has: other names, too large files, too many of them.
    """
    files: dict[str, int] = {}
    folders, seen = [ADAPTER], 0
    while folders:
        for item in artifacts.list_artifacts(folders.pop()):
            seen += 1
            name, size = printable(item.path), item.file_size or 0
            most = _MOST_TENSORS if name.endswith(".safetensors") else MOST_JSON
            if seen > _MOST_FILES:
                raise StoreError(f"the adapter of run {run_id} has more than {_MOST_FILES} files; none has so many")
            if not (_ADAPTER_FOLDER if item.is_dir else _ADAPTER_FILE).fullmatch(item.path):
                raise StoreError(f"the adapter of run {run_id} has {name!r}, which belongs to none")
            if size > most:
                raise StoreError(f"{name} of run {run_id} has {size:,} bytes; in an adapter it has at most {most:,}")
            if item.is_dir:
                folders.append(item.path)
            else:
                files[item.path] = size
    return files


def _fetch(artifacts: ArtifactRepository, path: str, target: Path, size: int, run_id: str) -> None:
    """Fetch one artifact as the file `target`, of which no byte beyond the listed `size` is written.

    Raises StoreError for another size, and for what is no file: a link, a device, a pipe.
    """
    if isinstance(artifacts, LocalArtifactRepository):
        place = Path(artifacts.artifact_dir).resolve() / path
        if place.resolve() != place or not place.is_file():
            raise StoreError(f"{path} of run {run_id} is no file of its own")
        written = _copy(place.open("rb"), target, size)
    elif isinstance(artifacts, HttpArtifactRepository):
        answer = http_request(  # type: ignore[no-untyped-call]
            artifacts._host_creds, f"/{path}", "GET", stream=True, extra_headers={"Accept-Encoding": "identity"}
        )
        augmented_raise_for_status(answer)  # type: ignore[no-untyped-call]
        written = _copy(answer.raw, target, size)
    else:  # s3:// and the like, where the store itself says how large a thing is
        artifacts._download_file(path, str(target))  # type: ignore[no-untyped-call]
        written = target.stat().st_size
    if written != size:
        raise StoreError(f"{path} of run {run_id} has not the {size:,} bytes that were announced")


def _copy(source: Any, target: Path, most: int) -> int:
    """Return how many bytes were read. At most `most` are written, and one piece beyond them is read."""
    read = 0
    with source, target.open("wb") as file:
        while read <= most and (piece := source.read(_PIECE)):
            file.write(piece[: most - read])
            read += len(piece)
    return read


def must_be_new(destination: Path) -> None:
    """Raise StoreError for a file, and for a folder that is not empty."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise StoreError(f"an adapter is exported to a new or empty folder; received {destination}")
