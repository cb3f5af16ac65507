"""`make chaos`: a cluster of three hosts on this machine, studies on it, and everything that can fail.

    python -m tests.chaos cluster                       a list of designs there and on one machine: the same scores?
    python -m tests.chaos failures --only worker,node   the table of failures, or some of its rows
    python -m tests.chaos stock                         those that apply, on Ray Tune as it comes
    python -m tests.chaos                               all three

Needs root, `ip` and Debian's postgresql; where they are missing it says so and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Final

from tests.chaos import attempts, cluster, same, stock
from tests.chaos.attempts import Outcome
from tests.chaos.failures import FAILURES, Failure

SHOWS: Final = ("cluster", "failures", "stock")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__, formatter_class=_AsWritten)
    parser.add_argument("show", nargs="*", help=f"{', '.join(SHOWS)}; default all")
    parser.add_argument("--only", default=",".join(FAILURES), help=f"of {', '.join(FAILURES)}")
    parser.add_argument("--times", type=int, help="how often each is tried; default a number for each, 59 together")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--brief", type=float, default=1.0, help="factor on how long an outage lasts")
    parser.add_argument("--keep", type=Path, help="a new folder that keeps all logs, Ray's too")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    given = parser.parse_args()
    if given.keep:
        given.keep.mkdir(parents=True)
        given.keep = given.keep.resolve()
    given.only = given.only.split(",")
    if unknown := set(given.only) - set(FAILURES):
        parser.error(f"--only is of {', '.join(FAILURES)}; received {', '.join(sorted(unknown))}")
    if unknown := set(given.show) - set(SHOWS):
        parser.error(f"there are {', '.join(SHOWS)} to show; received {', '.join(sorted(unknown))}")
    return given


class _AsWritten(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines."""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> int:
    given = arguments()
    if why := cluster.missing():
        print(f"skipped: {why}")
        return 0
    shows, fine = given.show or SHOWS, True
    say("three hosts, a Ray node on each; PostgreSQL and MLflow's server beside them")
    with cluster.cluster(given.keep) as there:
        if "cluster" in shows:
            fine = same.compare(there)
        if "failures" in shows:
            fine = all(map(as_required, _failures(there, given, attempts, FAILURES))) and fine
        if "stock" in shows:
            _failures(there, given, stock, stock.failures())
    return 0 if fine else 1


def _failures(
    there: cluster.Cluster, given: argparse.Namespace, kind: ModuleType, table: Mapping[str, Failure]
) -> list[Outcome]:
    """Tries each in its turn on studies of a kind, and prints what they came to: what there is by then, if it ends."""
    outcomes: list[Outcome] = []
    prefix = "stock" if kind is stock else ""
    try:
        for name in (name for name in given.only if name in table):
            trying = attempts.Attempts(
                there=there,
                name=prefix + name,
                failure=table[name],
                times=given.times or table[name].times,
                draw=random.Random(f"{given.seed} {name}"),
                seconds=lambda full: full * given.brief,
                say=say,
                begin=kind.begin,
                count=kind.count,
            )
            outcomes.append(trying.outcome)
            trying.run()
    finally:
        if given.format == "json":
            print(json.dumps([asdict(outcome) for outcome in outcomes], indent=1), flush=True)
        elif outcomes:
            minutes = sum(outcome.seconds for outcome in outcomes) / 60
            print(f"\n{'Ray Tune as it comes' if prefix else 'petl-search'}\n\n{attempts.table(outcomes)}")
            short = f", outages at {given.brief:g} of their length" if given.brief != 1 else ""
            tried = sum(outcome.tried for outcome in outcomes)
            print(f"\n{tried} failures, seed {given.seed}, {minutes:.0f} minutes{short}", flush=True)
    return outcomes


def as_required(outcome: Outcome) -> bool:
    """Nothing finished lost, nothing there twice, nothing RUNNING for ever, no process left, and it goes on."""
    bad = (outcome.lost, outcome.doubled, outcome.running, outcome.trained_twice, outcome.left, outcome.stuck)
    return outcome.tried > 0 and not any(bad) and not outcome.failed and not outcome.unequal


if __name__ == "__main__":
    sys.exit(main())
