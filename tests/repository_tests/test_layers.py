"""Imports go down: a room imports the rooms that ROOMS names, and a library is imported where LIBRARIES says.

A room is a sub-package. All of spaces is one room, and so are the values at the top of petl.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scope import sampled

import petl
import search
import spaces

ROOT = Path(__file__).parents[2]
PETL = {"petl", "petl.backbones"}
ROOMS = {  # what a room may import beside itself
    "petl.forms": set(),
    "petl": {"petl.forms"},
    "petl.backbones": {"petl", "petl.forms"},
    "petl.data": PETL,
    "petl.attach": PETL | {"petl.forms"},
    "petl.training": PETL | {"petl.data", "petl.attach"},
    "petl.adapters": PETL | {"petl.data", "petl.attach", "petl.forms"},
    "petl.paper": PETL,
    "spaces": PETL,
    "search.trials": PETL,
    "search.optimizer": PETL | {"spaces", "search.trials"},
    "search.storage": PETL | {"search.trials"},
    "search.config": PETL | {"petl.paper", "spaces", "search.trials", "search.optimizer", "search.storage"},
    "search.tracking": {"petl", "search.trials", "search.storage"},
    "search.workers": PETL
    | {"petl.data", "petl.training", "petl.adapters"}
    | {"search.trials", "search.optimizer", "search.storage", "search.config"},
    "search.results": PETL
    | {"petl.paper", "petl.adapters", "search.trials", "search.storage", "search.tracking", "search.optimizer"},
    "search.jobs": {"petl", "spaces", "search.trials", "search.storage", "search.config", "search.workers"},
    "search.study": PETL
    | {"petl.data", "petl.training", "spaces", "search.trials", "search.optimizer", "search.storage"}
    | {"search.config", "search.tracking", "search.workers", "search.results"},
    "search.options": set(),
    "search.reading": PETL
    | {"search.trials", "search.optimizer", "search.storage", "search.tracking", "search.results", "search.options"},
    "search.cli": PETL
    | {"search.trials", "search.storage", "search.results", "search.jobs", "search.config", "search.study"}
    | {"search.options", "search.reading"},
}
EVERYWHERE = "petl.errors"  # imports nothing of ours, so it is below all rooms, whichever it lies in
TORCH = {"torch", "transformers", "deepspeed"}
TENSORS = {f"petl.{room}" for room in ("forms", "backbones", "data", "attach", "training", "adapters", "paper")}
LIBRARIES = {  # the rooms that may import a library
    **dict.fromkeys(TORCH, TENSORS),
    "ray": {"search.workers", "search.jobs"},
    "mlflow": {"search.tracking"},
    "optuna": {"spaces", "search.trials", "search.optimizer", "search.storage"},
    "sqlalchemy": {"search.storage"},
}
PURE = {"search.trials", "search.optimizer"}  # rooms without files, network and processes
IMPURE = {"os", "pathlib", "shutil", "socket", "subprocess", "tempfile", "urllib", "http"}


def room_of(module: str) -> str:
    parts = module.split(".")
    if parts[0] == "petl" and (len(parts) < 2 or (ROOT / "petl" / f"{parts[1]}.py").exists()):
        return "petl"
    return parts[0] if parts[0] == "spaces" else ".".join(parts[:2])


def modules() -> list[str]:
    files = [path for package in ("petl", "spaces", "search") for path in (ROOT / package).rglob("*.py")]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    return sorted(name for name in names if not name.endswith("__init__"))


def file_of(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def imports(path: Path) -> Iterator[str]:
    """What a file imports, inside functions too; of ours the modules, of others the top name."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            ours = name.partition(".")[0] in ("petl", "spaces", "search")
            yield name if ours else name.partition(".")[0]


@pytest.mark.parametrize("module", modules())
def test_imports_go_down(module: str) -> None:
    room = room_of(module)
    for name in imports(file_of(module)):
        if name.startswith(f"{EVERYWHERE}."):
            continue
        if name.partition(".")[0] in ("petl", "spaces", "search"):
            assert module != EVERYWHERE
            assert room_of(name) in ROOMS[room] | {room}, f"{module} imports {name}"
        else:
            assert room in LIBRARIES.get(name, {room}), f"{module} imports {name}"
            assert room not in PURE or name not in IMPURE, f"{module} imports {name}"


@pytest.mark.parametrize("module", modules())
def test_no_module_is_longer_than_600_lines(module: str) -> None:
    assert len(file_of(module).read_text().splitlines()) <= 600


def test_every_room_is_found_and_ruled() -> None:
    assert {room_of(module) for module in modules()} == set(ROOMS)
    assert len(modules()) > 80


def floor(room: str) -> int:
    return 1 + max((floor(below) for below in ROOMS[room]), default=0)


def test_rooms_are_on_seven_floors() -> None:
    """The rule itself goes down: no room is above itself, and petl and spaces are a floor each."""
    service = {
        room: {"petl" if below.startswith("petl") else below for below in rooms}
        for room, rooms in ROOMS.items()
        if not room.startswith("petl")
    } | {"petl": set()}

    def height(room: str) -> int:
        return 1 + max((height(below) for below in service[room]), default=0)

    assert max(map(height, service)) <= 7
    assert max(floor(room) for room in ROOMS if room.startswith("petl")) <= 5
    assert max(map(floor, ROOMS)) <= 12  # raises RecursionError where there is a circle


@pytest.mark.parametrize("package", [petl, spaces, search])
def test_packages_are_ours(package: object) -> None:
    """`petl` and `spaces` are names on the package index too."""
    assert Path(str(package.__file__)).parent.parent == ROOT  # type: ignore[attr-defined]


PUBLIC = sorted(
    (".".join(path.parent.relative_to(ROOT).parts), name)
    for package in ("petl", "spaces", "search")
    for path in (ROOT / package).rglob("__init__.pyi")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.ImportFrom)
    for name in (alias.name for alias in node.names)
)


PACKAGES = sorted(
    ".".join(path.parent.relative_to(ROOT).parts)
    for package in ("petl", "spaces", "search")
    for path in (ROOT / package).rglob("__init__.py")
)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_lists_what_lies_in_it(package: str) -> None:
    folder = ROOT / package.replace(".", "/")
    inside = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    listed = re.findall(r"\w+", ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or "")
    assert sorted(name for name in inside - set(listed) if not name.startswith("_")) == []


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_a_name_is_a_module_or_an_export(package: str, name: str) -> None:
    folder = ROOT / package.replace(".", "/")
    assert not (folder / name).exists()
    assert not (folder / f"{name}.py").exists()


PACKAGES = sampled(
    "packages imported in both orders",
    sorted({package for package, _ in PUBLIC}),
    lambda package: package not in ("petl", "petl.attach"),  # which take longest
)


@pytest.mark.parametrize("package", PACKAGES)
def test_exports_are_the_same_before_and_after_the_modules(package: str) -> None:
    """In fresh processes: a module that is imported later must not take the place of an export."""
    names = [name for home, name in PUBLIC if home == package]
    inside = [module for module in modules() if module.startswith(f"{package}.") and not module.endswith("__main__")]
    exports = [f"from {package} import {name}" for name in names]
    loads = [f"import {module}" for module in inside]
    show = f"print(sorted((name, getattr({package}, name).__module__) for name in {names!r}))"
    seen = [
        subprocess.run(
            [sys.executable, "-c", "\n".join([*lines, f"import {package}", show])],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.splitlines()[-1]
        for lines in (exports + loads, loads + exports)
    ]  # fmt: skip
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("command", "absent"),
    [
        ("import search.cli", ("torch", "mlflow", "ray")),
        ("import search; search.load_study", ("torch", "ray", "mlflow.server")),
        ("import petl; petl.count; petl.parse; import petl.forms.table", ("torch", "transformers")),
        ("import petl.backbones.model, petl.backbones.generation", ("torch", "transformers")),
        ("import spaces; spaces.resolve", ("torch", "transformers")),
    ],
)
def test_importing_is_cheap(command: str, absent: tuple[str, ...]) -> None:
    check = f"{command}\nimport sys\nprint([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
