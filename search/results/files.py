"""The files of what a study has come to: front.json, front.csv, front.png and the page report.html."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from petl.errors import UserError
from search.storage.address import one_line
from search.storage.errors import StoreError, is_full
from search.storage.locations import PAGE

if TYPE_CHECKING:
    from search.results.query import ParetoFront, Study

FORMATS: Final = (".png", ".pdf", ".svg")


class PictureError(UserError):
    """A picture cannot be written where it was asked for."""


def plot(study: Study, path: str | Path, front: ParetoFront | None = None) -> Path:
    """Draw the study and its front into the file `path`, whose ending says the format (PNG, PDF, SVG).

    Raises PictureError for another ending, and where the file cannot be written.
    """
    from search.results.plot import draw  # matplotlib is slow to import

    file = Path(path)
    if file.suffix.lower() not in FORMATS:
        raise PictureError(f"a picture is a file that ends in {', '.join(FORMATS)}; received {file}")
    try:
        return draw(study, study.front() if front is None else front, file)
    except OSError as error:
        raise PictureError(f"the picture cannot be written to {file}: {error.strerror or error}") from error


def _files(folder: Path) -> list[Path]:
    return [folder / f"front.{kind}" for kind in ("json", "csv", "png")]


def require_places(folder: Path) -> None:
    """Raise StoreError where something else has the place of a file of the front in `folder`, a study's."""
    if taken := [str(file) for file in (*_files(folder), folder / PAGE) if file.exists() and not file.is_file()]:
        raise StoreError(
            f"the front of the study is written to {', '.join(taken)} when the search ends, which is no file: move it "
            "away, and begin again"
        )


def write_front(study: Study, folder: Path) -> list[Path]:
    """Write the files of the front, and the page, into `folder`, and return their paths.

    Raises StoreError where one cannot be written, FullDiskError where the disk is full.
    """
    from search.results.report.page import page_of, write_whole

    front, page = study.front(), folder / PAGE
    files = _files(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files[0].write_text(json.dumps(front.to_rows(), indent=1) + "\n")
        front.to_frame().to_csv(files[1], index=False)
        write_whole(page_of([study]), page)
    except OSError as error:
        if is_full(error):
            raise
        raise StoreError(
            f"the files of the front cannot be written: {one_line(error)}. All trials are kept and published; where "
            "something else has the place of a file, move it away, and resume"
        ) from error
    plot(study, files[2], front)
    return [*files, page]
