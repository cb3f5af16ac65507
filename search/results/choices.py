"""The forms in which commands write what they show."""

from __future__ import annotations

import math
from collections.abc import Mapping
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

    typer.echo(json.dumps(finite(value), indent=1, allow_nan=False))


def finite(value: Any) -> Any:
    """Return a JSON-ready value with null for numbers that JSON does not have: NaN and the infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
