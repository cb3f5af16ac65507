"""Words, numbers and tables as the terminal shows them."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.storage.commands import resume_command
from search.trials.formats import STATES
from search.trials.record import State, TrialRecord

if TYPE_CHECKING:
    from search.results.query import ParetoFront, Study

_WIDE: Final = 200  # columns where there is no terminal: a file or a pipe has no edge
_LEFT: Final = "not finished"


@dataclass(frozen=True)
class Failure:
    """A reason for which trials failed, and their numbers."""

    reason: str
    trials: list[int]


def console() -> Console:
    """Return a console on stdout. Without a terminal it neither cuts nor folds lines; brackets are not markup."""
    terminal = sys.stdout.isatty()
    return Console(
        width=None if terminal else _WIDE, highlight=False, markup=False, emoji=False, soft_wrap=not terminal
    )


def count_states(study: Study) -> str:
    """Return how far a study is, such as `20 complete, 3 stopped early, 1 failed`, references not counted."""
    counts = Counter(trial.state for trial in study.trials)
    names = {state: state_text(state, study.summary.status) for state in STATES}
    return ", ".join(f"{counts[state]} {name}" for state, name in names.items() if counts[state]) or "none yet"


def why_empty(study: Study, front: ParetoFront) -> str:
    """Return in a sentence why a study's front has no member."""
    complete = [trial.measurements for trial in study.trials if trial.measurements]
    within = [
        measured
        for measured in complete
        if all(getattr(measured, name) is not None and getattr(measured, name) <= limit for name, limit in front.limits)
    ]
    if not study.trials:
        reason = "it has no trials yet"
    elif not complete:
        reason = f"no trial is complete ({count_states(study)})"
    elif front.fdr is not None:
        reason = (
            f"no trial can be named with at most {100 * front.fdr:g} % false ones expected. Allow more, or train more "
            f"seeds: `{resume_command(study.name)}` with a larger replicates.per_trial or replicates.extra"
        )
    elif not within:
        smallest = min(measured.stored_parameters for measured in complete)
        limits = ", ".join(f"{name} <= {limit:,g}" for name, limit in front.limits)
        reason = (
            f"no complete trial is within {limits} ({count_states(study)}). Allow more; the smallest of them stores "
            f"{smallest:,} parameters"
        )
    else:
        reason = f"no complete trial has a score and every cost ({count_states(study)})"
    return f"The front of {study.name} is empty: {reason}."


def failure_text(record: TrialRecord) -> str:
    """Return the first line of why a trial failed."""
    return next(iter((record.failure or "").splitlines()), "") or "no reason given"


def failures(study: Study) -> list[Failure]:
    """Return why trials and references of a study failed, the commonest reason first."""
    failed: dict[str, list[int]] = {}
    for trial in (*study.trials, *study.references):
        if trial.state is State.FAIL:
            failed.setdefault(failure_text(trial.record), []).append(trial.number)
    return [Failure(reason, own) for reason, own in sorted(failed.items(), key=lambda item: -len(item[1]))]


def say(out: Console, text: str, style: str = "") -> None:
    """Print a line as it is: rich would take a path or a list in brackets for markup."""
    out.print(Text(text, style), soft_wrap=True)


def add(table: Table, *cells: str) -> None:
    """Add a row of cells as they are."""
    table.add_row(*map(Text, cells))


def new_table(title: str) -> Table:
    """Return an empty table in the look that all tables share."""
    return Table(
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def state_text(state: State, study: str) -> str:
    """Return the word for a trial's state in a study of this status.

    A hard budget, or an interruption, leaves trials for a resume, which are on record as running.
    """
    return _LEFT if state is State.RUNNING and study != "RUNNING" else STATES[state]
