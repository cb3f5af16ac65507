"""Show 1: a list of designs on three hosts with PostgreSQL and an MLflow server, and on one machine with sqlite."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.cluster import Cluster, environment, write_study
from tests.chaos.hosts import python

DESIGNS = {
    "LoRA": "lora:rank=4",
    "prefix": "prefix:length=4",
    "parallel adapter": "parallel:size=8",
    "Houlsby": "houlsby:size=4",
    "MAM": "mam:length=2,size=4,scale=2",
    "BitFit": "bitfit",
}
SEEDS = (1, 2)
_LIST: dict[str, Any] = {
    "designs": DESIGNS,
    "seeds": list(SEEDS),
    "budget": {"epochs": 3},
    "rows": 480,
    "space": None,
    "constraints": None,
    "references": None,
    "sampler": None,
    "training": {"batch_size": 16, "learning_rate": 3e-3},
}


@dataclass(frozen=True)
class Row:
    """What a trial came to, in full precision, and the hash of its adapter's tensors."""

    name: str
    seed: int
    validation: float
    loss: float
    test: float
    adapter: str


def rows(home: Path, study: str) -> list[Row]:
    """The trials' own files, by name and seed."""
    found = []
    for result in (home / "studies" / study / "trials").glob("*/result"):
        measured = json.loads((result / "report.json").read_text())["measurements"]
        scores = json.loads((result.parent / "test" / "scores.json").read_text())
        manifest = json.loads((result / "manifest.json").read_text())
        found.append((int(result.parent.name), measured, scores, manifest["adapter/adapter.safetensors"]))
    listed = [(name, seed) for seed in SEEDS for name in DESIGNS]
    return [
        Row(*listed[number], measured["accuracy"], measured["loss"], scores["test"]["accuracy"], adapter)
        for number, measured, scores, adapter in sorted(found, key=lambda item: item[0])
    ]


def on_three_hosts(there: Cluster) -> tuple[list[Row], dict[str, int], float]:
    """The rows, how many processes trained on each host, and the seconds."""
    path = write_study(
        there.folder / "list.yaml",
        **_LIST,
        study="list",
        resources={"concurrent": 3},
        storage={"database": there.sql_address("list")},
        tracking={"uri": there.mlflow.uri},
    )
    began = time.monotonic()
    driver = there.drive(
        "-m", "search.cli", "run", str(path), "--address", there.address, log=there.folder / "list.log"
    )
    where: dict[str, set[int]] = {host.address: set() for host in there.hosts}
    while driver.poll() is None:
        for process, host in there.training().items():
            where[host.address].add(process.pid)
        time.sleep(0.5)
    print(driver.log.read_text())
    if driver.poll():
        raise RuntimeError(f"the study ended with {driver.poll()}")
    processes = {address: len(pids) for address, pids in where.items()}
    return rows(there.home, "list"), processes, time.monotonic() - began


def on_one_machine(folder: Path) -> tuple[list[Row], float]:
    """The rows, and the seconds."""
    path = write_study(folder / "alone.yaml", **_LIST, study="alone", resources={"concurrent": 1})
    began = time.monotonic()
    home = folder / "alone"
    home.mkdir()
    subprocess.run(
        python("-m", "search.cli", "run", str(path), "--address", "local"),
        env={**environment(folder, home), "PETL_CACHE": str(folder / "alone-cache")},
        check=True,
        stdout=(folder / "alone.log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    return rows(home, "alone"), time.monotonic() - began


def compare(there: Cluster) -> bool:
    """Prints both side by side; whether they are the same, bit for bit."""
    far, processes, far_seconds = on_three_hosts(there)
    near, near_seconds = on_one_machine(there.folder)
    training = ", ".join(f"{address} {number}" for address, number in processes.items())
    print(f"three hosts, PostgreSQL, MLflow server: {far_seconds:.0f} s; processes that trained: {training}")
    print(f"one machine, sqlite: {near_seconds:.0f} s\n")
    print("| design | seed | | validation accuracy | validation loss | test accuracy | adapter's SHA-256 |")
    print("|---|---|---|---|---|---|---|")
    for one, other in zip(far, near, strict=True):
        for row, place in ((one, "three hosts"), (other, "one machine")):
            scores = f"{row.validation!r} | {row.loss!r} | {row.test!r}"
            print(f"| {row.name} | {row.seed} | {place} | {scores} | {row.adapter[:16]} |")
    same = far == near and len(far) == len(DESIGNS) * len(SEEDS) and all(processes.values())
    print(f"\n{len(far)} trials: {'the same, bit for bit' if same else 'NOT the same'}")
    return same
