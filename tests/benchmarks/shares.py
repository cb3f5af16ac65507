"""What the benchmarks of the search have in common: methods, shares of a hypervolume, paired comparisons, output."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import numpy as np
from scipy import stats

from petl.backbones.model import Backbone
from petl.configuration import Configuration, Training
from petl.measurements import Measurements
from petl.presets import lora
from search.optimizer.budget import Budget
from search.optimizer.observations import DEFAULT_UNFINISHED
from search.optimizer.rungs import rule
from search.optimizer.search import Plan, Search
from search.optimizer.simulation.replay import Clock, replay
from search.optimizer.steps import Start, Step
from search.trials.record import State, TrialRecord
from search.trials.records import Records
from search.trials.resolved import Enqueued

_NOWHERE: Final = Backbone("table", "bert", "", "", 1, {}, {})  # a plan names one; no table has a model


@dataclass(frozen=True)
class Method:
    """A way to search: a sampler, None for the pool in its order, and a rung rule with its options."""

    sampler: str | None = None
    scheduler: str = "none"
    trials: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    unfinished: str = DEFAULT_UNFINISHED


class Outcome(Protocol):
    """What a method came to on one task with one seed."""

    @property
    def task(self) -> str:
        """Its name."""

    @property
    def seed(self) -> int:
        """Its number."""


R = TypeVar("R", bound=Outcome)


class Result(NamedTuple):
    """One method on one task with one seed."""

    method: str
    task: str
    seed: int
    share: float
    proposals: int
    ms: float  # of the search's a trial that it begins


def seed_of(task: str, seed: int) -> int:
    """Another one for every pair, so that what is random on one task has no part in another's result."""
    return int(np.random.SeedSequence([seed, *task.encode()]).generate_state(1)[0])


class Timed(Search):
    """A search that knows what the calls took that began a trial."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seconds: list[float] = []

    def next(self, free_workers: int) -> Step:
        """As ever."""
        began = time.perf_counter()
        step = super().next(free_workers)
        if isinstance(step, Start):
            self.seconds.append(time.perf_counter() - began)
        return step


class Problem:
    """Points of a table or surrogate as configurations of ours.

    `suggest` asks an Optuna trial for a point; `size` is known before training. A point becomes a design of ours
    with its index as LoRA rank, so that the search sees distinct ones.
    """

    def __init__(
        self,
        suggest: Callable[[Any], tuple[Any, ...]],
        size: Callable[[tuple[Any, ...]], float],
        score: Callable[[tuple[Any, ...], float], float],
        epochs: float,
        objective: str,
    ) -> None:
        self.suggest, self.size, self.reached, self.epochs, self.objective = suggest, size, score, epochs, objective
        self.points: list[tuple[Any, ...]] = []
        self._index: dict[tuple[Any, ...], int] = {}

    def configuration(self, point: tuple[Any, ...]) -> Configuration:
        """The one of this point."""
        if point not in self._index:
            self._index[point] = len(self.points)
            self.points.append(point)
        return Configuration(lora(rank=self._index[point] + 1), Training(epochs=self.epochs))

    def point(self, configuration: Configuration) -> tuple[Any, ...]:
        """The way back."""
        return self.points[configuration.design.modifications[0].size - 1]

    def score(self, record: TrialRecord, epoch: float) -> float:
        """What the search is told."""
        assert record.configuration
        return self.reached(self.point(record.configuration), epoch)

    def measured(self, record: TrialRecord) -> Measurements:
        """At the end; an epoch takes a second."""
        assert record.configuration
        return Measurements(
            **{self.objective: self.score(record, self.epochs)},
            stored_parameters=round(self.size(self.point(record.configuration))),
            epochs=self.epochs,
            seconds=self.epochs,
        )

    def search(
        self, method: Method, seed: int, workers: int, budget: float, pool: Sequence[tuple[Any, ...]] = ()
    ) -> tuple[Records, float]:
        """The records that the method leaves, and its milliseconds a trial that it begins."""
        records, clock = Records.in_memory((self.objective, "stored_parameters")), Clock()
        listed = [] if method.sampler else pool[: method.trials]
        plan = Plan(
            space=lambda trial, backbone: self.configuration(self.suggest(trial)),
            backbone=_NOWHERE,
            count=lambda configuration: {
                "stored_parameters": self.size(self.point(configuration)) if configuration.design.modifications else 0
            },
            budget=Budget(trials=method.trials, concurrent=workers),
            rule=rule(method.scheduler, self.epochs, method.trials, **method.options),
            sampler=method.sampler or "random",
            seed=seed,
            unfinished=method.unfinished,
            enqueued=[Enqueued(str(index), self.configuration(point)) for index, point in enumerate(listed)],
        )
        search = Timed(records, plan, clock)
        replay(search, self, workers=workers, clock=clock, epochs=budget)
        return records, 1000 * fmean(search.seconds) if search.seconds else 0.0

    def complete(self, records: Records) -> list[tuple[Any, ...]]:
        """The points that were trained in full."""
        done = [record.configuration for record in records.all() if record.state is State.COMPLETE]
        return [self.point(configuration) for configuration in done if configuration]


def collect(jobs: Sequence[Any], run: Callable[[Any], list[R]], processes: int) -> list[R]:
    """The results of all jobs, with a line to stderr for each that is done."""
    results: list[R] = []
    began = time.monotonic()

    def take(found: list[R]) -> None:
        results.extend(found)
        done = len({(result.task, result.seed) for result in results})
        print(f"{time.monotonic() - began:6.0f} s: {done}/{len(jobs)}", file=sys.stderr, flush=True)

    if processes == 1:
        for job in jobs:
            take(run(job))
    else:
        with ProcessPoolExecutor(processes) as pool:
            for future in as_completed([pool.submit(run, job) for job in jobs]):
                take(future.result())
    return results


def kept(file: Path | None, setting: Mapping[str, Any], found: Callable[[], Any]) -> Any:
    """What JSON has of a search in this file, from an earlier call; else what is `found` now, which is left there.

    So a benchmark of hours can be interrupted and goes on. It knows nothing of the code that is measured: files of
    what has changed since are to be removed. Exits where the file is of another setting.
    """
    if file and file.exists():
        content = json.loads(file.read_text())
        if content["setting"] != setting or "found" not in content:
            sys.exit(f"{file} is of another setting, {content['setting']}; give another --out, or remove it")
        return content["found"]
    result = found()
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps({"setting": setting, "found": result}, indent=1))
        part.rename(file)
    return result


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean, and its 95 % confidence interval by Student's t."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, mean, mean
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def rows(results: Sequence[Any], more: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row for each method and task, with the means of `more` fields; results are Results, or have what they have.

    Intervals are over seeds.
    """
    table = []
    for method, task in sorted({(result.method, result.task) for result in results}):
        found = [result for result in results if (result.method, result.task) == (method, task)]
        share, low, high = interval([result.share for result in found])
        table.append(
            {
                "method": method,
                "task": task,
                "share": round(share, 4),
                "low": round(low, 4),
                "high": round(high, 4),
                "proposals": fmean(result.proposals for result in found),
                "ms_per_proposal": round(fmean(result.ms for result in found), 2),
                **{name: round(fmean(getattr(result, name) for result in found), 4) for name in more},
            }
        )
    return table


def best_of(results: Sequence[Result], methods: Sequence[str]) -> dict[str, str]:
    """For each task the one of these methods with the best mean share; none of a task on which none of them ran.

    Chosen by the same results that it is then compared on, it has luck on its side.
    """
    found: dict[str, str] = {}
    for task in dict.fromkeys(result.task for result in results):
        shares = {
            method: fmean(own)
            for method in methods
            if (own := [result.share for result in results if (result.method, result.task) == (method, task)])
        }
        if shares:
            found[task] = max(shares, key=lambda method: shares[method])
    return found


def show(results: Sequence[Result], methods: Sequence[str], peers: Mapping[str, str], form: str) -> None:
    """Prints rows as JSON, or a line a method: its share, and the paired difference to that of its task's peer."""
    if form == "json":
        print(json.dumps(rows(results), indent=1))
        return
    share = {(result.method, result.task, result.seed): result.share for result in results}
    against = " or ".join(dict.fromkeys(peers.values()))
    head = f"  against {against}: difference, 95 %, wins/ties/losses" if against else ""
    print(f"{'method':18}{'share':>8}  {'95 %':15}{'ms':>7}{head}")
    for method in methods:
        own = [result for result in results if result.method == method]
        mean, low, high = interval([result.share for result in own])
        line = f"{method:18}{mean:8.4f}  {low:.4f}-{high:.4f}  {fmean(result.ms for result in own):6.1f}"
        if peers and any(peer != method for peer in peers.values()):
            apart = [result.share - share[peers[result.task], result.task, result.seed] for result in own]
            difference, least, most = interval(apart)
            wins, losses = sum(each > 1e-9 for each in apart), sum(each < -1e-9 for each in apart)
            line += f"  {difference:+.4f}  {least:+.4f} to {most:+.4f}  {wins}/{len(apart) - wins - losses}/{losses}"
        print(line)


def parser(description: str, example: str, methods: Sequence[str], seeds: int = 10) -> argparse.ArgumentParser:
    """The arguments that every one of these benchmarks has."""
    arguments = argparse.ArgumentParser(
        description=description, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--seeds", type=int, default=seeds, help=f"how many; default {seeds}")
    arguments.add_argument("--workers", type=int, default=4, help="simulated ones; default %(default)s")
    arguments.add_argument(
        "--methods", nargs="+", default=list(methods), choices=methods, metavar="METHOD", help=", ".join(methods)
    )
    arguments.add_argument("--processes", type=int, default=1, help="that share the work; default 1")
    arguments.add_argument("--format", choices=("text", "json"), default="text", help="json: only a list of rows")
    return arguments
