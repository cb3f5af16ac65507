"""Where studies live, and what resumes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.storage.locations import StudyHome, resume_command


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path))
    for name in ("PETL_SEARCH_DATABASE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_every_place_of_a_study(tmp_path: Path) -> None:
    home = StudyHome("demo")
    assert home.folder == tmp_path / "studies/demo"
    assert home.trials == tmp_path / "studies/demo/trials"
    assert home.journal == tmp_path / "studies/demo/journal"
    assert home.front("csv") == tmp_path / "studies/demo/front.csv"
    assert home.database == f"sqlite:///{tmp_path}/optuna.db"
    assert home.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert home.artifacts == tmp_path / "artifacts/demo"
    assert home.shared_folder == home.folder
    assert home.resume_command == "petl-search resume demo"
    assert list(tmp_path.iterdir()) == []


def test_what_a_study_file_says_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_DATABASE", "postgresql://me@other/db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other")
    home = StudyHome("demo", "postgresql://me:pw@host/a b", "http://host", "s3://bucket/studies")
    assert home.database == "postgresql+psycopg://me:pw@host/a b"
    assert home.uri == "http://host"
    assert home.artifacts is None
    assert home.shared_folder is None
    assert home.resume_command == "PETL_SEARCH_DATABASE='postgresql+psycopg://me@host/a b' petl-search resume demo"
    assert "pw" not in repr(home)
    assert StudyHome("demo").uri == "http://other"
    assert StudyHome("demo").resume_command == "petl-search resume demo"


def test_a_resume_is_spelt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resume_command("demo", address="http://head:8265") == "petl-search resume demo --address http://head:8265"
    assert resume_command("demo", address="http://head", options="--code") == (
        "petl-search resume demo --address http://head --code"
    )
    monkeypatch.setenv("PETL_SEARCH_DATABASE", "mysql://host/db")  # no such database can have records
    assert resume_command("demo", database="sqlite:////x.db") == (
        "PETL_SEARCH_DATABASE=sqlite:////x.db petl-search resume demo"
    )
