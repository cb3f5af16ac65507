"""The limits on the structure of petl, spaces and search, and the commands that measure it, on a small tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.structure.graph import House, Sizes, circles, floors
from tests.structure.modules import Tree, Unit
from tests.structure.walk import entries, stays, walk

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
FILES = {
    "petl/__init__.py": "",
    "petl/design.py": """
from enum import StrEnum
class DesignError(ValueError): ...
class Site(StrEnum):
    HEADS = "heads"
class Design: ...
""",
    "petl/forms/__init__.py": "import lazy_loader\n",
    "petl/forms/__init__.pyi": "from .low_rank import rank\n\n__all__ = ['rank']\n",
    "petl/forms/low_rank.py": "def rank(): ...\ndef scale(): ...\n",
    "spaces/__init__.py": "",
    "spaces/unified.py": "import petl.design\ndef sample(): return petl.design.Site.HEADS, petl.design.Design()\n",
    "search/__init__.py": "_HOMES = {'run': 'search.study.run'}\ndef __getattr__(name): ...\n",
    "search/study/__init__.py": "",
    "search/study/run.py": """
from functools import partial
from petl import design
from petl.forms import rank
from search.workers.pool import TABLE, Pool
from search.study.plan import plan, settle

def run(source):
    pool = Pool(partial(settle, source))
    with pool:
        rank(plan(source))
    scale = TABLE["scale"]
    return close()

def close():
    raise design.DesignError()
""",
    "search/study/plan.py": "from spaces.unified import sample\ndef plan(): sample()\ndef settle(): ...\n",
    "search/workers/__init__.py": "",
    "search/workers/pool.py": """
from __future__ import annotations
from typing import TYPE_CHECKING
from petl.design import Design
from petl.forms.low_rank import scale
if TYPE_CHECKING:
    from search.workers.gang import Gang

TABLE = {"scale": scale}

class Pool:
    def __enter__(self, gang: Gang) -> Design:
        from search.workers.gang import join
        if isinstance(gang, Design):
            join()
""",
    "search/workers/gang.py": """
from search.workers import pool

class Gang: ...

def join():
    pool = 1
    return pool.Pool
""",
    "search/cli.py": "def main():\n    from search import run\n    run()\n",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    root = tmp_path_factory.mktemp("checkout")
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Tree(root)


@pytest.fixture(scope="module")
def product() -> Tree:
    return Tree(ROOT)


def test_arrows_are_imports_of_every_kind(tree: Tree) -> None:
    """At the top, inside a function, for types, and through an `__init__`, lazy or not."""
    assert House.of(tree).arrows == {
        "petl.design": set(),
        "petl.forms.low_rank": set(),
        "spaces.unified": {"petl.design"},
        "search.study.run": {"petl.design", "petl.forms.low_rank", "search.workers.pool", "search.study.plan"},
        "search.study.plan": {"spaces.unified"},
        "search.workers.pool": {"petl.design", "petl.forms.low_rank", "search.workers.gang"},
        "search.workers.gang": {"search.workers.pool"},
        "search.cli": {"search.study.run"},
    }


def test_rooms_are_folders_of_search_and_the_other_packages(tree: Tree) -> None:
    house = House.of(tree)
    assert house.rooms == {
        "petl": set(),
        "spaces": {"petl"},
        "search.study": {"petl", "spaces", "search.workers"},
        "search.workers": {"petl"},
        "search.cli": {"search.study"},
    }
    assert floors(house.rooms) == {"petl": 1, "spaces": 2, "search.workers": 2, "search.study": 3, "search.cli": 4}
    assert house.inside("petl") == {"petl.design": set(), "petl.forms": set()}


def test_circles_are_found(tree: Tree) -> None:
    assert circles(House.of(tree).arrows) == [["search.workers.gang", "search.workers.pool"]]
    ring = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"c"}}
    assert circles(ring) == [["a", "b", "c"]]
    assert floors(ring) == {"a": 1, "b": 1, "c": 1, "d": 2}
    assert floors({"above": {"left"}, "left": {"right"}, "right": {"left"}}) == {"above": 2, "left": 1, "right": 1}


def test_an_import_of_nothing_is_refused(tmp_path: Path) -> None:
    for name, text in {**FILES, "search/cli.py": "from search import walk\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(LookupError, match=r"search\.cli imports walk from search"):
        House.of(Tree(tmp_path))


def test_the_walk_reads_what_is_named_once_and_in_order(tree: Tree) -> None:
    stops = walk(tree, Unit("search", "run"))
    assert [(stay.module, stay.names) for stay in stays(stops)] == [
        ("search.study.run", ["run"]),
        ("search.study.plan", ["settle"]),
        ("search.workers.pool", ["Pool"]),
        ("search.workers.gang", ["join"]),
        ("search.study.plan", ["plan"]),
        ("spaces.unified", ["sample"]),
        ("petl.design", ["Design"]),
        ("petl.forms.low_rank", ["rank", "scale"]),
        ("search.study.run", ["close"]),
    ]
    assert entries(stops)["search.study.run"] == 2
    assert stops[Unit("search.workers.gang", "join")] == Unit("search.workers.pool", "Pool")


def test_the_walk_begins_at_a_function(tree: Tree) -> None:
    with pytest.raises(LookupError, match="search has no 'stroll'"):
        walk(tree, Unit("search", "stroll"))


def test_rooms_are_few_floors(product: Tree) -> None:
    house = House.of(product)
    assert len(house.rooms) > 3
    assert not circles(house.rooms)
    assert max(floors(house.rooms).values()) <= 7


def test_a_room_is_few_floors_without_a_circle(product: Tree) -> None:
    house = House.of(product)
    assert [ring for package in house.packages for ring in circles(house.inside(package))] == []
    height = {package: max(floors(house.inside(package)).values(), default=0) for package in house.packages}
    assert {package: floor for package, floor in height.items() if floor > 5 and package != "search"} == {}


def test_no_modules_import_each_other(product: Tree) -> None:
    assert circles(House.of(product).arrows) == []


def test_modules_are_short(product: Tree) -> None:
    assert Sizes.of(product.files()).largest <= 600


def test_the_walk_enters_no_module_often(product: Tree) -> None:
    counts = entries(walk(product, Unit("search", "run")))
    assert len(counts) > 30  # it does arrive at the backbone, the data and MLflow
    assert {module: count for module, count in counts.items() if count > 5} == {}
