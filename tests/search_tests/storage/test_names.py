"""A study whose name is of another script, through every store that has one: it is found by that name alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from postgresql import PostgreSQL, postgresql  # noqa: F401 (a fixture)
from typer.testing import CliRunner

from petl.configuration import Configuration
from petl.design import Design
from search import cli
from search.config.loading import load_config
from search.storage.address import database
from search.storage.folder import TrialFolder
from search.storage.listing import trial_files
from search.storage.locks import driving
from search.storage.remote import RemoteStore, set_store
from search.storage.studies import create_study, delete_study, open_study, study_names
from search.tracking.experiment import discard, has_trials
from search.tracking.reader import studies, summary
from search.tracking.writer import MlflowTracker
from search.trials.record import State, TrialRecord

NAME = "отзывы-评论-étude"
DECOMPOSED = "отзывы-评论-e\u0301tude"  # as some keyboards and terminals write it
OBJECTIVES = ("accuracy", "stored_parameters")
INFO = {"objectives": {"score": "accuracy", "cost": "stored_parameters"}}


def in_records(url: str) -> None:
    with driving(url, NAME) as guard:
        records = create_study(url, NAME, OBJECTIVES, guard)
        records.create(Configuration(Design()), {})
    assert study_names(url) == [NAME]
    assert len(open_study(url, NAME, writes=False).all()) == 1
    delete_study(url, NAME)
    assert study_names(url) == []


def test_records_in_a_file(tmp_path: Path) -> None:
    in_records(f"sqlite:///{tmp_path}/optuna.db")


def test_records_in_postgresql(postgresql: PostgreSQL) -> None:  # noqa: F811
    in_records(database(postgresql.url(postgresql.database())))


def test_trials_in_a_store(tmp_path: Path) -> None:
    set_store(tmp_path / NAME, str(tmp_path / "shared"))
    folder = TrialFolder(tmp_path / NAME, 0)
    (folder.begin("result") / "report.json").write_text("{}")
    folder.commit("result")
    assert list(trial_files(tmp_path / NAME)) == [0]
    assert RemoteStore(str(tmp_path / "shared"), NAME).has_committed_parts()


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = MlflowTracker.open(uri, NAME, tmp_path / "artifacts", INFO)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "design.json").write_text("{}")
    tracker.publish(TrialRecord(number=0, state=State.COMPLETE, configuration=Configuration(Design())))
    tracker.artifacts(0, tmp_path / "adapter")
    tracker.close()
    assert [study.name for study in studies(uri)] == [NAME]
    assert summary(uri, NAME).name == NAME
    for name in (NAME, DECOMPOSED):
        shown = CliRunner().invoke(cli.app, ["show", name, "--format", "json"], catch_exceptions=False)
        assert json.loads(shown.stdout)["study"] == NAME
        target = str(tmp_path / f"out-{len(name)}")
        CliRunner().invoke(cli.app, ["export", name, "0", target], catch_exceptions=False)
        assert (Path(target) / "design.json").read_text() == "{}"
    assert has_trials(uri, NAME)
    discard(uri, NAME)
    assert not has_trials(uri, NAME)


def test_a_study_file(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(f"study: {DECOMPOSED}\nbackbone: {{model: a/b}}\ntask: {{name: sst2}}\n", encoding="utf-8")
    assert load_config(file).study == NAME
