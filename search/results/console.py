"""Words, numbers and tables as the terminal shows them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.trials.record import State

if TYPE_CHECKING:
    from search.results.query import Study

_WIDE: Final = 200  # columns where there is no terminal: a file or a pipe has no edge
_NAMES: Final[Mapping[State, str]] = {
    State.COMPLETE: "complete",
    State.PRUNED: "stopped early",
    State.FAIL: "failed",
    State.RUNNING: "running",
    State.PAUSED: "waiting at a rung",
}
_LEFT: Final = "not finished"  # what is running in a study that is not


def console() -> Console:
    """The console on stdout; without a terminal it does not cut or fold lines. Brackets are brackets."""
    terminal = sys.stdout.isatty()
    return Console(
        width=None if terminal else _WIDE, highlight=False, markup=False, emoji=False, soft_wrap=not terminal
    )


def count_states(study: Study) -> str:
    """Such as `20 complete, 3 stopped early, 1 failed`; references are not counted."""
    counts = Counter(trial.state for trial in study.trials)
    names = {state: _state(state, study.summary.status) for state in _NAMES}
    return ", ".join(f"{counts[state]} {name}" for state, name in names.items() if counts[state]) or "none yet"


def say(out: Console, text: str, style: str = "") -> None:
    """Prints a line as it is: rich would take a path or a list in brackets for markup."""
    out.print(Text(text, style), soft_wrap=True)


def add(table: Table, *cells: str) -> None:
    """Adds a row of cells as they are."""
    table.add_row(*map(Text, cells))


def new_table(title: str) -> Table:
    """An empty table as all of ours look."""
    return Table(
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _state(state: State, study: str) -> str:
    """A trial's, in a study of that status: a hard budget, or an interruption, leaves trials for a resume."""
    return _LEFT if state is State.RUNNING and study != "RUNNING" else _NAMES[state]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def _value(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
