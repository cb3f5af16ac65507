"""What a person sees while a search runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search.trials.formats import STATES, amount_text, heading
from search.trials.naming import label
from search.trials.record import Replicate, State, TrialRecord, epochs_trained
from search.trials.report import Report, Run


class Display:
    """A Listener that shows what happens: trials, and the replicates after them.

    `objectives` are the names of the score and the costs. `records` gives all trials, `front` the non-dominated ones
    by cost, `last_note` the line that the worker of a trial, or of a replicate by its seed, left last; `budget` is the
    number of trials asked for, beside the references, `at_once` how many run side by side, `epochs` what all of them
    come to, where that is known.
    """

    def __init__(
        self,
        study: str,
        budget: int,
        at_once: int,
        objectives: Sequence[str],
        records: Callable[[], Sequence[TrialRecord]],
        front: Callable[[], Sequence[TrialRecord]],
        console: Console | None = None,
        last_note: Callable[..., str] = lambda number, seed=None: "",
        epochs: float | None = None,
    ) -> None:
        self.study, self.budget, self.at_once = study, budget, at_once
        self.score, *self.costs = objectives
        self.console = console or Console()
        self._records, self._front, self._last_note = records, front, last_note
        self._began, self._epochs, self._trained = time.monotonic(), epochs, epochs_trained(records())
        self._live: Live | None = None
        self._reached: dict[Hashable, str] = {}  # by the key of a run
        self._lock = threading.Lock()  # the live table is drawn from a thread of its own

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Show trials within the context."""
        with self._table(self._render):
            yield

    @contextmanager
    def scoring(self, numbers: Sequence[int]) -> Iterator[Callable[[int], None]]:
        """Show trials being scored on whole splits within the context; what it yields takes those that are done."""
        remaining = list(numbers)

        def rows() -> RenderableType:
            table = Table.grid(padding=(0, 2))
            table.add_row(f"scoring: {len(numbers) - len(remaining)}/{len(numbers)} done")
            for number in remaining:
                if note := self._last_note(number):
                    table.add_row(f"trial {number}", Text(note, "dim"))
            return table

        def done(number: int) -> None:
            remaining.remove(number)
            if not self.console.is_terminal:
                scored = len(numbers) - len(remaining)
                self.say(f"{self._clock()}  trial {number} is scored ({scored}/{len(numbers)})")

        with self._table(rows):
            yield done

    @contextmanager
    def replicating(self, runs: Callable[[], Sequence[Replicate]]) -> Iterator[None]:
        """Show replicates within the context; `runs` gives all that were begun."""

        def rows() -> RenderableType:
            begun, table = list(runs()), Table.grid(padding=(0, 2))
            over = sum(run.over for run in begun)
            table.add_row(f"replicates: {over} done, {len(begun) - over} running")
            for run in begun:
                if not run.over:
                    note = self._last_note(run.number, run.seed)
                    table.add_row(f"trial {run.number}, seed {run.seed}", Text(note, "dim"))
            return table

        with self._table(rows):
            yield

    @contextmanager
    def _table(self, rows: Callable[[], RenderableType]) -> Iterator[None]:
        """Show a table that is drawn twice a second within the context, where there is a terminal."""
        if not self.console.is_terminal:
            yield
            return
        with Live(get_renderable=rows, console=self.console, refresh_per_second=2, transient=True) as self._live:
            yield

    def say(self, text: str) -> None:
        """Print a line, above the table if there is one."""
        self.console.print(text, highlight=False, markup=False)

    def started(self, run: Run) -> None:
        if isinstance(run, Replicate):
            self._line(run, "trains again")
        else:
            self._line(run, "resumes" if run.rungs else "starts")

    def reported(self, run: Run, report: Report) -> None:
        if report.validations and report.measurements is None:
            last = report.validations[-1]
            reached = f"{self.score} {last['scores'][self.score]:.4f} after {last['epoch']:g} epochs"
            with self._lock:
                news = self._reached.get(run.key) != reached  # one that resumes reports once more what it had reached
                self._reached[run.key] = reached
            if news:
                self._line(run, reached)

    def restarted(self, run: Run) -> None:
        self.say(f"the worker process of {_name(run)} died; another one resumes from its last milestone")

    def paused(self, run: Run) -> None:
        waits = run.state is State.PAUSED
        self._line(run, "waits for its promotion" if waits else "is left for a resume: the budget is spent")

    def ended(self, run: Run) -> None:
        if run.state is State.COMPLETE and run.measurements:
            score, size = getattr(run.measurements, self.score), run.measurements.stored_parameters
            self._line(run, f"{STATES[run.state]}: {self.score} {score:.4f}, {size:,} parameters")
        else:
            self._line(run, STATES[run.state] + (f": {run.failure}" if run.failure else ""), loud=True)

    def _line(self, run: Run, text: str, *, loud: bool = False) -> None:
        """Print what happened to a run; beside a live table, which shows the rest, only what is `loud`."""
        who, when = _name(run), self._clock()
        if isinstance(run, TrialRecord):
            who, when = f"{who} ({_label(run)})", self._progress()
        if self._live is None:
            self.say(f"{when}  {who} {text}")
        elif loud and run.state is State.FAIL:
            self.say(f"{who} {text}")

    def _progress(self) -> str:
        records = self._records()
        over = sum(not record.state.open and record.reference is None for record in records)
        left = self._left(records)
        expected = "" if left is None else f", about {_clock(left)} left"
        return f"{self._clock(expected)} {over}/{self.budget}"

    def _left(self, records: Sequence[TrialRecord]) -> float | None:
        if self._epochs is None:
            return _left(records, self.budget, self.at_once)
        trained = epochs_trained(records)
        return _left_of_epochs(trained - self._trained, self._epochs - trained, time.monotonic() - self._began)

    def _clock(self, expected: str = "") -> str:
        return f"[{_clock(time.monotonic() - self._began)}{expected}]"

    def _render(self) -> RenderableType:
        with self._lock:
            records = list(self._records())
            reached = dict(self._reached)
        trials = [record for record in records if record.reference is None]
        states = Counter(record.state for record in records)
        over = sum(not record.state.open for record in trials)
        elapsed = time.monotonic() - self._began
        head = Text.assemble(
            (self.study, "bold"),
            f"  {over}/{self.budget} trials  ",
            "  ".join(f"{states[state]} {word}" for state, word in STATES.items() if states[state]),
            f"  {_clock(elapsed)} elapsed",
            f", about {_clock(left)} left" if (left := self._left(records)) is not None else "",
        )
        running = Table.grid(padding=(0, 2))
        for record in records:
            if record.state is State.RUNNING:
                running.add_row(
                    f"trial {record.number}",
                    Text(_label(record)),
                    Text(reached.get(record.number, ""), "dim"),
                    Text(self._last_note(record.number), "dim"),
                )
        front = Table(title="front so far", title_justify="left", box=None, padding=(0, 2, 0, 0))
        own = [cost for cost in self.costs if heading(cost)]
        for column in ("trial", "design", self.score, "parameters", "%", *map(heading, own)):
            front.add_column(column, justify="left" if column == "design" else "right")
        for record in self._front():
            measured = record.measurements
            if measured:
                front.add_row(
                    str(record.number),
                    Text(_label(record)),
                    f"{getattr(measured, self.score):.4f}",
                    f"{measured.stored_parameters:,}",
                    f"{measured.stored_percent:.2f}",
                    *(amount_text(getattr(measured, cost)) for cost in own),
                )
        return Group(head, running, front) if front.rows else Group(head, running)


def _name(run: Run) -> str:
    return f"trial {run.number}" + (f" with seed {run.seed}" if isinstance(run, Replicate) else "")


def _label(record: TrialRecord) -> str:
    return f"reference {record.reference}" if record.reference else label(record)


def _left(records: Sequence[TrialRecord], budget: int, at_once: int) -> float | None:
    """Return the seconds until the budget is spent, at the pace of the trials that are over."""
    spans = [
        record.ended - record.started
        for record in records
        if record.reference is None and record.ended is not None and record.started is not None
    ]
    if len(spans) < 3:
        return None
    running = sum(record.state is State.RUNNING and record.reference is None for record in records)
    waiting = max(0, budget - len(spans) - running)
    return sum(spans) / len(spans) * (waiting + running / 2) / at_once


def _left_of_epochs(trained: float, left: float, seconds: float) -> float | None:
    """Return the seconds for the epochs that remain, at the pace of those that were trained."""
    return max(0.0, left) / trained * seconds if trained > 0 else None


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
