"""Studies that commit ba3158e left, killed, stopped and finished: read and resumed as that commit itself does.

`tests/fixtures/store-ba3158e` says what they are and how they were made.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from scope import sampled

from petl.configuration import BEFORE, Configuration
from petl.head import OWN_HEAD
from search.results.query import Study, Trial, load_study
from search.study.run import resume

FIXTURE = Path(__file__).parents[1] / "fixtures/store-ba3158e"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())
WHERE = "/tmp/store"  # the studies were made there
CLOCKED = ("seconds", "tokens_per_second", "peak_memory_mb", "latency_ms")
LATER = ("head_parameters",)  # that the commit did not measure


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The store at a place of its own, which is this process's home."""
    root = tmp_path_factory.mktemp("store")
    with tarfile.open(FIXTURE / "store.tar.gz") as archive:
        archive.extractall(root, filter="data")
    for name in ("optuna", "mlflow"):
        dump = (root / f"home/{name}.sql").read_text().replace(WHERE, str(root))
        with sqlite3.connect(root / f"home/{name}.db") as database:
            database.executescript(dump)
        database.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETL_SEARCH_HOME", str(root / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield root


def as_it_was(configuration: Configuration) -> dict[str, Any]:
    """A configuration as that commit wrote it, before a training had the fields that do here what was done there."""
    data = configuration.to_dict()
    later = {name for name, value in BEFORE.items() if data["training"][name] == value}
    assert data.pop("head") == OWN_HEAD.to_dict()
    return {**data, "training": {name: value for name, value in data["training"].items() if name not in later}}


def facts(trial: Trial) -> dict[str, Any]:
    """What a trial is and came to, but for times and memory."""
    record, seeds = trial.record, trial.seed_summary
    measured = record.measurements.to_dict() if record.measurements else None
    return {
        "number": record.number,
        "name": record.name,
        "reference": record.reference,
        "state": str(record.state),
        "configuration": record.configuration and as_it_was(record.configuration),
        "params": dict(record.params),
        "rungs": [[epoch, score] for epoch, score in sorted(record.rungs.items())],
        "failure": record.failure,
        "measurements": measured
        and {name: value for name, value in measured.items() if name not in (*CLOCKED, *LATER)},
        "seeds": seeds
        and {
            "mean": seeds.mean,
            "spread": seeds.spread,
            "count": seeds.seeds,
            "probability": seeds.probability,
        },
    }


def check(study: Study, trained: Collection[int] | None = None) -> None:
    """Compare a study with what ba3158e made of it: all of it, or where trials were `trained` here, but those."""
    expected = EXPECTED[study.name]
    trials = {fact["number"]: fact for fact in map(facts, (*study.references, *study.trials))}
    for fact in (*expected["references"], *expected["trials"]):
        found = trials.pop(fact["number"])
        assert found == fact or (trained is not None and fact["number"] in trained)
    assert not trials
    if trained is None:
        front = [[trial.record.number, trial.design_text, trial.score, trial.cost] for trial in study.front()]
        assert front == expected["front"]


@pytest.fixture(scope="module")
def said(store: Path) -> dict[str, Any]:
    """The probabilities that the adapters of the finished study give to three rows here."""
    texts = list(pd.read_csv(store / "inputs/rows.csv")["text"][:3])
    return {
        str(trial.record.number): trial.load_model(str(store / "inputs/backbone")).probabilities(texts).tolist()
        for trial in load_study("finished").front()
    }


def test_a_finished_study_reads_as_it_did(store: Path) -> None:
    check(load_study("finished"))


def test_its_adapters_say_what_they_said(said: dict[str, Any]) -> None:
    expected = EXPECTED["finished"]["probabilities"]
    assert said.keys() == expected.keys()
    for number, rows in said.items():
        for row, other in zip(rows, expected[number], strict=True):
            assert row == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize(
    "name", sampled("studies of long ago that are resumed", ["killed", "stopped"], lambda name: name == "stopped")
)
def test_a_study_that_was_cut_off_comes_to_the_same(store: Path, name: str, said: dict[str, Any]) -> None:
    """Points, rungs, scores, replicates and the front, to the last bit, though its names are of long ago.

    On a processor that rounds as the one did on which the store was made. On another one, what is trained here comes to
    something else, and what was finished before stays as it was.
    """
    before = load_study(name)
    there = {trial.number for trial in before.all_trials if not trial.state.open}
    same = said == EXPECTED["finished"]["probabilities"]
    study = resume(name, console=Console(quiet=True))
    check(study, None if same else {trial.number for trial in study.all_trials} - there)
    assert study.summary.status == "FINISHED"
    assert len(study.trials) == len(EXPECTED[name]["trials"])
