"""Where studies live."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.storage.locations import StudyHome


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
    assert list(tmp_path.iterdir()) == []


def test_what_a_study_file_says_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_DATABASE", "postgresql://me@other/db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other")
    home = StudyHome("demo", "postgresql://me:pw@host/a b", "http://host", "s3://bucket/studies")
    assert home.database == "postgresql+psycopg://me:pw@host/a b"
    assert home.uri == "http://host"
    assert home.artifacts is None
    assert home.shared_folder is None
    assert "pw" not in repr(home)
    assert StudyHome("demo").uri == "http://other"
