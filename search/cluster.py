"""Ray itself: joining it, what it has, and the tasks around the trials."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray.util import ActorPool

from search.store import StudyLock
from search.worker import Resident, Workload

if TYPE_CHECKING:
    from search.config import ResourcesConfig


class ClusterError(ValueError):
    """A study asks for resources that the cluster does not have."""


@contextmanager
def joined(resources: ResourcesConfig) -> Iterator[None]:
    """A local Ray for as long as the block runs, or the one that this process has joined already.

    Raises ClusterError where a trial cannot fit into it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # gpus_per_trial: 0 means that none is seen
    mine = not ray.is_initialized()
    if mine:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        there = _resources()
        for name, asked in (("CPU", resources.cpus_per_trial), ("GPU", resources.gpus_per_trial)):
            if asked > there.get(name, 0):
                raise ClusterError(
                    f"a trial asks for {asked:g} {name}s (resources.{name.lower()}s_per_trial) and Ray has "
                    f"{there.get(name, 0):g}; ask for less, or run where there are more"
                )
        yield
    finally:
        if mine:
            ray.shutdown()


def _resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def room(resources: ResourcesConfig) -> int:
    """How many trials run at once: what was asked for, as far as the cluster, if joined, has the resources."""
    if not ray.is_initialized():
        return resources.concurrent
    there = _resources()
    fits = [there.get("CPU", 0) / resources.cpus_per_trial]
    if resources.gpus_per_trial:
        fits.append(there.get("GPU", 0) / resources.gpus_per_trial)
    return max(1, min(resources.concurrent, int(min(fits))))


def fastest_precision(workload: Workload, resources: ResourcesConfig) -> str:
    """ "fp32" or "bf16", measured where a trial would run, with its resources."""

    def measure() -> str:
        from petl import engine, train

        engine.prepare_process()
        return train.fastest_precision(Resident(workload).model)

    task = ray.remote(num_cpus=resources.cpus_per_trial, num_gpus=resources.gpus_per_trial, max_calls=1)(measure)
    return ray.get(task.remote())


def test_scores(
    workload: Workload,
    resources: ResourcesConfig,
    trials: Sequence[tuple[int, str | None]],
    heard: Callable[[int, str], None],
) -> None:
    """Scores finished trials, given as (number, reference), on whole splits, several at once.

    The scores lie in the trials' folders. `heard(number, reason)` is called as each is done, with the
    reason where it failed.
    """

    class Tester:
        def __init__(self) -> None:
            from petl.engine import prepare_process

            prepare_process()
            self._lock = StudyLock(Path(workload.folder))
            self._lock.work()
            self.resident = Resident(workload)

        def test(self, number: int, reference: str | None) -> tuple[int, str]:
            try:
                self.resident.test(number, reference)
            except Exception as error:  # one adapter that cannot be tested must not cost the others
                return number, f"{type(error).__name__}: {error}"
            return number, ""

    if not trials:
        return
    actor = ray.remote(
        num_cpus=resources.cpus_per_trial, num_gpus=resources.gpus_per_trial, max_restarts=2, max_task_retries=2
    )(Tester)
    pool = ActorPool([actor.remote() for _ in range(min(room(resources), len(trials)))])
    for number, reason in pool.map_unordered(lambda tester, trial: tester.test.remote(*trial), list(trials)):
        heard(number, reason)
