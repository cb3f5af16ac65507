"""The commands that are printed: a shell of the user's runs them as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from search.storage.commands import command, resume_command

FOLDER = Path(sys.executable).parent


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the default home, and a path that has the command."""
    monkeypatch.chdir(tmp_path)
    for name in ("PETL_SEARCH_HOME", "PETL_SEARCH_DATABASE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_by_default_a_command_is_its_words() -> None:
    assert command("show", "demo", "12") == "petl-search show demo 12"
    assert command("show", "my demo") == "petl-search show 'my demo'"
    assert resume_command("demo", options="--set budget.trials=48") == (
        "petl-search resume demo --set budget.trials=48"
    )


def test_another_home_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path / "my studies"))
    home = f"PETL_SEARCH_HOME='{tmp_path}/my studies'"
    assert command("show", "demo") == f"{home} petl-search show demo"
    assert resume_command("demo", address="http://head:8265") == "petl-search resume demo --address http://head:8265"
    monkeypatch.setenv("PETL_SEARCH_HOME", "petl-search")
    assert command("show", "demo") == "petl-search show demo"


def test_another_database_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    database = "postgresql+psycopg://me:pw@host/a b"
    assert resume_command("demo", database=database) == (
        "PETL_SEARCH_DATABASE='postgresql+psycopg://me@host/a b' petl-search resume demo"
    )
    monkeypatch.setenv("PETL_SEARCH_DATABASE", database)
    assert resume_command("demo", database=database) == "petl-search resume demo"
    monkeypatch.setenv("PETL_SEARCH_DATABASE", "mysql://host/db")  # no such database can have records
    assert resume_command("demo", database="sqlite:////x.db") == (
        "PETL_SEARCH_DATABASE=sqlite:////x.db petl-search resume demo"
    )


def test_a_command_runs_where_the_path_does_not_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETL_SEARCH_HOME", str(tmp_path / "my studies"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    printed = command("ls")
    assert printed.startswith(f"PETL_SEARCH_HOME='{tmp_path}/my studies' {FOLDER}/")
    shell = {name: value for name, value in os.environ.items() if name != "PETL_SEARCH_HOME"}
    done = subprocess.run(["sh", "-c", printed], capture_output=True, text=True, env=shell, check=False)
    assert f"no store at {tmp_path}/my studies/mlflow.db" in done.stderr


def test_an_interpreter_below_this_folder_is_named_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parent.parent)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert command("ls").startswith(str(FOLDER.relative_to(FOLDER.parent.parent)))


def test_the_command_of_another_environment_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "petl-search").write_text("#!/bin/sh\n")
    (tmp_path / "petl-search").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert command("ls") == f"{FOLDER}/petl-search ls"
