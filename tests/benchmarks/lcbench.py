"""Searches on LCBench's learning curves: which rung rule and which sampler find the best front for 1,440 epochs.

A surrogate gives the validation error of any of seven hyperparameters after 1 to 52 epochs on 34 tasks; the other
objective is a size that is known before training. A method's share is the hypervolume of what it trained in full, by
that of 243 random configurations trained in full (11.4 % of whose training it may spend): more than 1 is possible for
those that propose configurations of their own. Reference point: the pool's largest size and its 90 % quantile of error.
Every task has pools of its own, so that pairs of task and seed are independent, as the intervals take them to be.

With --peers, Syne Tune's MOASHA and NePS's PriMO propose their own points in the same space: see `peers.py`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from numpy.typing import NDArray
from peers import PEERS, Peers
from shares import Method, Problem, Result, best_of, collect, kept, parser, seed_of, show

from petl.measurements import MINIMIZE
from search.trials.pareto import hypervolume, ranks
from search.trials.records import Records

DATA: Final = Path(__file__).parents[3] / "shared" / "data" / "lcbench"
FILES: Final = ("model.onnx", "encoding.json", "config_space.json")
EPOCHS, POOL, FIRST = 52, 243, 2
LEFT_OUT: Final = ("3945", "167083")
NAMES: Final = ("batch_size", "learning_rate", "momentum", "weight_decay", "num_layers", "max_units", "max_dropout")
RUNGS: Final = {"eta": 3, "first_rung": FIRST}
SYNCHRONOUS: Final = "synchronous"

METHODS: Final = {
    "random": Method(trials=27),
    "tpe": Method("tpe", trials=27),
    "gp": Method("gp", trials=27),
    "nsga2": Method("nsga2", trials=27),
    "asha": Method(scheduler="asha", trials=POOL, options=RUNGS),
    "pareto-asha": Method(scheduler="pareto-asha", trials=POOL, options=RUNGS),
    "dominated": Method(scheduler="dominated", trials=POOL, options=RUNGS),
    "halving": Method(scheduler="halving", trials=POOL, options={**RUNGS, "waves": 1}),
    "front": Method("front", trials=27),
    "halving+front": Method("front", "halving", 150, {**RUNGS, "min_full": 20}),
    **{
        f"halving+tpe {unfinished}": Method("tpe", "halving", POOL, RUNGS, unfinished)
        for unfinished in ("last", "ignored", "extrapolated", "predicted")
    },
}
ALL: Final = (SYNCHRONOUS, *METHODS, *PEERS)


class Surrogate:
    """The validation error on one task, in percent."""

    def __init__(self, data: Path, task: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(data / "model.onnx"), options)
        self._task = json.loads((data / "encoding.json").read_text())["OpenML_task_id"][task]
        self._known: dict[tuple[Any, ...], list[float]] = {}

    def curve(self, point: tuple[Any, ...]) -> list[float]:
        """The error after each epoch."""
        if point not in self._known:
            numbers = np.array([[epoch, *point] for epoch in range(1, EPOCHS + 1)], np.float32)
            tasks = np.full((EPOCHS, 1), self._task, np.int32)
            [found] = self._session.run(None, {"x_cat": tasks, "x_cont": numbers})
            self._known[point] = [100.0 - float(accuracy) for accuracy in found[:, 1]]
        return self._known[point]


def suggest(trial: Any, space: dict[str, dict[str, Any]]) -> tuple[Any, ...]:
    """A point, in the order of NAMES."""
    return tuple(
        (trial.suggest_int if space[name]["type"] == "uniform_int" else trial.suggest_float)(
            name, space[name]["lower"], space[name]["upper"], log=space[name]["log"]
        )
        for name in NAMES
    )


def size(point: tuple[Any, ...]) -> float:
    """A proxy for the parameters of the network."""
    layers, units = point[NAMES.index("num_layers")], point[NAMES.index("max_units")]
    return float(layers * units**2 + 100 * units)


def draw(space: dict[str, dict[str, Any]], seed: int) -> list[tuple[Any, ...]]:
    """The pool of a seed, the same for all methods."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [suggest(study.ask(), space) for _ in range(POOL)]


def synchronous(pool: Sequence[tuple[Any, ...]], surrogate: Surrogate) -> list[tuple[Any, ...]]:
    """243 - 81 - 27 - 9, each rung when all have reached it; shares no code with `search.optimizer.rungs`."""
    left = list(pool)
    for epoch, count in ((2, 81), (6, 27), (18, 9)):
        values = np.array([(surrogate.curve(point)[epoch - 1], math.log(size(point))) for point in left])
        left = [left[index] for index in first(values, count)]
    return left


def first(values: NDArray[np.float64], count: int) -> list[int]:
    """The first so many by non-dominated rank, and within one by spread."""
    rank = ranks(values, (MINIMIZE, MINIMIZE))
    order: list[int] = []
    while len(order) < count:
        order += spread(values, np.flatnonzero(rank == rank[np.setdiff1d(np.arange(len(rank)), order)].min()))
    return order[:count]


def spread(values: NDArray[np.float64], layer: NDArray[np.int64]) -> list[int]:
    """A rank's members: the best score, then always the one farthest from all before it, both objectives in [0, 1]."""
    points = values[layer] - values[layer].min(axis=0)
    points /= np.maximum(points.max(axis=0), 1e-12)
    order = [min(range(len(layer)), key=lambda index: tuple(points[index]))]
    while len(order) < len(layer):
        nearest = np.linalg.norm(points[:, None] - points[order][None], axis=2).min(axis=1)
        nearest[order] = -1.0
        order.append(int(nearest.argmax()))
    return [int(layer[index]) for index in order]


@cache
def peers(python: str) -> Peers:
    """One process of this Python for all that this one has to do."""
    return Peers(python)


def asked(
    name: str,
    python: str,
    space: Mapping[str, Mapping[str, Any]],
    surrogate: Surrogate,
    seed: int,
    workers: int,
    budget: float,
) -> tuple[list[tuple[Any, ...]], int, float]:
    """What a peer trained in full, how many it began, and the milliseconds of each."""
    log_sizes = [
        math.log10(size(tuple(space[name][end] for name in NAMES))) for end in ("lower", "upper")
    ]  # the smallest and the largest that there is

    def point(named: Mapping[str, float]) -> tuple[Any, ...]:
        return tuple(named[name] for name in NAMES)

    def values(named: Mapping[str, float], epoch: int) -> tuple[float, float]:
        log_size = math.log10(size(point(named)))
        return surrogate.curve(point(named))[epoch - 1] / 100, float(np.interp(log_size, log_sizes, (0.0, 1.0)))

    problem = {"space": [space[name] for name in NAMES], "seed": seed, "epochs": EPOCHS, **RUNGS}
    found = peers(python).search(name, problem, values, workers, budget)
    return [point(named) for named in found.complete], found.begun, found.ms


def run(
    job: tuple[str, int],
    data: Path,
    methods: Sequence[str],
    workers: int,
    budget: float,
    python: str,
    folder: Path | None,
    points: Path | None,
) -> list[Result]:
    """Run all methods on one task with one seed. Those that are ours leave what they proposed in `points`."""
    task, seed = job
    listed = json.loads((data / "config_space.json").read_text())["hyperparameters"]
    space = {each["name"]: each for each in listed}
    own = seed_of(task, seed)
    surrogate, pool = Surrogate(data, task), draw(space, own)

    def volume(points: Sequence[tuple[Any, ...]]) -> float:
        values = [(math.log10(size(point)), surrogate.curve(point)[-1]) for point in points]
        return hypervolume(values, reference, (MINIMIZE, MINIMIZE)) if values else 0.0

    reference = (
        max(math.log10(size(point)) for point in pool),
        float(np.quantile([surrogate.curve(point)[-1] for point in pool], 0.9)),
    )
    whole = volume(pool)

    def searched(name: str) -> Result:
        if name == SYNCHRONOUS:
            trained, proposals, ms = synchronous(pool, surrogate), POOL, 0.0
        elif name in PEERS:
            trained, proposals, ms = asked(name, python, space, surrogate, own, workers, budget)
        else:
            problem = Problem(
                partial(suggest, space=space),
                size,
                lambda point, epoch: 1 - surrogate.curve(point)[round(epoch) - 1] / 100,
                EPOCHS,
                "accuracy",
            )
            records, ms = problem.search(METHODS[name], own, workers, budget, pool)
            trained, proposals = problem.complete(records), len(records.all())
            if points:
                write_points(points / f"{name.replace(' ', '-')}-{task}-{seed}.json", problem, records)
        return Result(name, task, seed, volume(trained) / whole, proposals, ms)

    results = []
    for name in methods:
        file = folder and folder / f"{name.replace(' ', '-')}-{task}-{seed}.json"
        results.append(Result(*kept(file, {"workers": workers, "budget": budget}, partial(searched, name))))
    return results


def write_points(file: Path, problem: Problem, records: Records) -> None:
    """Write a line a trial: its number, state, point, and the score at each rung."""
    rows = [
        [record.number, str(record.state), problem.point(record.configuration), sorted(record.rungs.items())]
        for record in records.all()
        if record.configuration
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def main() -> None:
    """The command."""
    arguments = parser(
        __doc__ or "",
        "example: python tests/benchmarks/lcbench.py --tasks 7593 34539 --seeds 2 --methods synchronous halving asha",
        ALL,
    )
    arguments.add_argument(
        "--data", type=Path, default=DATA, help="the folder of the surrogate; default ../shared/data/lcbench"
    )
    arguments.add_argument(
        "--tasks", nargs="+", default=["first16"], help="OpenML's numbers, first16 (the default), others (of the list)"
    )
    arguments.add_argument("--budget", type=float, default=1440, help="epochs; default 1440")
    arguments.add_argument(
        "--peers", metavar="PYTHON", help=f"that {' and '.join(PEERS)} are installed for; without it they are left out"
    )
    arguments.add_argument("--out", type=Path, help="a folder that keeps finished searches, for a run that goes on")
    arguments.add_argument(
        "--points", type=Path, help="a folder for what each method proposes; diff -r compares those of two checkouts"
    )
    given = arguments.parse_args()
    methods = [method for method in given.methods if given.peers or method not in PEERS]
    if not methods:
        sys.exit(f"{' and '.join(given.methods)} need --peers PYTHON: tests/benchmarks/peers.py says what to install")
    if lacking := [name for name in FILES if not (given.data / name).is_file()]:
        sys.exit(f"the surrogate is {', '.join(FILES)} in one folder; {given.data} lacks {', '.join(lacking)}")
    if find_spec("onnxruntime") is None:
        sys.exit("the surrogate is read by a package: pip install onnxruntime")
    listed = json.loads((given.data / "config_space.json").read_text())["hyperparameters"]
    names = [name for name in listed[0]["choices"] if name not in LEFT_OUT]
    sets = {"first16": names[:16], "others": names[16:]}
    tasks = [task for name in given.tasks for task in sets.get(name, [name])]
    if unknown := [task for task in tasks if task not in listed[0]["choices"]]:
        sys.exit(f"a task is one of {', '.join(names)}, first16 or others; received {', '.join(unknown)}")
    jobs = [(task, seed) for seed in range(given.seeds) for task in tasks]
    work = partial(
        run,
        data=given.data,
        methods=methods,
        workers=given.workers,
        budget=given.budget,
        python=given.peers,
        folder=given.out,
        points=given.points,
    )
    results = collect(jobs, work, given.processes)
    show(results, methods, best_of(results, [SYNCHRONOUS]), given.format)


if __name__ == "__main__":
    main()
