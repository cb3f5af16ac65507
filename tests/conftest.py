"""What every test stands on: a home and a cache of its own, whatever studies lie where the tests are started.

Where pytest-xdist shares the files out (`make test`), those that need the second core run one after the other.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scope import ALL, LEFT_OUT

# Folders and files whose tests start processes of their own, or kill them after milliseconds. First, since they take
# longest.
ALONE = ("browser_tests", "system_tests", "test_quota.py", "test_records.py", "test_database.py")
# Then those that take longest of the others: what is left at the end is short.
LONG = (
    "test_library.py",
    "test_engine.py",
    "test_contract.py",
    "test_generation.py",
    "test_spaces_built.py",
    "test_search.py",
)


# The commands that are printed are then their words alone, as in an activated environment.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
# Ray's workers give way to all others; beside the tests that run on the other core they would hardly run at all.
os.environ.setdefault("RAY_worker_niceness", "0")


def alone(path: str) -> bool:
    return any(name in ALONE for name in path.split("/"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full(reason): run by `make test-all` alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not ALL:
        full = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if item not in full]
        config.hook.pytest_deselected(items=full)
        for file, count in Counter(item.path.name for item in full).items():
            LEFT_OUT[file] = f"{count} tests"
    rank = {name: number for number, name in enumerate(LONG, 1)}

    def place(item: pytest.Item) -> int:
        return 0 if alone(item.path.as_posix()) else rank.get(item.path.name, len(rank) + 1)

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files as xdist's `loadfile` has them, and those of ALONE as if they were one.

    Its `loadgroup` is for that, but xdist 3.8 leaves the groups out of the names that pytest 9.2 gives to tests.
    """
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "alone" if alone(file) else file

    return Files(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    LEFT_OUT.update(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a worker of xdist
        session.config.workeroutput["left_out"] = LEFT_OUT


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if LEFT_OUT:
        terminalreporter.section("left to `make test-all`")
        for what, how_many in sorted(LEFT_OUT.items()):
            terminalreporter.write_line(f"{what}: {how_many}")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell ran the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of the studies of one file of tests."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("home")
        patch.setenv("PETL_SEARCH_HOME", str(path))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield path


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETL_SEARCH_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("PETL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield
