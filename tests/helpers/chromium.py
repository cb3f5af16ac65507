"""Debian's chromium, driven by playwright: what is missing of it, and how it is started."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

_PROGRAM: Final = Path("/usr/bin/chromium")


def needed() -> None:
    """Skip the module that is imported where there is no browser, unless $PETL_BROWSER asks for one."""
    there = {
        "playwright (pip install 'petl-search[browser]')": importlib.util.find_spec("playwright"),
        f"{_PROGRAM} (apt-get install chromium)": _PROGRAM.exists(),
    }
    if missing := " and ".join(what for what, found in there.items() if not found):
        assert not os.environ.get("PETL_BROWSER"), f"there is no {missing}"
        pytest.skip(f"needs {missing}; `make test-browser` runs it", allow_module_level=True)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright's."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(_PROGRAM), args=["--no-sandbox"])  # root has none
        yield browser
        browser.close()
