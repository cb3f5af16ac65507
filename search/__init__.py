"""The search service. Its names are loaded when they are first used, so that importing it is cheap."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from search.query import ParetoFront, Study, load_study
    from search.record import TrialRecord
    from search.study import run

_HOMES: Final = {
    "run": "search.study",
    "load_study": "search.query",
    "Study": "search.query",
    "ParetoFront": "search.query",
    "TrialRecord": "search.record",
}

__all__ = ["ParetoFront", "Study", "TrialRecord", "load_study", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
