"""Questions to a study, answered from a real sqlite store."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from published import BASE, INFO, record

import search
from petl.configuration import Configuration
from petl.design import Design
from search import load_study
from search.results.query import ROW, ParetoFront, Study
from search.storage.errors import StoreError
from search.tracking.schema import StudyInfo, StudySummary, TrialRow
from search.tracking.writer import MlflowTracker
from search.trials.record import State, TrialRecord

RECORDS = [
    record(0, 0.50, 0),  # front
    record(1, 0.60, 1_000, name="lora:rank=2"),  # front
    record(2, 0.59, 2_000),  # dominated by 1
    record(3, 0.70, 20_000),  # front
    record(4, 0.70, 20_000),  # the same as 3
    record(5, 0.90, 60_000),  # over the study's limit
    record(6, 0.95, 10, state=State.PRUNED),
    record(7, 0.95, 10, state=State.FAIL, failure="diverged: loss"),
    record(8, 0.99, BASE, reference="full"),
    record(9, 0.40, 0, reference="majority", configuration=None),
    record(10, math.nan, 5),
    record(11, 0.705, 30_000),  # front
    TrialRecord(number=12, state=State.RUNNING, configuration=Configuration(Design()), rungs={1.0: 0.5}),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, MlflowTracker]:
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    tracker = MlflowTracker.open(uri, "demo", folder / "artifacts", INFO)
    for one in RECORDS:
        tracker.publish(one)
    tracker.facts(1, {"final": {"test": {"accuracy": 0.58}}})
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "design.json").write_text("{}")
    tracker.artifacts(1, adapter)
    return uri, tracker


@pytest.fixture(scope="module")
def study(store: tuple[str, MlflowTracker]) -> Study:
    return load_study("demo", store[0])


def test_only_complete_feasible_trials_are_on_the_front(study: Study) -> None:
    assert [trial.number for trial in study.front()] == [0, 1, 3, 11]
    assert [trial.number for trial in study.references] == [8, 9]
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12]


@pytest.mark.parametrize(
    ("bound", "members"),
    [(1_000, [0, 1]), ("1000", [0, 1]), ("20,000", [0, 1, 3]), ("2%", [0, 1, 3]), ("0.05 %", [0]), (0, [0])],
)
def test_max_parameters(study: Study, bound: int | str, members: list[int]) -> None:
    assert [trial.number for trial in study.front(max_parameters=bound)] == members


@pytest.mark.parametrize("bound", ["many", "-1", "1%%", "nan", ""])
def test_a_bound_that_is_none(study: Study, bound: str) -> None:
    with pytest.raises(StoreError, match="like 200000 or a share like 1%"):
        study.front(max_parameters=bound)


def test_a_bound_never_loosens_the_limit_of_the_study(study: Study) -> None:
    assert [trial.number for trial in study.front(max_parameters="50%")] == [0, 1, 3, 11]


def test_another_cost(study: Study) -> None:
    front = study.front(cost="seconds")
    assert [trial.number for trial in front] == [11]  # the quickest and the best
    assert front[0].cost == 89.0


def test_rows_have_exactly_these_keys(study: Study) -> None:
    rows = study.front().to_rows()
    assert [list(row) for row in rows] == [
        [
            "trial", "name", "design", "score", "metric", "stored_parameters", "stored_percent",
            "trained_parameters", "test_score", "seconds", "run_id", "dominated_by",
        ]
    ] * 4  # fmt: skip
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert {**rows[1], "run_id": ""} == {
        "trial": 1,
        "name": "lora:rank=2",
        "design": "lora query 2",
        "score": 0.60,
        "metric": "accuracy",
        "stored_parameters": 1_000,
        "stored_percent": 0.1,
        "trained_parameters": 1_050,
        "test_score": 0.58,
        "seconds": 99.0,
        "run_id": "",
        "dominated_by": [],
    }
    assert rows[0]["test_score"] is None


def test_a_trial_that_still_runs_has_its_counts(store: tuple[str, MlflowTracker]) -> None:
    store[1].publish(RECORDS[12], {"stored_parameters": 77, "stored_percent": 0.0077, "trained_parameters": 80})
    trial = load_study("demo", store[0]).trial(12)
    assert (trial.cost, trial.score) == (77, None)
    assert (trial.to_row()["stored_parameters"], trial.to_row()["seconds"]) == (77, None)


def test_references_have_rows(study: Study) -> None:
    assert [(row["name"], row["score"]) for row in study.reference_rows()] == [("full", 0.99), ("majority", 0.4)]


def test_frames(study: Study) -> None:
    frame = study.front().to_frame()
    assert list(frame.columns) == [*ROW, "dominated_by"]
    assert list(frame.trial) == [0, 1, 3, 11]
    everything = study.to_frame().set_index("trial")
    assert len(everything) == len(RECORDS)
    assert everything.loc[3, "query.rank"] == "4"
    assert everything.loc[7, "state"] == "fail"


def test_best(study: Study) -> None:
    front = study.front()
    assert front.best().number == 11
    assert front.best(within=0.01).number == 3
    assert front.best(within=1).number == 0
    assert front.best(within=0.005).number == 3  # exactly at the margin, whatever the floats say
    with pytest.raises(StoreError, match="no trial within the limits is complete"):
        ParetoFront((), front.objectives).best()


def test_hypervolume(study: Study) -> None:
    knee = study.objectives[1].knee
    assert knee is not None
    top = math.log1p(BASE / knee)
    edges = [(0.50, 0), (0.10, 1_000), (0.10, 20_000), (0.005, 30_000)]
    expected = sum(gain * (top - math.log1p(stored / knee)) for gain, stored in edges)
    assert study.front().hypervolume == pytest.approx(expected)
    assert study.front(max_parameters=1_000).hypervolume < expected
    assert ParetoFront((), study.objectives).hypervolume == 0.0


def test_an_empty_study(store: tuple[str, MlflowTracker], tmp_path: Path) -> None:
    MlflowTracker.open(store[0], "empty", tmp_path, INFO)
    study = load_study("empty", store[0])
    assert (len(study.front()), study.trials, study.references, len(study.to_frame())) == (0, (), (), 0)
    with pytest.raises(StoreError, match="none yet"):
        study.trial(0)


def test_one_trial(study: Study, tmp_path: Path) -> None:
    trial = study.trial(1)
    assert trial.record == RECORDS[1]
    assert repr(trial) == "<Trial 1 'lora:rank=2': accuracy 0.6000>"
    assert (trial.export(tmp_path / "out") / "design.json").read_text() == "{}"
    with pytest.raises(StoreError, match="no trial 99; its numbers: 0 to 12"):
        study.trial(99)


def test_load_model_reads_the_adapter_of_the_run(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    from petl.adapters import storage

    monkeypatch.setattr(storage, "load_model", lambda folder, backbone: (folder / "design.json").read_text())
    assert study.trial(1).load_model() == "{}"


def test_the_store_is_found_by_environment(
    store: tuple[str, MlflowTracker], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = Path(store[0].removeprefix("sqlite:///")).parent
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PETL_SEARCH_HOME", str(folder))
    assert load_study("demo").name == "demo"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")  # goes before home
    with pytest.raises(StoreError, match=r"other\.db"):
        load_study("demo")
    assert load_study("demo", store[0]).name == "demo"  # goes before both
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.delenv("PETL_SEARCH_HOME")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=f"{tmp_path}/petl-search/mlflow.db"):
        load_study("demo")


def test_unknown_study(store: tuple[str, MlflowTracker]) -> None:
    with pytest.raises(StoreError, match=r"no study 'dmeo'.*demo"):
        load_study("dmeo", store[0])


def test_reading_loads_no_torch_and_importing_loads_nothing(store: tuple[str, MlflowTracker]) -> None:
    code = (
        "import sys, search\n"
        "assert 'mlflow' not in sys.modules and 'numpy' not in sys.modules\n"
        f"rows = search.load_study('demo', {store[0]!r}).front().to_frame()\n"
        "assert len(rows) == 4\n"
        "print([name for name in ('torch', 'transformers', 'deepspeed', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == "[]"


def test_the_package_lists_its_names() -> None:
    for name in search.__all__:
        assert getattr(search, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        search.nothing  # noqa: B018


THREE = {"score": "accuracy", "cost": "stored_parameters", "second_cost": "latency_ms"}


def drawn(count: int, seed: int, **objectives: str) -> Study:
    """Complete trials of few distinct values, so that many are equal in one objective or two, and an equal pair.

    What costs more scores better, with luck.
    """
    draw = np.random.default_rng(seed)
    records = []
    for number in range(count):
        size, latency, luck = (int(value) for value in draw.integers(8, size=3))
        one = record(number, (size + latency + luck) / 25, size * 500)
        assert one.measurements
        measured = replace(one.measurements, latency_ms=1.0 + latency)
        records.append(replace(one, measurements=measured))
    records.append(replace(records[0], number=count))
    info = {**INFO, "objectives": {**THREE, **objectives}}
    summary = StudySummary(
        name="demo", experiment_id="1", run_id="p", status="FINISHED", started=0.0, info=StudyInfo.from_dict(info)
    )
    rows = tuple(TrialRow(record=each, run_id=str(each.number)) for each in records)
    return Study(summary, rows, "sqlite:///nowhere.db")


@pytest.mark.parametrize("seed", range(5))
def test_a_front_of_three_objectives_is_what_nobody_dominates(seed: int) -> None:
    study = drawn(40, seed)
    losses = {}
    for trial in study.trials:
        assert trial.score is not None
        losses[trial.number] = (-trial.score, trial.cost, trial.second_cost)
    expected = [
        number
        for number, own in losses.items()
        if not any(
            all(a <= b for a, b in zip(other, own, strict=True)) and (other != own or rival < number)
            for rival, other in losses.items()
            if rival != number
        )
    ]
    front = study.front()
    assert sorted(trial.number for trial in front) == expected
    assert [(trial.cost, trial.second_cost) for trial in front] == sorted(losses[number][1:] for number in expected)
    good = [trial for trial in front if trial.score >= max(each.score for each in front) - 0.15]
    assert front.best(within=0.15).cost == min(trial.cost for trial in good)


@pytest.mark.parametrize("seed", range(3))
def test_the_volume_of_three_objectives_by_inclusion_and_exclusion(seed: int) -> None:
    front = drawn(12, seed).front()
    top = math.log1p(BASE / 1_000)  # the counts' knee
    boxes = [(t.score, top - math.log1p(t.cost / 1_000), 1_000 - t.second_cost) for t in front]
    expected = sum(
        (-1) ** (size + 1) * math.prod(map(min, zip(*some, strict=True)))
        for size in range(1, len(boxes) + 1)
        for some in combinations(boxes, size)
    )
    assert len(boxes) > 2
    assert front.hypervolume == pytest.approx(expected)


def test_one_cost_of_two_can_be_asked_for() -> None:
    study, pair = drawn(40, 0), ("accuracy", "latency_ms")
    front = study.front(cost="latency_ms")
    assert tuple(objective.name for objective in front.objectives) == pair
    assert [trial.second_cost for trial in front] == [None] * len(front)
    scores = [trial.score for trial in front]
    assert scores == sorted(set(scores))  # better the dearer, as of any pair
    best = {t.number: max(o.score for o in study.trials if o.second_cost <= t.second_cost) for t in study.trials}
    assert all(trial.score == best[trial.number] for trial in front)


def test_a_second_cost_has_a_column() -> None:
    front = drawn(20, 0).front()
    assert [list(row) for row in front.to_rows()] == [[*ROW, "latency_ms", "dominated_by"]] * len(front)
    assert [row["latency_ms"] for row in front.to_rows()] == [trial.second_cost for trial in front]
    assert list(front.to_frame().columns) == [*ROW, "latency_ms", "dominated_by"]
    assert "latency_ms" in drawn(20, 0).to_frame().columns
    assert list(drawn(20, 0, second_cost="seconds").front().to_frame().columns) == [*ROW, "dominated_by"]
    assert list(ParetoFront((), front.objectives).to_frame().columns) == [*ROW, "latency_ms", "dominated_by"]
