"""Words and numbers for people: how states, scores, costs, counts and bytes are written in tables, notes and lines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from search.trials.record import State

STATES: Final[Mapping[State, str]] = {  # in the order in which they are counted
    State.COMPLETE: "complete",
    State.RUNNING: "running",
    State.PAUSED: "waiting at a rung",
    State.PRUNED: "stopped early",
    State.FAIL: "failed",
}


def heading(cost: str) -> str:
    """Return the heading of a study's cost, "" for one that every table of trials has as a column anyway."""
    return "" if cost in ("stored_parameters", "seconds") else cost.replace("_", " ")


def score_text(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def count_text(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def percent_text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def seconds_text(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def amount_text(value: float | None) -> str:
    """Return a cost, whether a count or a measurement: 12,346, 8.15 or 0."""
    return "" if value is None else f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def spread_text(mean: float, spread: float | None) -> str:
    """Return a mean over seeds with its standard deviation, None of a single seed."""
    return score_text(mean) if spread is None else f"{mean:.4f} ± {spread:.4f}"


def value_text(value: float) -> str:
    """Return any measurement by itself, in as many digits as may matter."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def bytes_text(count: int) -> str:
    """Return a number of bytes, such as 0.25 GB; below 0.1 GB such as 12 MB, rounded up."""
    return f"{count / 10**9:.3g} GB" if count >= 10**8 else f"{math.ceil(count / 10**5) / 10:g} MB"


def model_text(text: str) -> str:
    """Return a model's name without its folder, or the path inside its package."""
    if text.startswith("package:"):
        return text.removeprefix("package:").partition("/")[0]
    return text.rstrip("/").rpartition("/")[2] if text.startswith(("/", "~", ".")) else text
