"""What is said where the installation is at fault."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHONS = [Path(shutil.which("python3.10") or ""), *(Path.home() / ".pyenv/versions").glob("3.10.*/bin/python3.10")]
OLD = next((python for python in PYTHONS if python.is_file() and ".pyenv/shims" not in str(python)), None)


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


@pytest.mark.skipif(OLD is None, reason="needs a Python 3.10")
def test_an_old_python_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "infra/constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = subprocess.run(["make", "setup", f"PYTHON={OLD}"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"petl-search needs Python 3.11 or newer; {OLD} is 3.10." in done.stderr
    assert not (tmp_path / ".venv").exists()
