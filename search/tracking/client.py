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
from search.storage.errors import StoreError
from search.storage.locations import require_store
from search.tracking.schema import KIND, REFERENCE_KIND, REPLICATE_KIND, SEED, STUDY_KIND, STUDY_TAG, TRIAL, TRIAL_KIND
from search.trials.record import Replicate

_PASSING: Final = (401, 403, 408, 409, 425, 429, 499)  # answers 4xx that time or a person may mend
# Of a process that writes, unless the user says otherwise. The journal repeats what failed: MLflow's own retries take
# minutes, and repeat also what has arrived, so that a run would be created twice.
_IMPATIENT: Final = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
_PAGE: Final = 1_000

_OPENING: Final = threading.Lock()  # MLflow opens a database once a process, and imports for that


def discard(uri: str, study: str) -> None:
    """Move the study's experiment, if there is one, to MLflow's trash, and free its name."""
    client = open_client(uri, create=True)
    with answering(uri):
        experiment = client.get_experiment_by_name(study)
        if experiment is not None:
            _require_ours(experiment, study)
            _free_name(client, experiment)


def has_trials(uri: str, study: str) -> bool:
    """Return whether the store has an experiment of that name with runs of trials."""
    client = open_client(uri, create=True)
    with answering(uri):
        experiment = client.get_experiment_by_name(study)
        return experiment is not None and bool(trial_runs(client, experiment.experiment_id))


def refused(error: Exception) -> bool:
    """Return whether MLflow refused a request, or the request makes no sense: repeating it does not help."""
    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    else:  # an artifact goes past MLflow's own errors
        status = getattr(getattr(error, "response", None), "status_code", 500)
    return (400 <= status < 500 and status not in _PASSING) or isinstance(error, (LookupError, TypeError))


def open_client(uri: str, *, create: bool = False) -> MlflowClient:
    """Return a client. Raises StoreError where the store is missing or does not answer; `create` makes a new one."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a line for each of some fifty migrations
    # the same, and a traceback for every lost connection, which is raised as well
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
    with answering(uri):
        with _OPENING:
            client = MlflowClient(_with_credentials(address))
        client.search_experiments(max_results=1)
    return client


def _make(file: Path) -> None:
    """Create a sqlite store, as a whole or not at all.

    Its tables are made by migrations that take seconds; a file in which they were interrupted can never be opened.
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
    """Return a server's address without user and password, which go to the environment, where MLflow looks for them.

    MLflow prints the address that it has, in messages and beside every run that ends.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return address
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    if parts.password is not None:
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    return without_password(address)


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Raise StoreError where MLflow does not answer within the context."""
    try:
        yield
    except MlflowException as error:
        raise StoreError(f"no store answers at {redacted(uri)}: {redacted(error.message)}") from None


def own_experiment(client: MlflowClient, study: str, artifact_root: Path | None) -> str:
    experiment = client.get_experiment_by_name(study)
    if experiment and experiment.lifecycle_stage == "deleted":  # in the trash it still holds its name
        _free_name(client, experiment)
        experiment = None
    if experiment:
        _require_ours(experiment, study)
        return str(experiment.experiment_id)
    location = (artifact_root / study).absolute().as_uri() if artifact_root else None
    tags = {STUDY_TAG: study, "mlflow.experimentKind": "custom_model_development"}  # opens at its runs
    return str(client.create_experiment(study, artifact_location=location, tags=tags))


def _require_ours(experiment: Experiment, study: str) -> None:
    if experiment.lifecycle_stage == "active" and STUDY_TAG not in experiment.tags:
        raise StoreError(f"the MLflow experiment {study!r} is not a study of petl-search; choose another name")


def _free_name(client: MlflowClient, experiment: Experiment) -> None:
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    client.rename_experiment(experiment.experiment_id, f"{experiment.name} (discarded {time.time_ns()})")
    client.delete_experiment(experiment.experiment_id)


def parent_run(client: MlflowClient, experiment_id: str) -> Run | None:
    runs = client.search_runs([experiment_id], f"tags.{KIND} = '{STUDY_KIND}'", order_by=["attributes.start_time"])
    return runs[0] if runs else None


def trial_runs(client: MlflowClient, experiment_id: str) -> list[Run]:
    runs = pages(lambda **page: client.search_runs([experiment_id], run_view_type=ViewType.ACTIVE_ONLY, **page))
    numbered = re.compile(r"[0-9]{1,9}")
    return [
        run
        for run in runs
        if run.data.tags.get(KIND) in (TRIAL_KIND, REFERENCE_KIND) and numbered.fullmatch(run.data.tags.get(TRIAL, ""))
    ]


def replicate_runs(client: MlflowClient, experiment_id: str, of: Replicate | None = None) -> list[Run]:
    """Return the runs of all replicates, or of one."""
    which = f" and tags.{TRIAL} = '{of.number}' and tags.{SEED} = '{of.seed}'" if of else ""
    runs = pages(lambda **page: client.search_runs([experiment_id], f"tags.{KIND} = '{REPLICATE_KIND}'{which}", **page))
    numbered = re.compile(r"[0-9]{1,10}")
    return [run for run in runs if all(numbered.fullmatch(run.data.tags.get(name, "")) for name in (TRIAL, SEED))]


def one_run_a_trial(client: MlflowClient, experiment_id: str) -> list[Run]:
    """Return one run a trial. A request that was given up and sent again may have made two.

    The one with the most tags stays, the others go to MLflow's trash.
    """
    kept: dict[str, Run] = {}
    for run in sorted(trial_runs(client, experiment_id), key=lambda run: (-len(run.data.tags), run.info.run_id)):
        if kept.setdefault(run.data.tags[TRIAL], run) is not run:
            client.delete_run(run.info.run_id)
    return list(kept.values())


def pages(search: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def listing(client: MlflowClient, run_id: str, folder: str) -> Iterator[tuple[str, int | None]]:
    for item in client.list_artifacts(run_id, folder):
        if item.is_dir:
            yield from listing(client, run_id, item.path)
        else:
            yield item.path, item.file_size


def log(
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


def milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)
