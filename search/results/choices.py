"""The forms in which commands write what they show."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import typer


class Rows(StrEnum):
    """How the rows of a front are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class Report(StrEnum):
    """How everything else is written, which has no rows of one kind."""

    TABLE = "table"
    JSON = "json"


class Page(StrEnum):
    """How a report is written: the page, or what it shows."""

    HTML = "html"
    JSON = "json"


class Against(StrEnum):
    """What a list of designs is put beside."""

    PAPER = "paper"


class AdapterFormat(StrEnum):
    """How an adapter is written."""

    PETL = "petl"
    PEFT = "peft"


def print_json(value: Any) -> None:
    """Print a value as search/results/schemas.json describes it."""
    import json

    typer.echo(json.dumps(_finite(value), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    """Return a JSON-ready value with null for numbers that JSON does not have: NaN and the infinities."""
    match value:
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case float() if value - value != 0:
            return None
    return value
