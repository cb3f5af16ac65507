"""Reach MLflow: clients, pages, retries, and its errors as ours."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from search.storage.address import expand_env, redacted, sqlite_file, without_password
from search.storage.database import is_postgresql, reaching, require_database
from search.storage.locations import StoreError, require_store
from search.tracking.schema import _STUDY_TAG
from search.trials.record import Replicate

_PASSING: Final = (401, 403, 408, 409, 425, 429, 499)  # of the answers 4xx, those that time or a person may mend
# Of a process that writes, unless the user says otherwise. Its journal is what tries again: MLflow's own retries take
# minutes, and repeat also what has arrived, so that a run would be made twice.
_IMPATIENT: Final = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
_PAGE: Final = 1_000

_OPENING: Final = threading.Lock()  # MLflow opens a database once a process, and imports what it takes for that


def discard(uri: str, study: str) -> None:
    """Move the study's experiment, if there is one, to MLflow's trash, and free its name."""
    client = _client(uri, create=True)
    with _answering(uri):
        experiment = client.get_experiment_by_name(study)
        if experiment is not None:
            _require_ours(experiment, study)
            _free_name(client, experiment)


def has_trials(uri: str, study: str) -> bool:
    """Whether the store has an experiment of that name with runs of trials."""
    client = _client(uri, create=True)
    with _answering(uri):
        experiment = client.get_experiment_by_name(study)
        return experiment is not None and bool(_children(client, experiment.experiment_id))


def refused(error: Exception) -> bool:
    """Whether MLflow answered that it will not do this, or it makes no sense: asking again does not help."""
    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    else:  # an artifact goes past MLflow's own errors
        status = getattr(getattr(error, "response", None), "status_code", 500)
    return (400 <= status < 500 and status not in _PASSING) or isinstance(error, (LookupError, TypeError))


def _client(uri: str, *, create: bool = False) -> MlflowClient:
    """Raises StoreError where the store is not there or does not answer. `create`: to write, perhaps anew."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a line for each of some fifty migrations
    # the same, and a traceback for every connection that is lost, which is raised as well
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    address = expand_env(uri)
    if not create:
        require_store(address)
    else:
        for name, value in _IMPATIENT.items():
            os.environ.setdefault(name, value)
        if (file := sqlite_file(address)) and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with _OPENING:
                _make(file)
    if is_postgresql(address):
        require_database(address, None if create else "experiments")
        address = reaching(address)
    with _answering(uri):
        with _OPENING:
            client = MlflowClient(_with_credentials(address))
        client.search_experiments(max_results=1)
    return client


def _make(file: Path) -> None:
    """A new sqlite store that is there as a whole or not at all.

    Its tables are made by migrations that take seconds; where they were cut off, MLflow can never open the file.
    """
    with tempfile.TemporaryDirectory(prefix="petl-mlflow-") as scratch:
        made, new = Path(scratch) / file.name, file.with_name(f"{file.name}.{os.getpid()}")
        MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
        try:
            shutil.copyfile(made, new)
            if not file.exists():  # nobody else made it meanwhile
                new.rename(file)
        finally:
            new.unlink(missing_ok=True)


def _with_credentials(address: str) -> str:
    """The address of a server without user and password, which are put where MLflow looks for them as well.

    MLflow prints a server's address as it is given, in messages and beside every run that ends.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return address
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    if parts.password is not None:
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    return without_password(address)


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    """Raises StoreError where MLflow does not answer inside."""
    try:
        yield
    except MlflowException as error:
        raise StoreError(f"no store answers at {redacted(uri)}: {redacted(error.message)}") from None


def _own_experiment(client: MlflowClient, study: str, artifact_root: Path | None) -> str:
    experiment = client.get_experiment_by_name(study)
    if experiment and experiment.lifecycle_stage == "deleted":  # in the trash it still holds its name
        _free_name(client, experiment)
        experiment = None
    if experiment:
        _require_ours(experiment, study)
        return str(experiment.experiment_id)
    location = (artifact_root / study).absolute().as_uri() if artifact_root else None
    tags = {_STUDY_TAG: study, "mlflow.experimentKind": "custom_model_development"}  # opens at its runs
    return str(client.create_experiment(study, artifact_location=location, tags=tags))


def _require_ours(experiment: Experiment, study: str) -> None:
    if experiment.lifecycle_stage == "active" and _STUDY_TAG not in experiment.tags:
        raise StoreError(f"the MLflow experiment {study!r} is not a study of petl-search; choose another name")


def _free_name(client: MlflowClient, experiment: Experiment) -> None:
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    client.rename_experiment(experiment.experiment_id, f"{experiment.name} (discarded {time.time_ns()})")
    client.delete_experiment(experiment.experiment_id)


def _parent(client: MlflowClient, experiment_id: str) -> Run | None:
    runs = client.search_runs([experiment_id], "tags.kind = 'study'", order_by=["attributes.start_time"])
    return runs[0] if runs else None


def _children(client: MlflowClient, experiment_id: str) -> list[Run]:
    runs = _pages(lambda **page: client.search_runs([experiment_id], run_view_type=ViewType.ACTIVE_ONLY, **page))
    numbered = re.compile(r"[0-9]{1,9}")
    return [
        run
        for run in runs
        if run.data.tags.get("kind") in ("trial", "reference") and numbered.fullmatch(run.data.tags.get("trial", ""))
    ]


def _replicates(client: MlflowClient, experiment_id: str, of: Replicate | None = None) -> list[Run]:
    """The runs of all replicates, or of one."""
    which = f" and tags.trial = '{of.number}' and tags.seed = '{of.seed}'" if of else ""
    runs = _pages(lambda **page: client.search_runs([experiment_id], f"tags.kind = 'replicate'{which}", **page))
    numbered = re.compile(r"[0-9]{1,10}")
    return [run for run in runs if all(numbered.fullmatch(run.data.tags.get(name, "")) for name in ("trial", "seed"))]


def _one_a_trial(client: MlflowClient, experiment_id: str) -> list[Run]:
    """The children, without those that MLflow made late, of a request that had been given up and sent again.

    The one that tells the most is kept, the others go to MLflow's trash.
    """
    kept: dict[str, Run] = {}
    for run in sorted(_children(client, experiment_id), key=lambda run: (-len(run.data.tags), run.info.run_id)):
        if kept.setdefault(run.data.tags["trial"], run) is not run:
            client.delete_run(run.info.run_id)
    return list(kept.values())


def _pages(search: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _listing(client: MlflowClient, run_id: str, folder: str) -> Iterator[tuple[str, int | None]]:
    for item in client.list_artifacts(run_id, folder):
        if item.is_dir:
            yield from _listing(client, run_id, item.path)
        else:
            yield item.path, item.file_size


def _write(
    client: MlflowClient,
    run_id: str,
    *,
    params: Mapping[str, str] | None = None,
    metrics: Sequence[Metric] = (),
    tags: Mapping[str, str] | None = None,
) -> None:
    client.log_batch(
        run_id,
        metrics=metrics,
        params=[Param(name, value) for name, value in (params or {}).items()],
        tags=[RunTag(name, value) for name, value in (tags or {}).items()],
    )


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)
