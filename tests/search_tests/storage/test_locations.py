"""Where studies live."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.storage.locations import StudyHome, is_study_name
from search.storage.locks import StudyLock


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path))
    for name in ("PETL_SEARCH_DATABASE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "name", ["demo", "a.b_c-d", "2024", "étude", "отзывы", "レビュー", "评论", "مراجعات", "हिन्दी", "ü" * 100]
)
def test_a_name_of_any_script(name: str, tmp_path: Path) -> None:
    assert is_study_name(name)
    StudyLock(StudyHome(name).folder).drive()
    assert [path.name for path in (tmp_path / "studies").iterdir()] == [name]


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", ".a", "-a", "_a", "a.", "a/b", "a\\b", "a b", "a\u00a0b", "a\u2028b", "a:b", "a%b", "$a",
        "a\x00", "a\n", "a\u200f", "a\u202eb", "a\u200b", "e\u0301tude", "\u0301a", "a\ud800", "ü" * 101, "😀",
    ],
)  # fmt: skip
def test_a_name_that_is_no_folder_or_no_text(name: str) -> None:
    assert not is_study_name(name)


def test_every_place_of_a_study(tmp_path: Path) -> None:
    home = StudyHome("demo")
    assert home.folder == tmp_path / "studies/demo"
    assert home.trials == tmp_path / "studies/demo/trials"
    assert home.journal == tmp_path / "studies/demo/journal"
    assert home.front("csv") == tmp_path / "studies/demo/front.csv"
    assert home.page == tmp_path / "studies/demo/report.html"
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
