"""A list of designs, one line a row: means over its seeds, beside what the paper prints for them."""

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
from search.results.console import add, count_states, new_table, say
from search.results.query import Study, Trial
from search.storage.locations import StoreError
from search.tracking.schema import ListedDesign, PaperTable
from search.trials.record import State

_COUNTS: Final = ("stored_parameters", "trained_parameters", "paper_parameters")
_LOSS: Final = "loss"
_UNDECIDED: Final = 2.0  # standard errors of a difference


@dataclass(frozen=True)
class Spread:
    """A score over seeds, in the paper's unit. `deviation` is the sample's, None of a single one."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation, None of a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def error(self) -> float | None:
        """The standard error of the mean."""
        return None if self.deviation is None else self.deviation / math.sqrt(len(self.values))


@dataclass(frozen=True)
class DesignRow:
    """A row of a list: its trials, and what the paper prints for it.

    `percent` is the printed share of parameters, and `slip` what is wrong with it.
    """

    name: str
    trials: tuple[Trial, ...]
    seeds: int
    printed: Result | None = None
    percent: str = ""
    slip: str = ""

    @property
    def note(self) -> str:
        """What there is to say of the printed scores."""
        return self.printed.note if self.printed else ""

    @property
    def complete(self) -> tuple[Trial, ...]:
        """Those that have scores."""
        return tuple(trial for trial in self.trials if trial.state is State.COMPLETE)

    def spread(self, score: str, split: str) -> Spread | None:
        """A score of the complete trials on a split, None where none has it."""
        values = tuple(self.by_seed(score, split).values())
        return Spread(values) if values else None

    def by_seed(self, score: str, split: str) -> dict[int, float]:
        """A score of the complete trials on a split, by their seeds."""
        found = {
            trial.configuration.seed: _scores(trial, split).get(score) for trial in self.complete if trial.configuration
        }
        return {seed: _shown(score, value) for seed, value in found.items() if value is not None}

    def count(self, name: str) -> int | None:
        """A count of parameters; of a trial that has no measurements where it is known before training."""
        for trial in self.trials:
            if trial.values.get(name) is not None:
                return int(trial.values[name])
        return None

    @property
    def state(self) -> str:
        """What is not as it should be: seeds that are missing, running or failed."""
        states = [trial.state for trial in self.trials]
        missing = self.seeds - len(states)
        parts = {"running": sum(state.open for state in states), "failed": states.count(State.FAIL), "missing": missing}
        return ", ".join(f"{number} {what}" for what, number in parts.items() if number > 0)


@dataclass(frozen=True)
class Comparison:
    """A pair of a finding on one score: the first row less the second, ours over common seeds and the paper's."""

    finding: Finding
    better: str
    worse: str
    score: str
    ours: Spread | None
    paper: float | None

    @property
    def verdict(self) -> str:
        """Whether what the paper says holds for ours."""
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
            raise StoreError(f"study {study.name!r} is a search, not a list of designs; see `petl-search front`")
        self.study = study
        self.designs = info.designs
        # A table of another release is not one to compare with.
        self.paper = info.paper if info.paper and info.paper.task in PAPER_TASKS else None
        self.seeds = info.seeds or (info.seed,)

    @cached_property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Scores with the split that they are shown of: the paper's, else the study's own."""
        if self.paper:
            task = PAPER_TASKS[self.paper.task]
            return tuple((score, task.split) for score in (*task.scores, _LOSS))
        score = self.study.objectives[0].name
        wanted = ((score, "validation"), (_LOSS, "validation"), (score, "test"))
        return tuple(dict.fromkeys(wanted))

    @cached_property
    def headline(self) -> tuple[tuple[str, str], ...]:
        """The score that the paper's findings are about, and the loss."""
        if not self.paper:
            return ()
        task = PAPER_TASKS[self.paper.task]
        return (task.headline, task.split), (_LOSS, task.split)

    @cached_property
    def rows(self) -> tuple[DesignRow, ...]:
        """In the order of the study file."""
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
        """JSON-ready: a mapping per row, numbers in the paper's unit."""
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
        """A row's parameters as the paper counts them, in percent of what it divides by."""
        base, counted = self.study.base_parameters, row.count("paper_parameters")
        if not base or counted is None:
            return None
        return 100 * counted / {size: paper for (_, size), paper in PAPER_BASE.items()}.get(base, base)


def print_list(study: Study, out: Console) -> None:
    """Every row with its means over seeds, and its counts."""
    _print(DesignTable(study), out, against=False)


def compare(study: Study) -> DesignTable:
    """The study as a list with a table to compare with. Raises StoreError where it has none."""
    listed = DesignTable(study)
    if not listed.paper:
        raise StoreError(
            f"study {study.name!r} names no table to compare with; "
            'its file does by `paper: {table: "12", task: xsum}`, with rows named as there'
        )
    return listed


def print_against(study: Study, out: Console) -> None:
    """Every row beside what the paper prints, and which of its findings hold. Raises StoreError without `paper`."""
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
                reason = next(iter((trial.record.failure or "").splitlines()), "") or "no reason given"
                say(out, f"{row.name}: trial {trial.number} failed: {reason}")
    if against and listed.comparisons:
        out.print(_findings_table(listed))
        say(
            out,
            "mean of the differences of common seeds ± its standard error; undecided: within two of them; "
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
            *("" if number is None else f"{number:,}" for number in counts),
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
    for one in listed.comparisons:
        digits = _digits(one.score)
        ours = "" if one.ours is None else f"{one.ours.mean:+.{digits}f}"
        if one.ours and one.ours.error is not None:
            ours += f" ±{one.ours.error:.{digits}f}"
        add(
            table,
            one.finding.claim if one.finding.claim != claim else "",
            one.better,
            one.worse,
            one.score,
            ours,
            str(len(one.ours.values)) if one.ours else "0",
            "" if one.paper is None else f"{one.paper:+.2f}",
            one.verdict,
        )
        claim = one.finding.claim
    return table


def _comparison(finding: Finding, better: DesignRow, worse: DesignRow, score: str, split: str, task: str) -> Comparison:
    first, second = better.by_seed(score, split), worse.by_seed(score, split)
    common = tuple(first[seed] - second[seed] for seed in first if seed in second)
    printed = [row.printed.scores[task].get(score) for row in (better, worse) if row.printed]
    paper = printed[0].value - printed[1].value if len(printed) == 2 and printed[0] and printed[1] else None
    return Comparison(finding, better.name, worse.name, score, Spread(common) if common else None, paper)


def _scores(trial: Trial, split: str) -> Mapping[str, float]:
    """A trial's scores on a whole split, as its study ended with them."""
    return trial.row.test if split == "test" else trial.row.validation


def _printed(row: DesignRow, paper: PaperTable | None) -> Mapping[str, Number]:
    return row.printed.scores[paper.task] if row.printed and paper else {}


def _shown(score: str, value: float) -> float:
    return 100 * value if score in SHARES else value


def _digits(score: str) -> int:
    return 2 if score != _LOSS and score != "perplexity" else 4


def _spread_text(spread: Spread | None, score: str) -> str:
    if spread is None:
        return ""
    digits = _digits(score)
    own = "" if spread.deviation is None else f" ±{spread.deviation:.{digits}f}"
    return f"{spread.mean:.{digits}f}{own}"


def _printed_text(number: Number | None, score: str) -> str:
    if number is None:
        return ""
    digits = 2 if score.startswith("rouge") else 1
    own = "" if number.spread is None else f" ±{number.spread:.{digits}f}"
    return f"{number.value:.{digits}f}{own}"


def _beside(text: str, mark: str | None) -> str:
    return f"{text} [{mark}]".strip() if mark else text
