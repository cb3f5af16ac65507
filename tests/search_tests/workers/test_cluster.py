"""Joining a Ray cluster that is not there, or not yet large enough."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray

from search.config.sections import ResourcesConfig
from search.workers.cluster import ClusterError, joined, room


def test_address_where_nobody_listens_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(ClusterError, match=rf"no Ray cluster answers at {address} .*refused"),
            joined(ResourcesConfig(), tmp_path, address),
        ):
            pass


def test_rays_client_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ClusterError, match=r"from a node of its cluster.*received ray://head:10001"),
        joined(ResourcesConfig(), tmp_path, "ray://head:10001"),
    ):
        pass


def test_a_ray_that_does_not_start_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray says it, which a machine does that is out of memory or processes."""

    def init(**options: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because ...\nmore")

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(ClusterError, match=r"did not start on this machine: The current node timed out .*Resume once"),
        joined(ResourcesConfig(), tmp_path, "local"),
    ):
        pass


def started(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A node of a Ray that listens to everybody here, once it runs."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments]
    with log.open("w") as output:
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        node = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    deadline = time.monotonic() + 120
    while "Ray runtime started" not in log.read_text():
        assert node.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return node


def ended(node: subprocess.Popen[bytes]) -> None:
    for process in (*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    node.wait()


@pytest.mark.full("half a minute of waiting")
def test_cluster_that_grows_is_waited_for_as_long_as_was_said(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = [started(tmp_path / "head", "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false")]
    address, said = f"127.0.0.1:{port}", []

    def grow(text: str) -> None:
        said.append(text)
        nodes.append(started(tmp_path / "node", f"--address={address}", "--num-cpus=2"))

    try:
        large = ResourcesConfig(cpus_per_trial=4, wait_minutes=0.02)
        with (
            pytest.raises(ClusterError, match=r"4 CPU and 0 GPU .* Ray has .* after 0\.02 minutes; ask for less"),
            joined(large, tmp_path, address, lambda text: None),
        ):
            pass
        asked = ResourcesConfig(concurrent=4, wait_minutes=3)
        with joined(asked, tmp_path, address, grow):
            assert said == ["waiting up to 3 minutes for a node with 1 CPU and 0 GPU"]
            assert room(asked) == 4  # two of them wait for the next node
            assert sum(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]) == 2
    finally:
        for node in nodes:
            ended(node)
