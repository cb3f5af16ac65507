"""The forms in which commands write what they show."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import typer

from search.trials.formats import finite


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
