"""Reading what others may have written: as data only, of a bounded size, and fit to be printed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

MOST_JSON: Final = 64 * 2**20  # bytes of a file; the largest tokenizers have 35 MB

# What moves a terminal's cursor, colours it or reorders a line, and what cannot be encoded; lines and tabs stay.
_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return the text with U+FFFD for every character that would do something to a terminal."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def parse(text: str | bytes) -> Any:
    """Return what a JSON text holds, its strings printable. Raises ValueError where it is none, or nested too deep."""
    try:
        return _printable(json.loads(text))
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """Return what a JSON file holds. Raises OSError, and ValueError for none, one nested too deep or beyond `most`."""
    with path.open("rb") as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return parse(text)


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value
