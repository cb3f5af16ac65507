"""How the search itself grows: replayed trials on 256 simulated workers, milliseconds a decision, the driver's memory.

A decision is a report or a request for work. The objective is made up; nothing is trained. The time of 1,000 trials by
that of 100, and of 10,000 by that of 1,000, stand beside what n log n would be.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from shares import Method, Problem


def suggest(trial: Any) -> tuple[float, ...]:
    """A point of four numbers."""
    return tuple(trial.suggest_float(f"x{index}", 0.0, 1.0) for index in range(4))


def size(point: tuple[float, ...]) -> float:
    """Grows by orders of magnitude."""
    return 1_000 * math.exp(5 * point[0])


def score(point: tuple[float, ...], epoch: float) -> float:
    """Larger ones are better, at the right place, after enough epochs."""
    return (0.4 + 0.4 * point[0] - sum((each - 0.5) ** 2 for each in point[1:])) * (1 - 0.5 * math.exp(-epoch / 9))


def measure(trials: int, workers: int, scheduler: str) -> dict[str, Any]:
    """One search of so many trials."""
    options = {"none": {}}.get(scheduler, {"eta": 3, "first_rung": 1})
    problem = Problem(suggest, size, score, 27, "accuracy")
    began = time.perf_counter()
    records, ms = problem.search(Method("random", scheduler, trials, options), 0, workers, math.inf)
    spent = time.perf_counter() - began
    decisions = sum(1 + len(record.rungs) for record in records.all())
    return {
        "scheduler": scheduler,
        "trials": trials,
        "decisions": decisions,
        "ms_per_decision": round(1000 * spent / decisions, 3),
        "ms_per_proposal": round(ms, 3),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """The command."""
    arguments = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tests/benchmarks/scale.py --trials 100 1000 --scheduler halving",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--trials", type=int, nargs="+", default=[100, 1_000, 10_000], help="default 100 1000 10000")
    arguments.add_argument("--workers", type=int, default=256, help="simulated ones; default 256")
    arguments.add_argument("--scheduler", nargs="+", default=["asha", "halving"], help="default asha halving")
    arguments.add_argument("--format", choices=("text", "json"), default="text", help="json: only a list of rows")
    given = arguments.parse_args()
    rows = []
    for scheduler in given.scheduler:
        before: dict[str, Any] = {}
        for trials in given.trials:
            row = measure(trials, given.workers, scheduler)
            rows.append(row)
            if given.format == "text":
                ratio = ""
                if before:
                    fair = math.log(trials) / math.log(before["trials"]) * trials / before["trials"]
                    ratio = (
                        f"  x {row['ms_per_decision'] / before['ms_per_decision']:.2f} a decision (n log n: {fair:.1f})"
                    )
                print(
                    f"{scheduler:12}{trials:7,} trials {row['decisions']:7,} decisions "
                    f"{row['ms_per_decision']:8.2f} ms a decision {row['memory_mb']:6,} MB{ratio}",
                    flush=True,
                )
            before = row
    if given.format == "json":
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
