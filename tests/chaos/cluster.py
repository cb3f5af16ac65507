"""A cluster for as long as a block runs: hosts with a Ray node each, a PostgreSQL, an MLflow server, a shared home.

The studies' home is a file system of its own in memory, which all hosts mount at one path: it can be filled.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import yaml

from tests.chaos.hosts import Host, Network, inside, network, python
from tests.helpers import postgresql, studies
from tests.helpers.postgresql import PostgreSQL
from tests.helpers.servers import Server

ROOT: Final = Path(__file__).parents[2]
HOSTS: Final = 3  # the head is one of them, and trains too
_HOME: Final = "400m"  # a study of these trains less than a tenth of it
_PORT: Final = 6379
HUB_MODEL: Final = "tiny/bert"  # in the hub's cache, from which alone it can be had: no hub can be reached
_READY: Final = 180.0  # seconds for a node to join
# What belongs to a study of all that Ray runs: its workers, gangs and testers.
_TITLES: Final = ("ray::ResourceTrainable", "ray::ImplicitFunc", "ray::Rank", "ray::Tester", "ray::test_scores")


def missing() -> str:
    """Why there can be no such cluster here; empty where there can."""
    from tests.chaos import hosts

    return hosts.missing() or postgresql.missing()


@dataclass
class Driver:
    """A `petl-search run --or-resume` on the head, or another command there."""

    entered: subprocess.Popen[bytes]
    log: Path
    began: float = field(default_factory=time.monotonic)

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        return self.entered.poll()

    def signal(self, number: signal.Signals) -> None:
        """To the driver alone."""
        process = inside(self.entered)
        if process:
            process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the driver alone."""
        self.signal(signal.SIGKILL)
        self.entered.wait()


@dataclass
class Cluster:
    """A running one. `hosts[0]` is the head."""

    folder: Path
    home: Path
    network: Network
    database: PostgreSQL
    mlflow: Server
    environment: dict[str, str]
    hosts: list[Host] = field(default_factory=list)

    @property
    def head(self) -> Host:
        return self.hosts[0]

    @property
    def address(self) -> str:
        """Ray's."""
        return f"{self.network.subnet}.1:{_PORT}"

    def join(self, instead: Host | None = None) -> Host:
        """A new host in the cluster, beside the others or `instead` of a lost one. It may take a while to be there.

        The first is the head, and keeps its address when it is replaced.
        """
        leads = not self.hosts or instead is self.head
        options = (
            ("--head", f"--port={_PORT}", "--include-dashboard=false") if leads else (f"--address={self.address}",)
        )
        address = f"{self.network.subnet}.1" if leads else ""
        new = self.network.host(lambda there: self._ray(there, *options), self.environment, address)
        if instead:
            self.hosts[self.hosts.index(instead)] = new
        else:
            self.hosts.append(new)
        return new

    def lose(self, host: Host) -> None:
        """Every process of the host is gone at once; it is still listed, for `join` to replace."""
        self.network.remove(host)

    def ready(self, seconds: float = _READY) -> None:
        """Returns when all hosts are nodes of the cluster. Raises RuntimeError where they are not in time."""
        code = (
            "import ray, sys, time; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
            "alive = lambda: {n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']}\n"
            "while not set(sys.argv[2:]) <= alive(): time.sleep(0.2)"
        )
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            asking = self.drive(
                "-c", code, self.address, *(host.address for host in self.hosts), log=self.folder / "ready"
            )
            with suppress(subprocess.TimeoutExpired):
                if asking.entered.wait(max(0.0, deadline - time.monotonic())) == 0:
                    return
            asking.kill()
            time.sleep(0.5)
        logs = [f"{host.address}\n{(host.folder / 'log').read_text()[-1500:]}" for host in self.hosts]
        raise RuntimeError(f"no cluster of {len(self.hosts)} after {seconds:g} seconds\n" + "\n".join(logs))

    def answers(self) -> bool:
        """Whether Ray's head takes connections."""
        try:
            socket.create_connection((self.head.address, _PORT), timeout=1).close()
        except OSError:
            return False
        return True

    def drive(self, *command: str, log: Path) -> Driver:
        """A Python command on the head, as `-m search.cli run ...`."""
        return Driver(self.head.start(python(*command), log, self.environment), log)

    def training(self) -> dict[psutil.Process, Host]:
        """The processes of studies, on all hosts: workers, ranks, testers; not Ray's own."""
        return {
            process: host for host in self.hosts for process in host.processes() if title(process).startswith(_TITLES)
        }

    def sql_address(self, name: str) -> str:
        """A new database's address, for a study file: the password is in $PETL_PASSWORD."""
        self.database.sql(f"CREATE DATABASE {name} OWNER petl")
        return f"postgresql://petl:${{PETL_PASSWORD}}@{self.database.host}:{self.database.port}/{name}"

    def _ray(self, address: str, *options: str) -> list[str]:
        resources = ("--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000")
        start = ("start", "--block", "--disable-usage-stats", f"--node-ip-address={address}", *resources, *options)
        return python("-m", "ray.scripts.scripts", *start)


def title(process: psutil.Process) -> str:
    """A process's command line, "" where it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def cluster(keep: Path | None = None, hosts: int = HOSTS) -> Iterator[Cluster]:
    """All of it. Nothing is left of it after the block, whichever way that ends, but for logs in a folder to `keep`."""
    with ExitStack() as stack:
        stack.enter_context(_interruptible())
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="petl-chaos-")))
        home = stack.enter_context(_file_system(folder / "home"))
        switch = stack.enter_context(network(folder))
        database = stack.enter_context(postgresql.running(switch.address, f"{switch.subnet}.0/24"))
        mlflow = Server(folder, host=switch.address)
        stack.callback(mlflow.kill)
        mlflow.start()
        there = Cluster(folder, home, switch, database, mlflow, environment(folder, home))
        there.join()
        wait_until(there.answers, _READY)  # a node that asks before would try again half a minute later
        for _ in range(hosts - 1):
            there.join()
        snapshot = "0" * 40
        cached = folder / "hub" / "hub" / f"models--{HUB_MODEL.replace('/', '--')}"
        studies.write_backbone(cached / "snapshots" / snapshot)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text(snapshot)
        there.ready()
        yield there


def environment(folder: Path, home: Path) -> dict[str, str]:
    """What every process of a study has; nothing of Ray's, the hub's or the caller's studies."""
    ours = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PETL_", "MLFLOW_", "HF_"))
    }
    return {
        **ours,
        "PYTHONPATH": str(ROOT),
        "PETL_SEARCH_HOME": str(home),
        "PETL_CACHE": str(folder / "cache"),
        "PETL_PASSWORD": postgresql.PASSWORD,
        "HF_HOME": str(folder / "hub"),
        "HF_ENDPOINT": "http://127.0.0.1:9",  # where nobody listens
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_worker_niceness": "0",  # else workers starve beside whatever else runs here
        "RAY_memory_monitor_refresh_ms": "0",  # the memory is the machine's, not the host's
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def write_study(path: Path, **sections: Any) -> Path:
    """The study file of a tiny model; a section that is None is left out."""
    content = studies.study(path.parent / "inputs", **sections)
    path.write_text(yaml.safe_dump({name: section for name, section in content.items() if section is not None}))
    return path


@contextmanager
def _file_system(folder: Path) -> Iterator[Path]:
    """One in memory, mounted at the folder."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_HOME}", "petl-chaos", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM leaves the block as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def wait_until(reached: Callable[[], object], seconds: float) -> bool:
    """Whether it was reached in time."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def whole(address: str, environment: Mapping[str, str]) -> str:
    """An address with its password."""
    from urllib.parse import quote

    return address.replace("${PETL_PASSWORD}", quote(environment["PETL_PASSWORD"], safe=""))
