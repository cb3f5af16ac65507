"""What it takes to read a study from MLflow's store, and to publish a trial into it.

    python tests/benchmarks/stores.py write --trials 200
    python tests/benchmarks/stores.py read --trials 300 2000 10000 --home /tmp/stores

`write` publishes trials with curves as a search does, through the journal's entries, artifacts apart, and then all of
them again as a resume does. `read` makes a store for each number of trials and times commands on it, each in a process
of its own: seconds of its own time (user and system) beyond imports, and its memory. The designs are random points of
the unified space on BERT-base's shapes, the scores are made up, and nothing is trained.

With --against PATH, a checkout of another commit, both are timed in turn, side by side.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parents[2]
POINTS: Final = 30  # of a curve of training
STUDY: Final = "made-up"
INFO: Final = {
    "study": STUDY,
    "objectives": {"score": "accuracy", "cost": "stored_parameters"},
    "constraints": {"stored_percent": 10.0},
    "backbone": {"model": "bert-base"},
    "task": {"name": "made-up"},
    "space": {"name": "unified"},
}
COMMANDS: Final = {
    "ls": ("ls",),
    "front": ("front", STUDY),
    "show": ("show", STUDY),
    "front, in Python": (),
}


def records(trials: int, seed: int = 0) -> Iterator[tuple[Any, dict[str, float], Any]]:
    """Yield so many trials with their counts and reports: a third in full, the rest stopped at the first rung."""
    import optuna
    from transformers import BertConfig

    from petl.backbones.count import count
    from petl.backbones.model import describe
    from petl.measurements import Measurements
    from search.trials.record import State, TrialRecord
    from search.trials.report import Report
    from spaces.space import point, resolve

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        BertConfig().save_pretrained(folder)
        backbone = describe(folder, weights=False)
    space = resolve("unified")
    random_points = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    chance = random.Random(seed)
    began = 1_700_000_000.0
    for number in range(trials):
        trial = random_points.ask()
        configuration = space(trial, backbone)
        counts = count(configuration.design, backbone, 2).values()
        score = 0.9 - 0.2 * math.exp(-math.log1p(counts["stored_parameters"]) / 8) + chance.gauss(0, 0.01)
        whole = number % 3 == 0
        state = State.COMPLETE if whole else State.PRUNED
        epochs = 3.0 if whole else 1.0
        measured = Measurements(
            accuracy=score, loss=1 - score, epochs=epochs, steps=POINTS, seconds=60 * epochs, peak_memory_mb=900.0,
            latency_ms=5.0, tokens_per_second=4_000.0, base_parameters=110_000_000, head_parameters=1_538, **counts,
        )  # fmt: skip
        report = Report(
            startup_seconds=1.5,
            points=[
                {"step": s + 1, "loss": 1 / (s + 1), "learning_rate": 1e-3, "time": began + s} for s in range(POINTS)
            ],
            validations=[
                {
                    "step": 10 * (e + 1),
                    "epoch": e + 1.0,
                    "seconds": 60.0,
                    "scores": {"accuracy": score, "loss": 1 - score},
                }
                for e in range(int(epochs))
            ],
            measurements=measured if whole else None,
        )
        record = TrialRecord(
            number=number,
            state=state,
            configuration=configuration,
            params=point(trial, configuration).params,
            rungs={1.0: score - 0.02},
            measurements=measured if whole else None,
            started=began,
            ended=began + 60 * epochs,
        )
        began += 20
        yield record, counts, report


def publish(uri: str, artifacts: Path, made: list[tuple[Any, dict[str, float], Any]]) -> dict[str, float]:
    """Publish trials as a search does, and again as a resume does; return milliseconds a trial of both."""
    from dataclasses import replace

    from search.tracking.entries import Ensure, Progress, Publish
    from search.tracking.writer import MlflowTracker
    from search.trials.record import State
    from search.trials.report import curve

    def entries(record: Any, counts: dict[str, float], report: Any, again: bool) -> list[Any]:
        started = replace(record, state=State.RUNNING, measurements=None, rungs={}, ended=None)
        points = [{"step": 0, "startup_seconds": 1.5}, *curve(report.points, report.validations)]
        end = [Progress(record.number, points), Publish(record, counts)]
        return [Ensure(record), *end] if again else [Publish(started, counts), *end]

    took = {}
    for name, again in (("first", False), ("again", True)):
        tracker = MlflowTracker.open(uri, STUDY, artifacts, INFO)
        began = time.perf_counter(), time.process_time()
        for record, counts, report in made:
            apply(tracker, entries(record, counts, report, again), record.ended)
        took[name] = 1000 * (time.perf_counter() - began[0]) / len(made)
        took[f"{name}_cpu"] = 1000 * (time.process_time() - began[1]) / len(made)
    tracker.close()
    return took


def apply(tracker: Any, entries: list[Any], at: float) -> None:
    """Publish what is known of one trial at once, as the journal's thread does."""
    for entry in entries:
        entry.apply(tracker, Path(), at)


def own_time(uri: str, command: str) -> dict[str, float]:
    """Time one command in this process, after its imports."""
    import resource

    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    import search.results.console
    import search.results.query
    import search.results.tables
    from search.cli import app

    imported = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    if COMMANDS[command]:
        with suppress(SystemExit):
            app([*COMMANDS[command], "--uri", uri], standalone_mode=False)
    else:
        search.results.query.load_study(STUDY, uri).front().to_frame()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"seconds": used.ru_utime + used.ru_stime - imported, "imports": imported, "mb": used.ru_maxrss / 1024}


def child(checkout: Path, *arguments: str) -> Any:
    """Run this script as it is, on the code of a checkout, and return the JSON that it prints last."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), *arguments],
        env=os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=checkout,
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def write(trials: int, checkouts: list[Path], rounds: int) -> None:
    """Print a row for each checkout and round."""
    for round_ in range(rounds):
        for checkout in checkouts:
            with tempfile.TemporaryDirectory() as folder:
                print(round_, checkout.name, child(checkout, "_publish", str(trials), folder), flush=True)


def read(numbers: list[int], checkouts: list[Path], home: Path, rounds: int) -> None:
    """Print a row for each number of trials, command and checkout."""
    for trials in numbers:
        folder = home / str(trials)
        if not (folder / "mlflow.db").exists():
            print(trials, "written:", child(checkouts[0], "_publish", str(trials), str(folder)), flush=True)
        for command in COMMANDS:
            for _ in range(rounds):
                for checkout in checkouts:
                    took = child(checkout, "_read", f"sqlite:///{folder / 'mlflow.db'}", command)
                    print(
                        f"{trials:7,} {command:18} {checkout.name:12} {took['seconds']:7.2f} s "
                        f"{took['mb']:6.0f} MB  imports {took['imports']:.2f} s",
                        flush=True,
                    )


def main() -> None:
    """The command."""
    match sys.argv[1:]:
        case ["_publish", trials, folder]:
            Path(folder).mkdir(parents=True, exist_ok=True)
            made = list(records(int(trials)))
            print(json.dumps(publish(f"sqlite:///{folder}/mlflow.db", Path(folder) / "artifacts", made)))
            return
        case ["_read", uri, command]:
            print("\n" + json.dumps(own_time(uri, command)))
            return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "read"))
    parser.add_argument("--trials", type=int, nargs="+", default=[300], help="default 300")
    parser.add_argument("--against", type=Path, action="append", default=[], help="another checkout; may be repeated")
    parser.add_argument("--rounds", type=int, default=1, help="default 1")
    parser.add_argument("--home", type=Path, default=Path(tempfile.gettempdir()) / "petl-stores", help="of `read`")
    given = parser.parse_args()
    checkouts = [HERE, *(path.resolve() for path in given.against)]
    if given.what == "write":
        for trials in given.trials:
            write(trials, checkouts, given.rounds)
    else:
        read(given.trials, checkouts, given.home, given.rounds)


if __name__ == "__main__":
    main()
