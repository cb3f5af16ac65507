"""Imports go one way, petl <- spaces <- search, and each library has its few places."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import petl
import search
import spaces

ROOT = Path(__file__).parent.parent
TORCH = {"torch", "transformers", "deepspeed"}


def allowed(path: Path) -> set[str]:
    """Of the libraries and packages that are watched, those that a module may import."""
    package, module = path.parent.name, path.stem
    names = {"petl": {"petl"} | TORCH, "spaces": {"petl", "spaces", "optuna"}, "search": {"petl", "spaces", "search"}}[
        package
    ]
    if package == "search":
        names = names | {"optuna"} if module in ("samplers", "record", "front", "table") else names
        names = (
            names | {"ray"}
            if module in ("ray_tune", "worker", "gang", "study", "cluster", "authentication", "jobs")
            else names
        )
        names = names | {"mlflow"} if module == "tracking" else names
    return names


WATCHED = {"petl", "spaces", "search", "optuna", "ray", "mlflow"} | TORCH
MODULES = sorted(path for package in ("petl", "spaces", "search") for path in (ROOT / package).glob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_imports_go_one_way(path: Path) -> None:
    assert not set(imports(path)) & WATCHED - allowed(path)


def test_modules_are_found() -> None:
    assert len(MODULES) > 30


@pytest.mark.parametrize("package", [petl, spaces, search])
def test_packages_are_ours(package: object) -> None:
    """`petl` and `spaces` are names on the package index too."""
    assert Path(str(package.__file__)).parent.parent == ROOT  # type: ignore[attr-defined]
