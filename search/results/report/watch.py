"""A page that follows studies while they run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from search.results.query import Study, load_study
from search.results.report.page import write_page
from search.storage.errors import DamagedStoreError, StoreError


def write_pages(
    names: Sequence[str],
    path: Path,
    uri: str | None = None,
    every: int | None = None,
    say: Callable[[str], object] = lambda text: None,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Write the page of studies once, or `every` so many seconds until none of them runs any more.

    Until then the page loads itself again. A store that does not answer for a while is said, and asked again. Raises
    StoreError where the studies cannot be read at first, and ReportError as `write_page` does.
    """
    studies = _load(names, uri)
    try:
        while every and any(study.summary.status == "RUNNING" for study in studies):
            write_page(studies, path, every)
            say(f"page: {path.absolute()}, written again every {every} s")
            sleep(every)
            try:
                studies = _load(names, uri)
            except DamagedStoreError:
                raise
            except StoreError as error:
                say(f"the page stays as it was: {error}")
    finally:
        write_page(studies, path)  # which is not waited for


def _load(names: Sequence[str], uri: str | None) -> list[Study]:
    return [load_study(name, uri) for name in names]
