"""Replicates through everything real: a study that has some, is interrupted, and one that is asked for them later."""

from __future__ import annotations

import csv
import io
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import studies
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console
from typer.testing import CliRunner

from search.cli import app
from search.config.loading import load_config
from search.config.text import ConfigError
from search.results import tables as report
from search.results.query import Study, load_study
from search.storage.errors import StoreError
from search.storage.locations import home as home_
from search.storage.locations import store_uri
from search.storage.studies import open_study
from search.study.places import InterruptedStudy
from search.study.run import resume, run

TRIALS, EPOCHS = 6, 2
REPLICATES = {"per_trial": 2, "extra": 1.0}


@pytest.fixture(scope="module")
def content(home: Path) -> dict[str, Any]:
    return studies.study(
        home / "inputs",
        budget={"trials": TRIALS, "epochs": EPOCHS},
        references=["majority"],
        sampler={"name": "random"},
        scheduler={"name": "none"},
        replicates=REPLICATES,
        resources={"concurrent": 1},  # so that nothing depends on who is first
    )


def write(home: Path, content: dict[str, Any], name: str, **sections: Any) -> Path:
    path = home / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**content, **sections, "study": name}))
    return path


@pytest.fixture(scope="module")
def replicated(home: Path, content: dict[str, Any]) -> tuple[Study, str]:
    console = Console(record=True, width=250, file=io.StringIO())
    return run(write(home, content, "replicated"), console=console), console.export_text()


def grandchildren(name: str) -> list[Run]:
    client = MlflowClient(store_uri(None))
    experiment = client.get_experiment_by_name(name)
    assert experiment
    return list(client.search_runs([experiment.experiment_id], "tags.kind = 'replicate'"))


def scores(name: str) -> dict[tuple[int, int], float]:
    return {
        (int(child.data.tags["trial"]), int(child.data.tags["seed"])): child.data.metrics["accuracy"]
        for child in grandchildren(name)
    }


def test_replicates_are_grandchildren_and_no_trials(replicated: tuple[Study, str], home: Path) -> None:
    study, said = replicated
    assert len(study.trials) == TRIALS
    found = grandchildren("replicated")
    assert 2 <= len(found) <= TRIALS  # as many epochs as the search had, at most
    assert {child.info.status for child in found} == {"FINISHED"}
    for child in found:
        trial = study.trial(int(child.data.tags["trial"]))
        assert child.data.tags["mlflow.parentRunId"] == trial.run_id
        assert child.data.metrics["epochs"] == EPOCHS
    assert said.count("trains again") == len(found)
    assert not list((home / "studies/replicated/trials").glob("*/seed-*"))  # scores are all that is kept


def test_what_is_said_of_a_trial_is_of_its_runs(replicated: tuple[Study, str]) -> None:
    study, _ = replicated
    again = scores("replicated")
    for trial in study.trials:
        own = [trial.score, *(score for (number, _), score in again.items() if number == trial.number)]
        belief = trial.seed_summary
        if belief is None:
            assert len(own) == 1
            continue
        assert belief.seeds == len(own)
        assert belief.mean == pytest.approx(np.mean(own))
        assert belief.spread == pytest.approx(np.std(own, ddof=1) if len(own) > 1 else 0.0)
    assert any(trial.seed_summary and trial.seed_summary.seeds > 1 for trial in study.front())


def test_the_front_that_is_sure(replicated: tuple[Study, str]) -> None:
    study, _ = replicated
    by = {trial.number: trial.seed_summary.probability for trial in study.trials if trial.seed_summary}
    for most in (0.0, 0.05, 0.5):
        chances = sorted(by.values(), reverse=True)
        count = max(n for n in range(len(chances) + 1) if sum(1 - p for p in chances[:n]) <= most * n + 1e-12)
        members = study.front(fdr=most)
        assert len(members) == count
        assert all(by[trial.number] >= chances[count - 1] for trial in members)
        costs = [trial.cost for trial in members]
        assert costs == sorted(costs)
    assert [t.number for t in study.front(fdr="50%")] == [t.number for t in study.front(fdr=0.5)]
    console = Console(record=True, width=250, file=io.StringIO())
    report.print_ending(study, console)
    said = console.export_text()
    assert "mean ± spread" in said
    assert "petl-search front replicated --fdr 5%" in said


def test_what_people_and_programs_read(replicated: tuple[Study, str], home: Path) -> None:
    study, _ = replicated
    front = study.front()
    rows = list(csv.DictReader((home / "studies/replicated/front.csv").open()))
    assert [float(row["believed_mean"]) for row in rows] == pytest.approx([t.seed_summary.mean for t in front])
    assert (home / "studies/replicated/front.png").stat().st_size > 10_000
    result = CliRunner().invoke(app, ["front", "replicated", "--fdr", "50%", "--format", "json"])
    assert result.exit_code == 0, result.output
    assert f'"trial": {study.front(fdr=0.5)[0].number}' in result.output
    result = CliRunner().invoke(app, ["front", "replicated", "--fdr", "0%", "--max-parameters", "0"])
    none = not len(study.front(fdr=0, max_parameters=0))  # a design without parameters may be on it for certain
    assert (result.exit_code, "no trial can be named with at most 0 % false ones" in result.output) == (0, none)
    console = Console(record=True, width=250, file=io.StringIO())
    report.print_trial(front[0], console)
    assert "on the true front" in console.export_text()
    client = MlflowClient(store_uri(None))
    note = client.get_run(study.summary.run_id).data.tags["mlflow.note.content"]
    assert "mean ± spread (seeds)" in note


def test_finished_replicates_are_not_trained_again(replicated: tuple[Study, str]) -> None:
    before = {child.info.run_id for child in grandchildren("replicated")}
    console = Console(record=True, width=200, file=io.StringIO())
    study = resume("replicated", console=console)
    assert "trains again" not in console.export_text()
    assert {child.info.run_id for child in grandchildren("replicated")} == before
    assert study.front().to_rows() == replicated[0].front().to_rows()


class Terminating(io.StringIO):
    """Has this process terminated when the second replicate starts."""

    def write(self, text: str) -> int:
        done = super().write(text)
        if "trains again" in text and self.getvalue().count("trains again") == 2:
            signal.raise_signal(signal.SIGTERM)
        return done


@pytest.mark.full("a search of its own, twice")
def test_interrupted_replicates_end_as_if_nothing_had_happened(
    replicated: tuple[Study, str], home: Path, content: dict[str, Any]
) -> None:
    with pytest.raises(InterruptedStudy):
        run(write(home, content, "late"), console=Console(file=Terminating(), width=200))
    assert len(grandchildren("late")) < len(grandchildren("replicated"))
    resume("late", console=Console(quiet=True))
    assert scores("late") == scores("replicated")
    assert [t.seed_summary for t in load_study("late").trials] == [t.seed_summary for t in replicated[0].trials]


@pytest.fixture(scope="module")
def plain(home: Path, content: dict[str, Any]) -> Study:
    """The same designs, since the sampler is random, with the next seed and without replicates."""
    return run(write(home, content, "plain", seed=1, replicates={}), console=Console(quiet=True))


@pytest.mark.full("a search of its own; test_training has a replicate")
def test_a_replicate_trains_as_a_study_of_its_seed_does(replicated: tuple[Study, str], plain: Study) -> None:
    again = {number: score for (number, seed), score in scores("replicated").items() if seed == 1}
    assert again == {number: plain.trial(number).score for number in again}
    assert again != {number: replicated[0].trial(number).score for number in again}


@pytest.mark.full("a search of its own")
def test_a_finished_study_may_ask_for_replicates(replicated: tuple[Study, str], plain: Study) -> None:
    assert all(trial.seed_summary is None for trial in plain.trials)
    assert "believed_mean" not in plain.front().to_frame().columns
    with pytest.raises(StoreError, match=r"fdr needs replicates.*--set replicates.per_trial=5"):
        plain.front(fdr=0.05)
    overrides = ["replicates.per_trial=2", "replicates.extra=1"]
    study = resume("plain", overrides=overrides, console=Console(quiet=True))
    found, others = scores("plain"), scores("replicated")
    assert {seed for _, seed in found} <= {2, 3}
    assert found
    assert all(found[key] == others[key] for key in found.keys() & others.keys())
    assert len(study.front(fdr=0.5)) > 0


@pytest.mark.full("a search of its own")
def test_beliefs_are_of_all_trials_there_are(replicated: tuple[Study, str], plain: Study) -> None:
    """A study with replicates that goes on without more of them."""
    overrides = ["budget.trials=9", "replicates.per_trial=0"]
    before = load_study("plain")
    study = resume("plain", overrides=overrides, console=Console(quiet=True))
    assert len(study.trials) == 9
    assert grandchildren("plain")
    records = open_study(f"sqlite:///{home_()}/optuna.db", "plain", writes=False)
    found = records.summaries
    assert set(found) == {trial.number for trial in study.trials}
    assert {trial.number: trial.seed_summary for trial in before.trials if trial.seed_summary}
    for trial in study.trials:
        if trial.seed_summary:
            assert trial.seed_summary == found[trial.number]
        else:
            assert found[trial.number].probability == 0


@pytest.mark.parametrize("share", ["a few", "-1%", "100%", 1.5])
def test_a_share_is_a_share(replicated: tuple[Study, str], share: Any) -> None:
    with pytest.raises(StoreError, match=r"fdr is a share like 0.05 or 5%"):
        replicated[0].front(fdr=share)


def test_replicates_are_of_the_studys_own_objectives(replicated: tuple[Study, str]) -> None:
    with pytest.raises(StoreError, match="own objectives; received cost 'latency_ms'"):
        replicated[0].front(cost="latency_ms", fdr=0.05)


def test_a_list_names_its_seeds_itself(content: dict[str, Any]) -> None:
    listed = {**content, "designs": {"lora": {"design": "lora:rank=1"}}, "budget": {"epochs": 1}}
    with pytest.raises(ConfigError, match="a list names its seeds itself"):
        load_config(listed)
    for wrong in ({"per_trial": -1}, {"extra": 0}, {"seed": 3}):
        with pytest.raises(ConfigError, match="replicates"):
            load_config({**content, "replicates": wrong})
