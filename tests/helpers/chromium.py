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
    """Skip the module that is imported, unless $PETL_BROWSER asks for it: then there has to be a browser."""
    if not os.environ.get("PETL_BROWSER"):
        pytest.skip("`make test-browser` runs it", allow_module_level=True)
    there = {
        "playwright (pip install 'petl-search[browser]')": importlib.util.find_spec("playwright"),
        f"{_PROGRAM} (apt-get install chromium)": _PROGRAM.exists(),
    }
    missing = " and ".join(what for what, found in there.items() if not found)
    assert not missing, f"there is no {missing}"


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright's."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(_PROGRAM), args=["--no-sandbox"])  # root has none
        yield browser
        browser.close()
