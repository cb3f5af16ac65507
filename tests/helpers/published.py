"""Trials as they are published, without training them."""

from __future__ import annotations

import json
from typing import Any

from mlflow import MlflowClient

from petl.configuration import Configuration
from petl.design import Design, Form, Modification, Site
from petl.measurements import Measurements
from search.results.query import Study
from search.tracking import schema
from search.trials.record import State, TrialRecord

INFO = {
    "study": "demo",
    "objectives": {"score": "accuracy", "cost": "stored_parameters"},
    "constraints": {"stored_percent": 5.0},
}


BASE = 1_000_000


def record(number: int, accuracy: float, stored: int, **changes: object) -> TrialRecord:
    design = Design((Modification(form=Form.LOW_RANK, site=Site.QUERY, size=number + 1),))
    values = {
        "number": number,
        "state": State.COMPLETE,
        "configuration": Configuration(design),
        "measurements": Measurements(
            accuracy=accuracy,
            stored_parameters=stored,
            trained_parameters=stored + 50,
            stored_percent=100 * stored / BASE,
            base_parameters=BASE,
            seconds=100.0 - number,
            steps=10,
        ),
    }
    return TrialRecord(**{**values, **changes})


def published_info(study: Study) -> dict[str, Any]:
    """The study file and what was resolved for it, as MLflow has them for whoever reads it in other ways."""
    tags = MlflowClient(study.uri).get_run(study.summary.run_id).data.tags
    info: dict[str, Any] = json.loads(schema.joined(tags, "info") or "")
    return info
