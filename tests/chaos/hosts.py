"""Hosts on one machine: each has its own network, processes, shared memory and /tmp/ray, and a cable to a switch.

A host is a Linux namespace of each kind. Its first process starts Ray, and again when it has ended and nothing of
it is left, as an init system or Kubernetes does; when that process is killed the kernel kills all of the host.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

_ROOT: Final = Path(__file__).parents[2]
_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL")  # no host outlives this process, however that ends
_TMP: Final = "/tmp/ray"  # a folder of its own on each host, at one path: Ray hands the head's on
# $1 the host's address, $2 its folder, then the command that is kept running.
_INIT: Final = """
mount --make-rprivate / && mount -t tmpfs -o size=400m tmpfs /dev/shm && mkdir -p /tmp/ray "$2/tmp" || exit 1
mount --bind "$2/tmp" /tmp/ray && ip link set lo up || exit 1
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
echo 1 >/proc/sys/net/ipv4/conf/eth0/arp_notify  # whoever knew another host at this address learns of it
ip addr add "$1/24" dev eth0 && ip link set eth0 up || exit 1
folder=$2; shift 2
while [ ! -e "$folder/leaving" ]; do "$@"; kill -KILL -1; sleep 1; done
while :; do sleep 1; done
"""


def missing() -> str:
    """Why there can be no such hosts here; empty where there can."""
    programs = [name for name in ("ip", "unshare", "nsenter", "setpriv", "mount") if not shutil.which(name)]
    if programs:
        return f"{', '.join(programs)} not installed (Debian: apt-get install iproute2 util-linux)"
    if os.geteuid() != 0:
        return "network namespaces and their bridge are root's to make"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "true"], stderr=subprocess.PIPE, text=True
    )
    return tried.stderr.strip()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@dataclass
class Host:
    """A running one. `init` is its first process, as the machine numbers it."""

    address: str
    folder: Path
    cable: str  # the switch's end of it
    process: subprocess.Popen[bytes]  # unshare's, which ends with the host
    init: psutil.Process

    def start(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """A further process. What is returned is nsenter's, which ends as the process does: see `inside`."""
        enter = ["nsenter", f"--target={self.init.pid}", "--mount", "--net", "--pid", "--uts", "--ipc", f"--wd={_ROOT}"]
        with log.open("ab") as out:
            return subprocess.Popen(
                [*enter, "--", *command],
                stdout=out,
                stderr=out,
                env={**environment, "TMPDIR": _TMP},
            )

    def processes(self) -> list[psutil.Process]:
        """All that live, but for the first."""
        where = f"/proc/{self.init.pid}/ns/pid"
        try:
            namespace = os.readlink(where)
        except OSError:
            return []
        found = []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                if process.pid != self.init.pid and os.readlink(f"/proc/{process.pid}/ns/pid") == namespace:
                    found.append(process)
        return found

    def kill(self) -> None:
        """SIGKILL to every process at once."""
        with suppress(psutil.NoSuchProcess):
            self.init.kill()
        self.process.wait()

    def leave(self, seconds: float) -> None:
        """SIGTERM to every process, and the end of the host so many seconds later: what spot instances get."""
        (self.folder / "leaving").touch()
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        time.sleep(seconds)
        self.kill()

    def unplug(self) -> None:
        """Nothing reaches the host, and nothing that it sends leaves it."""
        _ip("link", "set", self.cable, "down")

    def plug(self) -> None:
        """It is on the network again."""
        _ip("link", "set", self.cable, "up")


@dataclass
class Network:
    """A switch, and the hosts on it. The machine itself is on it too, at `address`, for what all hosts are served."""

    folder: Path
    subnet: str
    bridge: str
    hosts: list[Host] = field(default_factory=list)
    _number: int = 0

    @property
    def address(self) -> str:
        return f"{self.subnet}.254"

    def host(self, command: Callable[[str], Sequence[str]], environment: Mapping[str, str], address: str = "") -> Host:
        """A new one, which keeps `command(address)` running. By default at an address that no other one had."""
        self._number += 1
        address, cable = address or f"{self.subnet}.{self._number}", f"{self.bridge}h{self._number}"
        folder = self.folder / f"host{self._number}"
        folder.mkdir()
        spaces = ["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        with (folder / "log").open("ab") as out:
            process = subprocess.Popen(
                [*_WITH_US, "unshare", *spaces, "bash", "-c", _INIT, "init", address, str(folder), *command(address)],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                env={**environment, "TMPDIR": _TMP},
                start_new_session=True,
            )
        deadline = time.monotonic() + 20
        while not (children := psutil.Process(process.pid).children()):
            if time.monotonic() > deadline:
                raise RuntimeError((folder / "log").read_text())
            time.sleep(0.02)
        inside = f"{self.bridge}e{self._number}"
        _ip("link", "add", cable, "type", "veth", "peer", "name", inside)
        _ip("link", "set", cable, "master", self.bridge, "up")
        _ip("link", "set", inside, "netns", str(children[0].pid), "name", "eth0")
        host = Host(address, folder, cable, process, children[0])
        self.hosts.append(host)
        return host

    def remove(self, host: Host) -> None:
        """A power cut: it is off the network before its processes die, so that nobody hears of it."""
        self._cable(host, "set", "down")
        host.kill()
        self.hosts.remove(host)
        self._cable(host, "delete")

    @staticmethod
    def _cable(host: Host, action: str, *how: str) -> None:
        """Of a host that may be gone, and its cable with it."""
        subprocess.run(["ip", "link", action, host.cable, *how], stderr=subprocess.DEVNULL)


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    """A switch for as long as the block runs; its hosts end with it."""
    taken = {address.address for found in psutil.net_if_addrs().values() for address in found}
    number = next(n for n in range(200, 250) if f"10.207.{n}.254" not in taken)
    bridge, subnet = f"petl{number}", f"10.207.{number}"
    _ip("link", "add", bridge, "type", "bridge")
    switch = Network(folder, subnet, bridge)
    try:
        _ip("addr", "add", f"{switch.address}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        yield switch
    finally:
        for host in list(switch.hosts):
            switch.remove(host)
        _ip("link", "delete", bridge)


def inside(entered: subprocess.Popen[bytes]) -> psutil.Process | None:
    """The process that `Host.start` began, if it lives."""
    with suppress(psutil.NoSuchProcess):
        return next(iter(psutil.Process(entered.pid).children()), None)
    return None


def python(*arguments: str) -> list[str]:
    """This interpreter's command line."""
    return [sys.executable, *arguments]
