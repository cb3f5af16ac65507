"""Warm start: which designs of earlier fronts a study begins with."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop import BACKBONE, OPTIONS, TRAINING, count, plan, run

from petl.configuration import Configuration, Training
from petl.design import Design
from petl.measurements import Measurements
from petl.presets import parse
from search.config.loading import load_config
from search.config.text import ConfigError
from search.optimizer.budget import Budget
from search.optimizer.search import Search
from search.results.query import Study, load_study
from search.study.warm_start import _covering, prior
from search.tracking.schema import StudyInfo, StudySummary, TrialRow
from search.tracking.writer import MlflowTracker
from search.trials.pareto import hypervolume
from search.trials.record import State, TrialRecord
from search.trials.records import Records
from search.trials.resolved import Enqueued
from spaces.space import decode, encode, resolve

SPACE = {"name": "unified", **OPTIONS}


@pytest.fixture
def earlier(tmp_path: Path) -> Callable[..., Study]:
    """A finished study of designs with their accuracies, at a learning rate of its own."""

    def made(name: str, **accuracies: float) -> Study:
        uri = f"sqlite:///{tmp_path}/mlflow.db"
        info = {"study": name, "objectives": {"score": "accuracy", "cost": "stored_parameters"}}
        tracker = MlflowTracker.open(uri, name, tmp_path / "artifacts", info)
        for number, (text, accuracy) in enumerate(accuracies.items()):
            configuration = Configuration(parse(text), Training(epochs=9, learning_rate=2e-3))
            stored = int(count(configuration)["stored_parameters"])
            measured = Measurements(accuracy=accuracy, stored_parameters=stored, base_parameters=100_000, epochs=9)
            tracker.publish(
                TrialRecord(number=number, state=State.COMPLETE, configuration=configuration, measurements=measured)
            )
        return load_study(name, uri)

    return made


def begun(*studies: Study, trials: int = 30, **changes: Any) -> list[str]:
    """The designs, checked for what holds of all of them."""
    settings: dict[str, Any] = {
        "space": SPACE,
        "backbone": BACKBONE,
        "base": Configuration(Design(), TRAINING, 7),
        "allowed": lambda configuration: True,
    }
    found = prior(studies, trials=trials, **{**settings, **changes})
    space = resolve("unified", OPTIONS, TRAINING, seed=7)
    for item in found:
        configuration = item.configuration
        assert configuration.training == Training(**{**vars(TRAINING), "learning_rate": 2e-3})
        assert decode(space, item.coordinates, BACKBONE).configuration.key == configuration.key
    return [item.name for item in found]


FRONT = {"bitfit": 0.5, "lora:rank=4,scale=2": 0.6, "lora:rank=16,scale=2": 0.7, "lora:rank=64,scale=2": 0.8}


def test_the_best_comes_first_then_the_smallest_then_what_lies_between(earlier: Callable[..., Study]) -> None:
    beaten = {"lora:rank=16,scale=2": 0.55}  # by a smaller one
    names = begun(earlier("demo", **{**FRONT, **beaten}))
    assert [name.rpartition(" (")[2] for name in names] == ["from demo 3)", "from demo 0)", "from demo 1)"]
    assert names[0].startswith("lora")


def test_of_three_objectives_the_cost_that_rules_counts() -> None:
    """Here the second: the best score first, then the fewest parameters, whatever their latency is."""
    members = [
        trial(number, accuracy, stored, latency)
        for number, (accuracy, latency, stored) in enumerate(
            [(0.90, 50.0, 1_000_000), (0.85, 40.0, 10_000), (0.88, 10.0, 900_000), (0.80, 45.0, 100)]
        )
    ]
    summary = StudySummary(
        name="three",
        experiment_id="1",
        run_id="p",
        status="FINISHED",
        started=0.0,
        info=StudyInfo.from_dict(
            {"objectives": {"score": "accuracy", "cost": "latency_ms", "second_cost": "stored_parameters"}}
        ),
    )
    study = Study(summary, tuple(TrialRow(record=each, run_id=str(each.number)) for each in members), "sqlite:///no.db")
    assert [each.number for each in _covering(study)][:2] == [0, 3]


def trial(number: int, accuracy: float, stored: int, latency: float) -> TrialRecord:
    measured = Measurements(accuracy=accuracy, stored_parameters=stored, latency_ms=latency, base_parameters=10**8)
    configuration = Configuration(parse(f"lora:rank={number + 1}"), Training(epochs=9))
    return TrialRecord(number=number, state=State.COMPLETE, configuration=configuration, measurements=measured)


def test_fronts_take_turns_and_twins_count_once(earlier: Callable[..., Study]) -> None:
    one, other = earlier("one", **FRONT), earlier("other", **{"lora:rank=64,scale=2": 0.4, "lora:rank=4,scale=2": 0.3})
    origins = [name.rpartition("from ")[2].split()[0] for name in begun(one, other)]
    assert origins == ["one", "one", "other", "one"]  # other's best is one's


def test_a_prior_costs_a_few_trials_at_most(earlier: Callable[..., Study]) -> None:
    many = {f"lora:rank={rank},scale={scale}": 0.5 + rank / 1000 for rank in (4, 16, 64) for scale in (1, 2)}
    study = earlier("demo", **FRONT, **{name: value for name, value in many.items() if name not in FRONT})
    assert len(begun(study, trials=300)) <= 5
    assert len(begun(study, trials=12)) == 2
    assert len(begun(study, trials=3)) == 1


@pytest.mark.full("eight searches")
def test_a_bad_prior_is_forgotten() -> None:
    """Five designs that could not be worse to begin with: thirty trials come to almost what they come to without."""

    def volume(seed: int, enqueued: list[Enqueued]) -> float:
        records = Records.in_memory()
        run(Search(records, plan(sampler="front", seed=seed, budget=Budget(trials=30), enqueued=enqueued)))
        values = [
            (record.measurements.accuracy, math.log1p(record.measurements.stored_parameters / 1e3))
            for record in records.all()
            if record.measurements
        ]
        return hypervolume(values, (0.3, math.log1p(12.0)), ("maximize", "minimize"))

    designs = [(f"lora:rank=64,scale={scale}", 1e-4) for scale in (1, 2, 4)]
    designs += [(f"houlsby:size={size}", 1e-2) for size in (16, 64)]
    worst = [Configuration(parse(text), Training(epochs=3, learning_rate=rate)) for text, rate in designs]
    bad = [
        Enqueued(f"bad {index}", each, encode("unified", each.design, each.training.learning_rate, BACKBONE, OPTIONS))
        for index, each in enumerate(worst)
    ]
    assert all(item.coordinates for item in bad)
    without, with_it = ([volume(seed, given) for seed in range(4)] for given in ([], bad))
    assert np.mean(with_it) > 0.98 * np.mean(without)


def test_what_the_space_or_the_limits_do_not_have_is_left_out(earlier: Callable[..., Study]) -> None:
    study = earlier("demo", **FRONT, **{"lora:rank=512": 0.9})  # a rank that the space does not have
    small = begun(study, allowed=lambda configuration: count(configuration)["stored_parameters"] <= 400)
    assert 0 < len(small) < 4
    assert not any("from demo 4)" in name for name in begun(study))
    assert begun(study, space={"name": "my:own"}) == []


def test_a_list_and_itself_are_refused(tmp_path: Path) -> None:
    from studies import study

    with pytest.raises(ConfigError, match="started by others than itself; received"):
        load_config(study(tmp_path, warm_start=["tiny"]))
