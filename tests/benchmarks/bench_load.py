"""How many trials a driver keeps going: a whole search in which only the training is replaced, by sleep.

Everything else is a study's own: Ray Tune with as many workers as asked for, whatever cores there are, the
sampler, Optuna's and MLflow's databases, results and adapters on disk. Exits with 1 where MLflow has not
all of it in the end.

    python tests/benchmarks/bench_load.py --workers 64 --seconds 10 5 2 --trials 640
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psutil

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "helpers")]

MILESTONES: Final = 3
ADAPTER_BYTES: Final = 200_000
ROLES: Final = {"gcs_server": "gcs", "raylet": "raylet", "ray::Resource": "workers"}


def sleeper(seconds: float) -> type:
    """The trainable of the service, whose training sleeps."""
    from petl.backbones.count import count
    from petl.measurements import Measurements
    from search.trials.report import Report
    from search.workers.assignment import Assignment, StudyContext
    from search.workers.trainable import Worker
    from search.workers.training import TrialTraining, WarmModel

    class Asleep(TrialTraining):
        def to_milestone(self) -> Report:
            if not hasattr(self, "validations"):
                self.validations: list[dict[str, Any]] = []
                self._began = time.time()
            time.sleep(seconds / len(self.assignment.milestones))
            epoch = self.assignment.milestones[len(self.validations)]
            score = (self.assignment.number * 0.618 % 1) * epoch / self.assignment.milestones[-1]
            self.validations.append(
                {"step": len(self.validations) + 1, "epoch": epoch, "scores": {"accuracy": score}, "seconds": 1.0}
            )
            if epoch < self.assignment.milestones[-1]:
                return self._report()
            assert self.assignment.configuration is not None
            counts = count(self.assignment.configuration.design, self.warm.backbone, 3)
            measured = Measurements(
                accuracy=score,
                epochs=epoch,
                seconds=seconds,
                base_parameters=counts.base,
                **counts.values(),
            )
            return self._finish(measured, self._adapter)

        def _adapter(self, folder: Path) -> None:
            (folder / "adapter").mkdir()
            (folder / "adapter" / "adapter.safetensors").write_bytes(os.urandom(ADAPTER_BYTES))

        def _report(self) -> Report:
            return replace(super()._report(), points=[], validations=list(self.validations))

    class Sleeper(Worker):
        def setup(self, config: dict[str, Any], context: StudyContext | None = None, **options: Any) -> None:
            super().setup(config, context, **options)
            assert context is not None
            warm = WarmModel(context)
            self._begin = lambda assignment: Asleep(warm, assignment)
            self.training = self._begin(Assignment.from_json(config["assignment"]))

    return Sleeper


class Watch(threading.Thread):
    """CPU seconds by role, of this process and its children, and the most memory of all together."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.by_process: dict[tuple[int, str], float] = {}
        self.memory = 0.0

    def run(self) -> None:
        """Samples twice a second: a process that dies in between loses at most that."""
        while not self.ended.wait(0.5):
            memory = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    title = " ".join(process.cmdline()[:1])
                    role = next((role for part, role in ROLES.items() if part in title), "rest of Ray")
                    times = process.cpu_times()
                    memory += process.memory_info().rss
                except psutil.Error:
                    continue
                self.by_process[process.pid, role] = times.user + times.system
            self.memory = max(self.memory, memory / 1e9)

    def cpu(self) -> Mapping[str, float]:
        """CPU seconds by role."""
        found: dict[str, float] = defaultdict(float)
        for (_, role), seconds in self.by_process.items():
            found[role] += seconds
        return found


def measure(workers: int, seconds: float, trials: int, sampler: str) -> dict[str, Any]:
    """One study; times are from the first trial's start to the last one's end."""
    import ray
    from rich.console import Console
    from studies import study

    from search import run
    from search.trials.record import State
    from search.workers import tune as ray_tune

    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"PETL_SEARCH_HOME": f"{folder}/home", "RAY_worker_niceness": "0"}
        content = study(Path(folder), study="load", references=[], sampler={"name": sampler, "seed": 0})
        rows = content["task"]["paths"]["train"]
        content["task"] = {"name": "words", "paths": {"train": rows}, "max_length": 32}
        content["space"] = {"name": "unified", "max_size": 64, "lengths": [0, 1, 2, 4, 8, 16]}
        content["budget"] = {"trials": trials, "epochs": float(MILESTONES)}
        content["scheduler"] = {"name": "none"}
        content["resources"] = {"concurrent": workers}
        before, ray_tune.Worker = ray_tune.Worker, sleeper(seconds)  # type: ignore[misc]
        ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
        watch, own = Watch(), time.process_time()
        watch.start()
        began = time.time()
        try:
            found = run(content, console=Console(quiet=True))
        finally:
            ended = time.time()
            watch.ended.set()
            watch.join()
            ray.shutdown()
            ray_tune.Worker = before  # type: ignore[misc]
        own = time.process_time() - own
        starts = sorted(trial.record.started for trial in found.trials if trial.record.started)
        ends = sorted(trial.record.ended for trial in found.trials if trial.record.ended)
        span = ends[-1] - starts[0]
        # between the first end and the last start all workers are there and busy, or would be
        full = [end for end in ends if ends[0] < end <= starts[-1]]
        pace = 60 * len(full) / (full[-1] - ends[0]) if len(full) > 1 else 0.0
        complete = sum(trial.state is State.COMPLETE and trial.score is not None for trial in found.trials)
        adapters = [file.stat().st_size for file in Path(folder, "home", "artifacts").rglob("adapter.safetensors")]
        return {
            "workers": workers,
            "seconds": seconds,
            "sampler": sampler,
            "trials": trials,
            "per_minute": pace,
            "ideal_per_minute": 60 * workers / seconds,
            "span_s": span,
            "whole_s": ended - began,
            "driver_cpu_percent": 100 * own / (ended - began),
            **{f"{role}_cpu_percent": 100 * spent / (ended - began) for role, spent in sorted(watch.cpu().items())},
            "memory_gb": watch.memory,
            "complete_in_mlflow": min(complete, adapters.count(ADAPTER_BYTES)),
        }


def main() -> int:
    """Prints a line a measurement; the exit code says whether MLflow has all trials, whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 5.0, 2.0], help="that a training sleeps")
    parser.add_argument("--trials", type=int, default=640)
    parser.add_argument("--sampler", nargs="+", default=["random"])
    parser.add_argument("--format", choices=("table", "json"), default="table")
    given = parser.parse_args()
    missing = 0
    for sampler in given.sampler:
        for seconds in given.seconds:
            row = measure(given.workers, seconds, given.trials, sampler)
            missing += row["trials"] - row["complete_in_mlflow"]
            if given.format == "json":
                print(json.dumps(row), flush=True)
            else:
                print(
                    "  ".join(
                        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                        for key, value in row.items()
                    ),
                    flush=True,
                )
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
