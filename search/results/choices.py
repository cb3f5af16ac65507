"""The forms in which commands write what they show."""

from __future__ import annotations

from enum import StrEnum


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
