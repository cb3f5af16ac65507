"""A Slurm of one's own on this machine: munge, a controller and some nodes, in a folder, for as long as a block runs.

Debian's slurm-wlm is built for several slurmd on one host. Without cgroups processes are tracked by their parents.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=20
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=5,bf_interval=5
ReturnToService=2
KillWait=60
OverTimeLimit=1
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/ended.txt
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=60 State=UP
"""


def missing() -> str:
    """Why there can be no Slurm here; empty where there can."""
    programs = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name, path=_PATH)]
    if programs:
        return f"{', '.join(programs)} not installed (Debian: apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "a private slurmd runs jobs as root only"


_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Slurm:
    """A running one. Its programs are run by `run`, with the environment that finds it."""

    folder: Path

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": _PATH, "SLURM_CONF": str(self.conf)}

    def run(self, *command: str, **environment: str) -> str:
        """What a command prints. Raises CalledProcessError."""
        done = subprocess.run(
            command, env=self.environment | environment, cwd=self.folder, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """A job's fields, as `scontrol show job` has them."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


@contextmanager
def slurm(folder: Path, nodes: int = 2) -> Iterator[Slurm]:
    """Slurm with `nodes` nodes of one CPU each."""
    folder.chmod(0o755)  # munged wants its folder to be nobody else's to write
    ports = _free_ports(nodes + 1)
    lines = [
        f"NodeName=n{number} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs=1 State=UNKNOWN"
        for number, port in enumerate(ports[1:], 1)
    ]
    text = _CONF.format(folder=folder, host=socket.gethostname(), ports=ports, nodes="\n".join(lines))
    there = Slurm(folder)
    there.conf.write_text(text)
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    munged = ["munged", "--foreground", f"--key-file={key}", f"--socket={folder / 'munge.socket'}"]
    munged += [f"--{name}-file={folder / name}" for name in ("pid", "log", "seed")]
    with ExitStack() as running:
        running.enter_context(_daemon("munged", munged, there))
        _wait(lambda: (folder / "munge.socket").exists())
        running.enter_context(_daemon("slurmctld", ["slurmctld", "-D"], there))
        for number in range(1, nodes + 1):
            (folder / f"spool-n{number}").mkdir()
            running.enter_context(_daemon(f"n{number}", ["slurmd", "-D", "-N", f"n{number}"], there))
        _wait(lambda: there.run("sinfo", "--noheader", "--format=%T %D") == f"idle {nodes}")
        try:
            yield there
        finally:
            there.run("scancel", "--user=root")
            _wait(lambda: not there.run("squeue", "--noheader"))


@contextmanager
def _daemon(name: str, command: list[str], there: Slurm) -> Iterator[None]:
    with (there.folder / f"{name}.out").open("wb") as out:
        process = subprocess.Popen(command, env=there.environment, stdout=out, stderr=out, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_ports(number: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait(reached: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Slurm did not do it within {seconds:g} seconds")
        time.sleep(0.2)
