"""Ray itself: joining it, its token, and for how many trials it has room."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ray
from ray._private import ray_constants, services
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from petl.errors import UserError
from search.storage.locks import run_token

if TYPE_CHECKING:
    from search.config.sections import ResourcesConfig


_ANSWER: Final = 10.0  # seconds for a cluster's head to answer
_SCRATCH: Final = "/tmp"  # where $TMPDIR may be long, and the path of a socket has at most 107 bytes


class ClusterError(UserError):
    """There is no such cluster, or not one that a study of these resources can run on."""


@contextmanager
def joined(
    resources: ResourcesConfig, folder: Path | None, address: str | None = None, say: Callable[[str], object] = print
) -> Iterator[None]:
    """Join Ray within the context: the cluster at `address`, or the one that this process has joined already.

    `address` is as Ray has it: `auto` for the cluster that this node is part of, `host:port`, or `local` for
    one that starts and ends here. Default: $RAY_ADDRESS, else local. `folder`, the study's, must exist on
    all nodes; None where they share a store instead. `say` is given a line before Ray starts, and where nodes are
    waited for.

    Raises ClusterError where there is no such cluster, where Ray does not start, where a trial cannot fit into it, and
    where a node does not see the folder.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # gpus_per_trial: 0 means that none is seen
    with ExitStack() as left:
        if not ray.is_initialized():
            address = address or os.environ.get("RAY_ADDRESS") or "local"
            say("starting Ray on this machine" if address == "local" else f"joining the Ray cluster at {address}")
            options = left.enter_context(_private()) if address == "local" else {}
            left.callback(ray.shutdown)
            _join(address, **options)
        _await(resources, say)
        if places(resources.each) < resources.workers_per_trial:
            workers = resources.workers_per_trial
            raise ClusterError(
                f"a trial asks for {_amounts(resources.each)}{f' for each of its {workers} workers' * (workers > 1)} "
                "(resources: cpus_per_trial, gpus_per_trial, workers_per_trial), each on one node, and Ray has "
                f"{' + '.join(map(_amounts, _nodes())) or 'no node'}"
                f"{f' after {resources.wait_minutes:g} minutes' * bool(resources.wait_minutes)}; ask for less, or run "
                "where there is more (resources.wait_minutes: 10 gives an autoscaler time)"
            )
        if folder is not None:
            _require_shared(folder)
        yield


@contextmanager
def _private() -> Iterator[dict[str, Any]]:
    """Yield options for a Ray that starts within the context, for this process and its workers alone.

    It listens on 127.0.0.1, answers those who have its token, and has a folder of its own: /tmp/ray is everybody's to
    write. On Linux Ray listens on all interfaces, whatever address it is given, unless it takes the system for
    one that has no clusters, as macOS.
    """
    settings = {
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",  # for the processes that it starts
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32),
    }
    before = {name: os.environ.get(name) for name in settings}
    clusters, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    os.environ |= settings
    look_again()
    scratch = tempfile.mkdtemp(prefix="petl-ray-", dir=_SCRATCH)
    try:
        yield {"_temp_dir": f"{scratch}/ray"}  # which Ray itself opens to everybody
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        ray_constants.ENABLE_RAY_CLUSTER = clusters
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        look_again()


def require_answer(address: str | None = None) -> None:
    """Raise ClusterError where no cluster can be at an address, as `joined` takes it, or nobody listens there.

    Ray itself would try for minutes.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise ClusterError(
            f"a study is driven from a node of its cluster, not through Ray's client; received {address}. Give "
            "--address auto there"
        )
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"an http address takes jobs, as `petl-search submit --help` has it, and joins no study; received {address}"
        )
    if address == "auto":
        try:
            address = services.get_ray_address_from_environment(address, None)
        except ConnectionError:
            raise ClusterError(
                "--address auto is for a node of a Ray cluster, and no Ray runs on this one; `ray start` makes it a "
                "node, --address host:port names a cluster, and without --address a study starts a Ray of its own"
            ) from None
    host, _, port = address.rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> ClusterError:
    return ClusterError(f"no Ray cluster answers at {address} (--address, $RAY_ADDRESS): {_reason(error)}")


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _join(address: str, **options: Any) -> None:
    require_answer(address)
    dashboard = False if address == "local" else None  # of a cluster it is the cluster's own affair
    if address != "local":
        use_token()
    try:
        ray.init(
            address=address,
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **options,
        )
    except Exception as error:  # Ray raises Exception itself where a node does not come up
        if address == "local":
            raise ClusterError(
                f"Ray did not start on this machine: {_reason(error)} Resume once it has memory and processes to "
                "spare, or name a cluster with --address"
            ) from error
        raise _no_cluster(address, error) from error


def _await(resources: ResourcesConfig, say: Callable[[str], object]) -> None:
    """Wait until a trial fits, or the study's patience ends. An autoscaler is asked for all that is wanted."""
    if not resources.wait_minutes:
        return
    bundles = resources.concurrent * resources.workers_per_trial * [dict(resources.each)]
    deadline = time.monotonic() + 60 * resources.wait_minutes
    said = False
    try:
        request_resources(bundles=bundles)
        while places(resources.each) < resources.workers_per_trial and time.monotonic() < deadline:
            if not said:
                say(f"waiting up to {resources.wait_minutes:g} minutes for a node with {_amounts(resources.each)}")
                said = True
            time.sleep(1.0)
    finally:  # it would outlive this process; from here on the trials that wait for a place are the demand
        request_resources(bundles=[])


def _require_shared(folder: Path) -> None:
    """Raise ClusterError where another node does not read the token of this run in the study's folder.

    A node that joins later is asked by its workers: see `Workload.home`.
    """
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != _here()]  # type: ignore[no-untyped-call]
    if not others:
        return
    task = ray.remote(num_cpus=0)(run_token)
    tokens = ray.get(
        [
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(folder)
            for node in others
        ]
    )
    own = run_token(folder)
    blind = [node["NodeManagerAddress"] for node, token in zip(others, tokens, strict=True) if token != own]
    if blind:
        raise ClusterError(
            f"all nodes share the folder of studies; {folder} is not seen on {', '.join(blind)}. Set "
            "$PETL_SEARCH_HOME to a folder on storage that every node mounts at the same path, or storage.path to a "
            "store that every node reaches"
        )


def _here() -> str:
    node: str = ray.get_runtime_context().get_node_id()
    return node


def _nodes() -> list[dict[str, float]]:
    """Return what the living nodes of the cluster have, used or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def places(each: Mapping[str, float]) -> int:
    """Return for how many workers the cluster has room at once."""
    asked = {name: amount for name, amount in each.items() if amount}
    return sum(min(int(node.get(name, 0) / amount + 1e-9) for name, amount in asked.items()) for node in _nodes())


def _amounts(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))


def room(resources: ResourcesConfig) -> int:
    """Return how many trials run at once: as many as asked for, if the cluster has room for them or may grow."""
    if not ray.is_initialized() or resources.wait_minutes:
        return resources.concurrent
    return max(1, min(resources.concurrent, places(resources.each) // resources.workers_per_trial))


MODE = "RAY_AUTH_MODE"


def use_token() -> None:
    """Show this user's token from now on, if there is one, as `ray start` does; $RAY_AUTH_MODE overrules that."""
    if MODE not in os.environ and AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        os.environ[MODE] = "token"
        look_again()


def look_again() -> None:
    """Make Ray read $RAY_AUTH_MODE and the token once more, which it does once a process."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
