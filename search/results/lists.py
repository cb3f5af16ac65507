"""A study of listed designs as a table: each design's means over its seeds, and what the paper prints beside them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from petl.backbones.count import PAPER_BASE
from petl.measurements import SCORES, SHARES
from petl.paper.results import EN_RO, FINDINGS, PAPER_TASKS, REMARKS, Finding, Number, Result, percent, results
from search.results.console import add, count_states, failure_text, new_table, say
from search.results.query import Study, Trial
from search.storage.commands import command
from search.storage.errors import StoreError
from search.tracking.schema import ListedDesign, PaperTable
from search.trials.formats import STATES, count_text
from search.trials.record import State

_COUNTS: Final = ("stored_parameters", "trained_parameters", "paper_parameters")
_LOSS: Final = "loss"
_UNDECIDED: Final = 2.0  # standard errors of a difference


@dataclass(frozen=True)
class Spread:
    """Hold a score over seeds, in the paper's unit."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation; None for a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def error(self) -> float | None:
        """The standard error of the mean; None for a single value."""
        return None if self.deviation is None else self.deviation / math.sqrt(len(self.values))


@dataclass(frozen=True)
class DesignRow:
    """Hold a listed design: its trials, one a seed, and what the paper prints for it.

    `seeds` is how many there should be. `percent` is the printed share of parameters, and `slip` what is wrong with it.
    """

    name: str
    trials: tuple[Trial, ...]
    seeds: int
    printed: Result | None = None
    percent: str = ""
    slip: str = ""

    @property
    def note(self) -> str:
        """What is to be said of the printed scores."""
        return self.printed.note if self.printed else ""

    @property
    def complete(self) -> tuple[Trial, ...]:
        """The trials that have scores."""
        return tuple(trial for trial in self.trials if trial.state is State.COMPLETE)

    def spread(self, score: str, split: str) -> Spread | None:
        """Return a score of the complete trials on a split; None where no trial has it."""
        values = tuple(self.by_seed(score, split).values())
        return Spread(values) if values else None

    def by_seed(self, score: str, split: str) -> dict[int, float]:
        """Return a score of the complete trials on a whole split by seed, in the paper's unit."""
        factor = 100 if score in SHARES else 1
        return {
            trial.configuration.seed: factor * scores[score]
            for trial in self.complete
            if trial.configuration
            if score in (scores := trial.row.test if split == "test" else trial.row.validation)
        }

    def count(self, name: str) -> int | None:
        """Return a count of parameters; None while no trial of the row has it."""
        for trial in self.trials:
            if trial.values.get(name) is not None:
                return int(trial.values[name])
        return None

    @property
    def state(self) -> str:
        """How many seeds are running, failed or missing; "" where all are complete."""
        states = [trial.state for trial in self.trials]
        missing = self.seeds - len(states)
        counts = {
            STATES[State.RUNNING]: sum(state.open for state in states),
            STATES[State.FAIL]: states.count(State.FAIL),
            "missing": missing,
        }
        return ", ".join(f"{number} {word}" for word, number in counts.items() if number > 0)


@dataclass(frozen=True)
class Comparison:
    """Hold the difference of two rows on one score, the first less the second: ours over common seeds, and the paper's.

    `finding` is the paper's conclusion, by which the first row, `better`, is the better one.
    """

    finding: Finding
    better: str
    worse: str
    score: str
    ours: Spread | None
    paper: float | None

    @property
    def verdict(self) -> str:
        """Whether the paper's finding holds for our difference."""
        if self.ours is None:
            return "missing"
        if self.ours.error is None:
            return "one seed"
        if abs(self.ours.mean) <= _UNDECIDED * self.ours.error:
            return "undecided"
        return "holds" if (self.ours.mean > 0) == SCORES[self.score] else "does not"


class DesignTable:
    """Hold a study of listed designs as a table. Raises StoreError for a search."""

    def __init__(self, study: Study) -> None:
        info = study.summary.info
        if not info.designs:
            raise StoreError(
                f"study {study.name!r} is a search, not a list of designs; see `{command('front', study.name)}`"
            )
        self.study = study
        self.designs = info.designs
        # Nothing can be compared with a task that this release does not know.
        self.paper = info.paper if info.paper and info.paper.task in PAPER_TASKS else None
        self.seeds = info.seeds or (info.seed,)

    @cached_property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """The scores that are shown, each with its split: the paper's, else the study's own."""
        if self.paper:
            task = PAPER_TASKS[self.paper.task]
            return tuple((score, task.split) for score in (*task.scores, _LOSS))
        score = self.study.objectives[0].name
        return tuple(dict.fromkeys(((score, "validation"), (_LOSS, "validation"), (score, "test"))))

    @cached_property
    def headline(self) -> tuple[tuple[str, str], ...]:
        """The score that the paper's findings are about, and the loss, each with its split."""
        if not self.paper:
            return ()
        task = PAPER_TASKS[self.paper.task]
        return (task.headline, task.split), (_LOSS, task.split)

    @cached_property
    def rows(self) -> tuple[DesignRow, ...]:
        """The rows in the order of the study file."""
        table, task = (self.paper.table, self.paper.task) if self.paper else ("", "")
        printed = results(table, task)
        return tuple(
            self._row(name, design, printed.get(name), *percent(table, name)) for name, design in self.designs.items()
        )

    def _row(self, name: str, design: ListedDesign, printed: Result | None, share: str, slip: str) -> DesignRow:
        return DesignRow(
            name,
            tuple(trial for trial in self.study.trials if trial.record.name == name),
            len(design.seeds or self.seeds),
            printed,
            share,
            f"{share} %: {slip}" if slip else "",
        )

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The paper's findings that are about two rows of this study."""
        if not self.paper:
            return ()
        rows = {row.name: row for row in self.rows}
        return tuple(
            _comparison(finding, rows[better], rows[worse], score, split, self.paper.task)
            for finding in FINDINGS
            if self.paper.table in finding.tables
            for better, worse in finding.pairs
            if {better, worse} <= set(rows)
            for score, split in self.headline
        )

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a JSON-ready mapping per row, with numbers in the paper's unit."""
        return [
            {
                "row": row.name,
                "seeds": len(row.complete),
                "state": row.state,
                "scores": {
                    f"{split} {score}": {"mean": spread.mean, "deviation": spread.deviation}
                    for score, split in self.columns
                    if (spread := row.spread(score, split))
                },
                "paper": {
                    score: {"value": number.value, "spread": number.spread}
                    for score, number in _printed(row, self.paper).items()
                },
                **{name: row.count(name) for name in _COUNTS},
                "percent": self.percent(row),
                "printed_percent": row.percent,
                "notes": [note for note in (row.slip, row.note) if note],
            }
            for row in self.rows
        ]

    def percent(self, row: DesignRow) -> float | None:
        """Return a row's parameters as the paper counts them, in percent of the paper's denominator."""
        base, count = self.study.base_parameters, row.count("paper_parameters")
        if not base or count is None:
            return None
        return 100 * count / {size: paper for (_, size), paper in PAPER_BASE.items()}.get(base, base)


def print_list(study: Study, out: Console) -> None:
    """Print every row with its means over seeds, and its counts."""
    _print(DesignTable(study), out, against=False)


def compare(study: Study) -> DesignTable:
    """Return the study as a table with one of the paper's to compare with. Raises StoreError where it names none."""
    listed = DesignTable(study)
    if not listed.paper:
        raise StoreError(
            f"study {study.name!r} names no table of the paper to compare with; a study file names one by "
            '`paper: {table: "12", task: xsum}`, and its designs as the rows of that table'
        )
    return listed


def print_against(study: Study, out: Console) -> None:
    """Print every row beside what the paper prints, and which of its findings hold. Raises StoreError as `compare`."""
    _print(compare(study), out, against=True)


def _print(listed: DesignTable, out: Console, against: bool) -> None:
    notes: dict[str, str] = {}  # text -> mark
    if against and listed.paper:
        for row in listed.rows:
            for note in filter(None, (row.note, row.slip)):
                notes.setdefault(note, chr(ord("a") + len(notes)))
    out.print(_score_table(listed, notes, against))
    out.print(_count_table(listed, notes, against))
    if against and listed.paper and listed.paper.table in REMARKS:
        say(out, REMARKS[listed.paper.table])
    if against and listed.paper and listed.paper.task == "en-ro":
        say(out, EN_RO)
    for note, mark in notes.items():
        say(out, f"[{mark}] {note}")
    for row in listed.rows:
        for trial in row.trials:
            if trial.state is State.FAIL:
                say(out, f"{row.name}: trial {trial.number} failed: {failure_text(trial.record)}")
    if against and listed.comparisons:
        out.print(_findings_table(listed))
        say(
            out,
            "ours: mean difference over common seeds ± its standard error; undecided: within two standard errors; "
            "a lower loss is the better one",
        )


def _score_table(listed: DesignTable, notes: Mapping[str, str], against: bool) -> Table:
    units = {"accuracy, F1, Matthews and ROUGE x 100": SHARES, "BLEU from 0 to 100": ("sacrebleu", "paper_bleu")}
    used = [unit for unit, names in units.items() if {score for score, _ in listed.columns} & set(names)]
    splits = "; ".join(
        f"{', '.join(score for score, of in listed.columns if of == split)} of the {split} split"
        for split in dict.fromkeys(split for _, split in listed.columns)
    )
    beside = f" against the paper's table {listed.paper.table}" if against and listed.paper else ""
    table = new_table(
        f"{listed.study.name}{beside}: {splits} ({'; '.join(used) or 'nats'}), mean ± deviation over seeds"
    )
    table.add_column("row", overflow="fold", min_width=10)
    table.add_column("seeds", justify="right")
    columns: list[tuple[str, str, bool]] = []
    for score, split in listed.columns:
        columns.append((score, split, False))
        table.add_column(f"{split}\n{score}" if not against else score, justify="right")
        if against and score != _LOSS:
            columns.append((score, split, True))
            table.add_column("paper", justify="right")
    table.add_column("", overflow="fold")
    for row in listed.rows:
        printed = _printed(row, listed.paper)
        cells = [
            _printed_text(printed.get(score), score) if paper else _spread_text(row.spread(score, split), score)
            for score, split, paper in columns
        ]
        add(table, row.name, str(len(row.complete)), *cells, _beside(row.state, notes.get(row.note)))
    return table


def _count_table(listed: DesignTable, notes: Mapping[str, str], against: bool) -> Table:
    table = new_table(f"parameters ({count_states(listed.study)} of {sum(row.seeds for row in listed.rows)} trials)")
    table.add_column("row", overflow="fold", min_width=10)
    for heading in ("stored", "trained", "paper's count", "%", *(["printed %"] if against else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in listed.rows:
        counts = [row.count(name) for name in _COUNTS]
        share = listed.percent(row)
        cells = [
            *map(count_text, counts),
            "" if share is None else f"{share:.3f}",
        ]
        printed = [_beside(row.percent, notes.get(row.slip))] if against else []
        add(table, row.name, *cells, *printed)
    return table


def _findings_table(listed: DesignTable) -> Table:
    table = new_table("what the paper finds")
    for heading in ("finding", "first", "less"):
        table.add_column(heading, overflow="fold", min_width=8)
    table.add_column("score", no_wrap=True)
    for heading in ("ours", "seeds", "paper"):
        table.add_column(heading, justify="right")
    table.add_column("")
    claim = ""
    for pair in listed.comparisons:
        digits, ours = _digits(pair.score), ""
        if pair.ours:
            error = "" if pair.ours.error is None else f" ±{pair.ours.error:.{digits}f}"
            ours = f"{pair.ours.mean:+.{digits}f}{error}"
        add(
            table,
            pair.finding.claim if pair.finding.claim != claim else "",
            pair.better,
            pair.worse,
            pair.score,
            ours,
            str(len(pair.ours.values)) if pair.ours else "0",
            "" if pair.paper is None else f"{pair.paper:+.2f}",
            pair.verdict,
        )
        claim = pair.finding.claim
    return table


def _comparison(finding: Finding, better: DesignRow, worse: DesignRow, score: str, split: str, task: str) -> Comparison:
    first, second = better.by_seed(score, split), worse.by_seed(score, split)
    common = tuple(first[seed] - second[seed] for seed in first if seed in second)
    printed = [row.printed.scores[task].get(score) for row in (better, worse) if row.printed]
    paper = printed[0].value - printed[1].value if len(printed) == 2 and printed[0] and printed[1] else None
    return Comparison(finding, better.name, worse.name, score, Spread(common) if common else None, paper)


def _printed(row: DesignRow, paper: PaperTable | None) -> Mapping[str, Number]:
    return row.printed.scores[paper.task] if row.printed and paper else {}


def _digits(score: str) -> int:
    return 2 if score != _LOSS and score != "perplexity" else 4


def _spread_text(spread: Spread | None, score: str) -> str:
    if spread is None:
        return ""
    digits = _digits(score)
    deviation = "" if spread.deviation is None else f" ±{spread.deviation:.{digits}f}"
    return f"{spread.mean:.{digits}f}{deviation}"


def _printed_text(number: Number | None, score: str) -> str:
    if number is None:
        return ""
    digits = 2 if score.startswith("rouge") else 1
    spread = "" if number.spread is None else f" ±{number.spread:.{digits}f}"
    return f"{number.value:.{digits}f}{spread}"


def _beside(text: str, mark: str | None) -> str:
    return f"{text} [{mark}]".strip() if mark else text
