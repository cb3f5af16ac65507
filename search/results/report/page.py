"""The page: a document, the template, the style, the script and the library in one file that asks nobody for anything.

Names, designs and failures come from a store into which strangers may write. They are in the page as JSON alone, which
the script shows as text, and no script but the two of this package may run, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, Final

from search.results.report.data import ReportError, document, to_dict
from search.storage.errors import is_full

if TYPE_CHECKING:
    from search.results.query import Study

_LIBRARY: Final = "vendor/echarts.min.js"
_ESCAPED: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_page(studies: Sequence[Study], path: str | Path, every: int | None = None) -> Path:
    """Write studies as the page `path`, and return that. A page that is written `every` so many seconds loads itself.

    Raises ReportError where the studies have different scores, and where the file cannot be written.
    """
    file, text = Path(path), page_of(studies, every)
    try:
        return write_whole(text, file)
    except OSError as error:
        if is_full(error):
            raise
        raise ReportError(
            f"the page cannot be written to {file}: {error.strerror or error}. --out names another file"
        ) from None


def page_of(studies: Sequence[Study], every: int | None = None) -> str:
    """Return the page of studies as `page` does. Raises ReportError where they have different scores."""
    return page(to_dict(document(studies)), every)


def page(content: Mapping[str, Any], every: int | None = None) -> str:
    """Return the page of a document as JSON holds it; with `every` it loads itself again after so many seconds."""
    library, script = _read(_LIBRARY), _read("page.js")
    return Template(_read("page.html")).substitute(
        title=html.escape(", ".join(study["study"] for study in content["studies"])),
        policy=f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        style=_read("page.css"),
        reload=every or "",
        data="".join(_ESCAPED.get(c, c) for c in json.dumps(content, separators=(",", ":"), allow_nan=False)),
        library=library,
        script=script,
    )


def write_whole(text: str, file: Path) -> Path:
    """Write a file as a whole or not at all, since a browser may read it at any moment, and return its path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, file)
    finally:
        new.unlink(missing_ok=True)
    return file


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """Return how a content security policy names a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
