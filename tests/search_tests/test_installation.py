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


IN_PYTHON = (sys.executable, "-c", "import search")
COMMANDS = ((sys.executable, "-m", "search.cli", "ls"), ("petl-search", "ls"))


@pytest.mark.parametrize("start", [IN_PYTHON, *COMMANDS])
@pytest.mark.parametrize("whole", [True, False])
def test_another_petl_is_named_with_the_remedy(tmp_path: Path, whole: bool, start: tuple[str, ...]) -> None:
    """As PyPI's table library of that name has it, or what is left when that is uninstalled. A command says no more."""
    (tmp_path / "petl").mkdir()
    (tmp_path / "petl" / "errors.py").write_text("class DuplicateKeyError(Exception):\n    pass\n")
    if whole:
        (tmp_path / "petl" / "__init__.py").write_text("from petl.errors import DuplicateKeyError\n")
    away = tmp_path / "ours"  # without the package petl, which would be taken for one that has no __init__.py
    away.mkdir()
    (away / "search").symlink_to(ROOT / "search")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{away}"}
    done = subprocess.run(start, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == (1 if start is IN_PYTHON else 2)
    *before, message = done.stderr.splitlines()
    assert bool(before) == (start is IN_PYTHON)
    assert f"received {tmp_path}/petl" in message
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
