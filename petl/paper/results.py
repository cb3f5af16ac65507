"""What He et al. (ICLR 2022) print, from `results.json`: scores, percentages of parameters, and their conclusions.

Numbers are as printed: percent points for accuracy and ROUGE, BLEU from 0 to 100; `xsum` and `en-ro` on
the test split, `mnli` and `sst2` on the development one. The series of Figure 4 are from the authors' code
that draws it. A row of scores has the name of its percentage, where that is printed too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final


@dataclass(frozen=True)
class PaperTask:
    """One of the paper's tasks: what is printed, the headline first, and the split that it is measured on."""

    headline: str
    scores: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class PrintedPercentage:
    """A printed percentage of parameters.

    `printed` is the text, whose decimals say how it was rounded; `note` says where it errs.
    """

    tables: tuple[str, ...]
    method: str
    backbone: str
    design: str
    printed: str
    note: str = ""


@dataclass(frozen=True)
class Number:
    """A printed score, and the ± behind it where there is one."""

    value: float
    spread: float | None = None


@dataclass(frozen=True)
class Result:
    """A printed row. `scores` maps a task to its scores; `note` says where a score is a slip or copied."""

    tables: tuple[str, ...]
    name: str
    scores: Mapping[str, Mapping[str, Number]]
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """A conclusion: in each pair of rows the first is the better one."""

    tables: tuple[str, ...]
    claim: str
    pairs: Sequence[tuple[str, str]]


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}


def _result(row: Mapping[str, Any]) -> Result:
    scores = {
        task: {name: Number(*(value if isinstance(value, list) else [value])) for name, value in numbers.items()}
        for task, numbers in row["scores"].items()
    }
    return Result(**{**_tuples(row), "scores": scores})


_PRINTED: Final = json.loads((resources.files("petl.paper") / "results.json").read_text("utf-8"))
PAPER_TASKS: Final[Mapping[str, PaperTask]] = {
    name: PaperTask(**_tuples(task)) for name, task in _PRINTED["tasks"].items()
}
PERCENTAGES: Final[Sequence[PrintedPercentage]] = [PrintedPercentage(**_tuples(row)) for row in _PRINTED["percentages"]]
RESULTS: Final[Sequence[Result]] = [_result(row) for row in _PRINTED["results"]]
TABLES: Final[tuple[str, ...]] = tuple(dict.fromkeys(table for result in RESULTS for table in result.tables))
REMARKS: Final[Mapping[str, str]] = _PRINTED["remarks"]  # on all numbers of a table
FINDINGS: Final[Sequence[Finding]] = [
    Finding(tuple(row["tables"]), row["claim"], tuple(map(tuple, row["pairs"]))) for row in _PRINTED["findings"]
]
EN_RO: Final = "the paper's percentages of mBART are of BART-large's 409.6 M parameters, not of its own 610.9 M"


def results(table: str, task: str) -> dict[str, Result]:
    """Return the rows of a table that have scores on a task, by name."""
    return {result.name: result for result in RESULTS if table in result.tables and task in result.scores}


def percent(table: str, name: str) -> tuple[str, str]:
    """Return the percentage of parameters that a table prints for a row, and what is wrong with it; "" for nothing."""
    if name.startswith("full fine-tuning"):
        return "100", ""
    rows = (row for row in PERCENTAGES if row.method == name and table in row.tables)
    return next(((row.printed, row.note) for row in rows), ("", ""))
