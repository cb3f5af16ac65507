"""What commands print as JSON, against its schema; their exit codes."""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from published import BASE, INFO, record
from ray.job_submission import JobDetails, JobStatus, JobType
from typer.testing import CliRunner, Result

from petl.configuration import Configuration
from petl.design import Design
from search import cli, load_study
from search.jobs import client as jobs
from search.tracking.writer import MlflowTracker
from search.trials.record import State, TrialRecord

SCHEMAS: dict[str, Any] = json.loads(resources.files("search.results").joinpath("schemas.json").read_text())
RECORDS = [
    record(0, 0.50, 0),
    record(1, 0.60, 1_000, name="lora:rank=2"),
    record(2, 0.95, 10, state=State.FAIL, failure="diverged: loss", measurements=None),
    record(3, math.nan, 5),
    record(4, 0.99, BASE, reference="full"),
    record(5, 0.40, 0, reference="majority", configuration=None),
    TrialRecord(number=6, state=State.RUNNING, configuration=Configuration(Design()), rungs={1.0: 0.5}),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    tracker = MlflowTracker.open(f"sqlite:///{folder}/mlflow.db", "demo", folder / "artifacts", INFO)
    for one in RECORDS:
        tracker.publish(one)
    tracker.facts(1, {"final": {"test": {"accuracy": 0.58}, "validation": {"accuracy": 0.59}}})
    summary = {"mean": 0.6, "spread": 0.01, "seeds": 3, "failed": 0, "probability": 0.9, "corrected": 0.59}
    tracker.facts(1, {"believed": summary})
    tracker.disk(10, None)
    return folder


@pytest.fixture(autouse=True)
def _environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False)


def require(value: Any, name: str) -> None:
    jsonschema.validate(value, {**SCHEMAS, "$ref": f"#/$defs/{name}"})


def refused(number: str) -> None:
    raise AssertionError(f"{number} is no JSON")


@pytest.mark.parametrize(
    ("arguments", "schema"),
    [
        (["show", "demo"], "study"),
        (["show", "demo", "--trials"], "trials"),
        *((["show", "demo", str(one.number)], "trial") for one in RECORDS),
        (["front", "demo"], "front"),
        (["query", "demo"], "query"),
        (["query", "demo", "--where", "trial < 2", "--columns", "trial,query.rank"], "query"),
    ],
)
def test_a_command_prints_what_its_schema_says(arguments: list[str], schema: str) -> None:
    answer = call(*arguments, "--format", "json")
    assert answer.exit_code == 0
    assert answer.stderr == ""
    require(json.loads(answer.stdout, parse_constant=refused), schema)


def test_ls_prints_what_its_schema_says() -> None:
    (row,) = json.loads(call("ls", "--format", "json").stdout)
    require(row, "study_row")


def test_a_job_is_what_its_schema_says() -> None:
    job = JobDetails(
        type=JobType.SUBMISSION, entrypoint="x", submission_id="petl-demo-1", start_time=1_000, end_time=61_000,
        status=JobStatus.FAILED, driver_exit_code=2,
    )  # fmt: skip
    row = jobs.status("demo", job, "one\n\ntwo\n")
    require(row, "job")
    assert (row["state"], row["seconds"], row["exit_code"], row["log"]) == ("failed", 60, 2, ["one", "two"])
    assert jobs.status_text(row) == ("study demo failed (exit code 2) after 0:01:00, job petl-demo-1\n  one\n  two")


def test_the_schema_refuses_what_is_not_in_it() -> None:
    (row,) = json.loads(call("ls", "--format", "json").stdout)
    for wrong in (row | {"more": 1}, {**row, "best": "high"}, {name: row[name] for name in row if name != "best"}):
        with pytest.raises(jsonschema.ValidationError):
            require(wrong, "study_row")


def test_a_query() -> None:
    rows = json.loads(
        call("query", "demo", "--where", "accuracy >= 0.5", "--sort", "-accuracy", "--format", "json").stdout
    )
    assert [(row["trial"], row["kind"]) for row in rows] == [(4, "reference"), (1, "trial"), (0, "trial")]
    assert rows[1]["query.rank"] == "2"
    assert rows[1]["test_accuracy"] == 0.58
    table = call("query", "demo", "--where", "query.rank == 1").stdout
    assert [line.split()[:3] for line in table.splitlines() if line.strip()[:1].isdigit()] == [["0", "complete", "0.5"]]
    csv = call("query", "demo", "--where", "trial < 2", "--columns", "trial,accuracy", "--format", "csv").stdout
    assert csv == "trial,accuracy\n0,0.5\n1,0.6\n"
    assert call("query", "demo", "--where", "accuracy > 1").stdout == "none of 7 trials and references matches\n"


def test_a_query_in_python() -> None:
    frame = load_study("demo").to_frame(where="kind == 'trial' and accuracy > 0.5", columns=["trial", "accuracy"])
    assert frame.to_dict("records") == [{"trial": 1, "accuracy": 0.6}]
    assert list(load_study("demo").to_frame(where="accuracy > 1").columns)[:2] == ["trial", "name"]
