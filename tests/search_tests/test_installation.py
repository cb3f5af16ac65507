"""What is said where the installation is at fault."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLD = [path for path in (Path.home() / ".pyenv/versions").glob("3.10.*/bin/python3")]


@pytest.mark.parametrize("start", [("-c", "import search"), ("-m", "search.cli", "ls")])
def test_another_petl_is_named_with_the_remedy(tmp_path: Path, start: tuple[str, ...]) -> None:
    """As PyPI's table library of that name has it."""
    (tmp_path / "petl").mkdir()
    (tmp_path / "petl" / "__init__.py").write_text("from petl.errors import DuplicateKeyError\n")
    (tmp_path / "petl" / "errors.py").write_text("class DuplicateKeyError(Exception):\n    pass\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, *start], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert f"received {tmp_path}/petl/__init__.py" in message
    assert "pip uninstall petl" in message


@pytest.mark.skipif(not OLD, reason="needs a Python 3.10")
def test_an_old_python_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "infra/constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = subprocess.run(
        ["make", "setup", f"PYTHON={OLD[0]}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"petl-search needs Python 3.11 or newer; {OLD[0]} is 3.10." in done.stderr
    assert not (tmp_path / ".venv").exists()
