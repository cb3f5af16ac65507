"""Settings beside each other on one table: what `petl-search replay` prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.progress import track

from petl.untrusted import read_json
from search.optimizer.rungs import OPTIONS, RULES, options, rule
from search.optimizer.samplers import NAMES, require_fit
from search.optimizer.simulation.table import Table, TableError
from search.results.console import add, console, new_table, say
from search.trials.formats import amount_text


def write_table(table: Table, path: Path) -> None:
    """Write a table as JSON. Raises TableError where the file cannot be written."""
    try:
        path.write_text(json.dumps(table.to_dict(), indent=1), encoding="utf-8")
    except OSError as error:
        raise TableError(f"{path} cannot be written: {error.strerror}") from None


def read_table(path: Path) -> Table:
    """Read the table of a file. Raises TableError for a file that is none of ours."""
    try:
        return Table.from_dict(read_json(path))
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}") from None
    except TableError as error:
        raise TableError(f"{path}: {error}") from None
    except ValueError as error:
        raise TableError(f"{path} is not a table of `petl-search export-table`: {error}") from None


def rule_options(settings: Sequence[str]) -> dict[str, float]:
    """Return OPTION=VALUE settings as values by option. Raises TableError, listing the options, for any other."""
    values: dict[str, float] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        try:
            if name not in OPTIONS:
                raise ValueError(name)
            values[name] = float(text)
        except ValueError:
            listed = "; ".join(f"{name}: {option.meaning}" for name, option in OPTIONS.items())
            raise TableError(f"--set takes OPTION=NUMBER, of {listed}; received {setting}") from None
    return values


def compare(
    table: Table,
    samplers: Sequence[str],
    schedulers: Sequence[str],
    *,
    trials: int,
    workers: int,
    seeds: int,
    values: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Return a row for each pair: means over the seeds, the best share first.

    Each scheduler has those of the options' `values` that it takes.

    Raises TableError for what there is not, and for an option that none of the schedulers takes.
    """
    for role, given, there in (("sampler", samplers, NAMES), ("scheduler", schedulers, RULES)):
        if unknown := [name for name in given if name not in there]:
            raise TableError(f"a {role} is one of {', '.join(there)}; received {', '.join(unknown)}")
    taken = {each: {name: values[name] for name in options(each) if name in values} for each in schedulers}
    if unused := values.keys() - {name for own in taken.values() for name in own}:
        raise TableError(f"no scheduler of {', '.join(schedulers)} takes {', '.join(sorted(unused))}")
    try:
        for sampler in samplers:
            require_fit(sampler, len(table.names))
        for scheduler, own in taken.items():
            rule(scheduler, table.epochs, trials, **own)
    except ValueError as error:
        raise TableError(str(error)) from None
    pairs = [(sampler, scheduler) for scheduler in schedulers for sampler in samplers]
    rows = []
    for sampler, scheduler in track(pairs, "replaying", console=console(), transient=True, disable=len(pairs) < 2):
        found = [
            table.search(
                sampler=sampler,
                scheduler=scheduler,
                trials=trials,
                workers=workers,
                seed=seed,
                options=taken[scheduler],
            )
            for seed in range(seeds)
        ]
        shares = [each.share for each in found]
        rows.append(
            {
                "sampler": sampler,
                "scheduler": scheduler,
                "share": fmean(shares),
                "deviation": stdev(shares) if seeds > 1 else None,
                "epochs": fmean(each.epochs for each in found),
                "hours": fmean(each.seconds for each in found) / 3600,
                "trials": fmean(each.trials for each in found),
                "full": fmean(each.full for each in found),
            }
        )
    return sorted(rows, key=lambda row: -row["share"])


def print_compared(table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """As a table for people."""
    out = console()
    shown = new_table(f"replayed on the {len(table.rows)} trials of {table.study}")
    for column in ("scheduler", "sampler", "share of the front", "±", "epochs", "hours", "trials", "in full"):
        shown.add_column(column, justify="left" if column in ("scheduler", "sampler") else "right")
    for row in rows:
        spread = "" if row["deviation"] is None else f"{row['deviation']:.3f}"
        numbers = (f"{row['epochs']:,.1f}", amount_text(row["hours"]), f"{row['trials']:.0f}", f"{row['full']:.0f}")
        add(shown, row["scheduler"], row["sampler"], f"{row['share']:.3f}", spread, *numbers)
    out.print(shown)
    if len(table.rows) < 100:
        say(out, f"a table of {len(table.rows)} trials says little about samplers: they are given its nearest trials")
