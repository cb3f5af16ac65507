"""The failures: what each does to a cluster that runs a study, how often it is tried, and who must help."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.chaos.cluster import HUB_MODEL, Cluster, Driver, title, wait_until
from tests.helpers.survival import fill

_WORKER: Final = ("ray::ResourceTrainable", "ray::ImplicitFunc")  # Tune's names for what trains
_GRACE: Final = 30.0  # seconds between SIGTERM and SIGKILL, as spot instances have it


@dataclass(frozen=True)
class Scene:
    """What a failure is done to. `seconds(full)` is a duration, shorter where not all is to be waited for."""

    cluster: Cluster
    driver: Driver
    draw: random.Random
    seconds: Callable[[float], float]


@dataclass(frozen=True)
class Failure:
    """`inflict` does it, and undoes what lasts; it tells the moment from which a recovery counts, None where there was
    nothing to fail.

    `restart`: the driver goes down with it and is started anew, by whoever had started it. `study` are sections of the
    study that it is done to, which has so many `trials` for each time, and once more.
    """

    what: str
    inflict: Callable[[Scene], float | None]
    times: int
    restart: bool = False
    trials: int = 4
    study: Mapping[str, Any] = field(default_factory=dict)


def _processes(scene: Scene, kind: str | tuple[str, ...]) -> list[Any]:
    found = [process for process in scene.cluster.training() if title(process).startswith(kind)]
    return sorted(found, key=lambda process: process.pid)


def _kill_one(kind: str | tuple[str, ...]) -> Callable[[Scene], float | None]:
    def inflict(scene: Scene) -> float | None:
        if not wait_until(lambda: _processes(scene, kind) or scene.driver.poll() is not None, 60):
            return None
        there = _processes(scene, kind)
        if not there:
            return None
        scene.draw.choice(there).kill()
        return time.time()

    return inflict


def _kill_driver(scene: Scene) -> float | None:
    if scene.driver.poll() is not None:
        return None
    scene.driver.kill()
    return time.time()


def _terminate_driver(scene: Scene) -> float | None:
    if scene.driver.poll() is not None:
        return None
    scene.driver.signal(signal.SIGTERM)
    began = time.time()
    if not wait_until(lambda: scene.driver.poll() is not None, _GRACE):
        scene.driver.kill()
    return began


def _other(scene: Scene) -> Any:
    """A host that is not the head."""
    return scene.draw.choice(scene.cluster.hosts[1:])


def _lose_host(scene: Scene) -> float:
    """The host is gone; another one joins some seconds later."""
    host = _other(scene)
    scene.cluster.lose(host)
    began = time.time()
    time.sleep(scene.draw.uniform(0, 5))
    scene.cluster.join(host)
    return began


def _spot(scene: Scene) -> float:
    """A host is told to go and taken away 30 seconds later; another one joins."""
    host, began = _other(scene), time.time()
    host.leave(_GRACE)
    scene.cluster.lose(host)
    scene.cluster.join(host)
    return began


def _lose_head(scene: Scene) -> float:
    """Ray's head, with what only it knew, and the driver."""
    scene.cluster.lose(scene.cluster.head)
    began = time.time()
    scene.cluster.join(scene.cluster.head)
    scene.cluster.ready()
    return began


def _cut(scene: Scene) -> float:
    host, began = _other(scene), time.time()
    host.unplug()
    time.sleep(scene.seconds(60))
    host.plug()
    return began


def _mlflow_away(scene: Scene) -> float:
    scene.cluster.mlflow.kill()
    began = time.time()
    time.sleep(scene.seconds(120))
    scene.cluster.mlflow.start()
    return began


def _restart_postgresql(scene: Scene) -> float:
    began = time.time()
    scene.cluster.database.stop("immediate")
    time.sleep(scene.draw.uniform(0, 5))
    scene.cluster.database.start()
    return began


def _fill(scene: Scene) -> float:
    """No byte is free in the studies' home for a while."""
    ballast, began = scene.cluster.home / "ballast", time.time()
    until = began + scene.seconds(60)
    while time.time() < until:  # again and again: training states are deleted
        fill(ballast)
        time.sleep(0.2)
    ballast.unlink()
    return began


FAILURES: Final[Mapping[str, Failure]] = {
    "worker": Failure("a worker process killed", _kill_one(_WORKER), 14),
    "rank": Failure(
        "a rank of a gang killed",
        _kill_one("ray::Rank"),
        4,
        trials=2,  # they are slower, and one at a time
        study={"resources": {"concurrent": 1, "workers_per_trial": 2, "zero_stage": 1}},
    ),
    "driver": Failure("the driver killed", _kill_driver, 10, restart=True),
    "sigterm": Failure("SIGTERM to the driver, SIGKILL 30 s later", _terminate_driver, 6, restart=True),
    "node": Failure("a whole node gone, a new one joining", _lose_host, 5),
    "spot": Failure("SIGTERM to a node's processes, gone 30 s later, a new one joining", _spot, 3),
    "head": Failure("the head gone with the driver, and restarted", _lose_head, 3, restart=True),
    "network": Failure("a node cut off for 60 s", _cut, 3),
    "mlflow": Failure("MLflow's server killed, back after 2 minutes", _mlflow_away, 2),
    "postgresql": Failure("PostgreSQL crashed and restarted", _restart_postgresql, 5),
    "disk": Failure("the disk full for 60 s, with sqlite on it", _fill, 2, study={"storage": {}}),
    "hub": Failure(
        "the hub unreachable, and a worker killed",
        _kill_one(_WORKER),
        2,
        study={"backbone": {"model": HUB_MODEL, "precision": "fp32"}},
    ),
}
