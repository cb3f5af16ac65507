"""The MLflow experiment of a study: found, created, removed."""

from __future__ import annotations

import time
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment

from search.storage.address import expand_env, sqlite_file
from search.storage.errors import StoreError
from search.tracking.client import answering, open_client
from search.tracking.runs import trial_runs
from search.tracking.schema import STUDY_TAG


def discard(uri: str, study: str) -> None:
    """Move the study's experiment, if there is one, to MLflow's trash, and free its name."""
    client = open_client(uri, create=True)
    with answering(uri):
        experiment = client.get_experiment_by_name(study)
        if experiment is not None:
            _require_ours(experiment, study)
            _free_name(client, experiment)


def has_trials(uri: str, study: str) -> bool:
    """Return whether the store has an experiment of that name with runs of trials. Creates no store."""
    if (file := sqlite_file(expand_env(uri))) and not file.exists():
        return False
    client = open_client(uri, create=True)
    with answering(uri):
        experiment = client.get_experiment_by_name(study)
        return experiment is not None and bool(trial_runs(client, experiment.experiment_id))


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
