"""Settings compared by searching a table of recorded trials: what `petl-search replay` prints."""

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
    """Return the table of a file. Raises TableError for a file that `write_table` has not written."""
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
    """Return a row for each pair of sampler and scheduler: means over the seeds, the best share first.

    Each scheduler is given those of the options' `values` that it takes. Raises TableError for an unknown name, for
    settings that do not fit the table, and for an option that none of the schedulers takes.
    """
    for role, names, table_of in (("sampler", samplers, NAMES), ("scheduler", schedulers, RULES)):
        if unknown := [name for name in names if name not in table_of]:
            raise TableError(f"a {role} is one of {', '.join(table_of)}; received {', '.join(unknown)}")
    settings = {
        scheduler: {name: values[name] for name in options(scheduler) if name in values} for scheduler in schedulers
    }
    if unused := values.keys() - {name for setting in settings.values() for name in setting}:
        raise TableError(f"no scheduler of {', '.join(schedulers)} takes {', '.join(sorted(unused))}")
    try:
        for sampler in samplers:
            require_fit(sampler, len(table.names))
        for scheduler, setting in settings.items():
            rule(scheduler, table.epochs, trials, **setting)
    except ValueError as error:
        raise TableError(str(error)) from None
    pairs = [(sampler, scheduler) for scheduler in schedulers for sampler in samplers]
    rows = []
    for sampler, scheduler in track(pairs, "replaying", console=console(), transient=True, disable=len(pairs) < 2):
        searches = [
            table.search(
                sampler=sampler,
                scheduler=scheduler,
                trials=trials,
                workers=workers,
                seed=seed,
                options=settings[scheduler],
            )
            for seed in range(seeds)
        ]
        shares = [search.share for search in searches]
        rows.append(
            {
                "sampler": sampler,
                "scheduler": scheduler,
                "share": fmean(shares),
                "deviation": stdev(shares) if seeds > 1 else None,
                "epochs": fmean(search.epochs for search in searches),
                "hours": fmean(search.seconds for search in searches) / 3600,
                "trials": fmean(search.trials for search in searches),
                "full": fmean(search.full for search in searches),
            }
        )
    return sorted(rows, key=lambda row: -row["share"])


def print_compared(table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows of `compare` as a table."""
    out = console()
    comparison = new_table(f"replayed on the {len(table.rows)} trials of {table.study}")
    for column in ("scheduler", "sampler", "share of the front", "±", "epochs", "hours", "trials", "in full"):
        comparison.add_column(column, justify="left" if column in ("scheduler", "sampler") else "right")
    for row in rows:
        spread = "" if row["deviation"] is None else f"{row['deviation']:.3f}"
        numbers = (f"{row['epochs']:,.1f}", amount_text(row["hours"]), f"{row['trials']:.0f}", f"{row['full']:.0f}")
        add(comparison, row["scheduler"], row["sampler"], f"{row['share']:.3f}", spread, *numbers)
    out.print(comparison)
    if len(table.rows) < 100:
        say(
            out,
            f"a table of {len(table.rows)} trials says little about samplers: each proposal becomes its nearest trial",
        )
