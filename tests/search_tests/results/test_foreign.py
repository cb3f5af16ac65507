"""Whatever a stranger writes into the store: it is left out, or shown, and nothing that reads it raises."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.entities import Experiment, Run, RunData, RunInfo, RunTag
from published import record
from rich.console import Console

from search.results import lists, tables
from search.results.plot import draw
from search.results.query import Study
from search.results.report.data import document, to_dict
from search.storage.errors import StoreError
from search.tracking import schema
from search.trials.record import State

INFO: dict[str, Any] = {
    "study": "demo",
    "objectives": {"score": "accuracy", "cost": "stored_parameters", "second_cost": None},
    "constraints": {"stored_percent": 5.0},
    "backbone": {"model": "tiny", "precision": "auto"},
    "task": {"name": "tweets"},
    "space": {"name": "unified"},
    "designs": {},
    "seeds": [],
    "seed": 0,
    "paper": None,
    "budget": {
        "trials": 3, "hours": 1.0, "device_hours": None, "money": 2.0, "price_per_device_hour": 1.5, "epochs": 3.0,
    },
    "resolved": {"rows": {"train": 100, "validation": 50}},
}  # fmt: skip
LIST = {
    **INFO,
    "designs": {"a": {"design": "lora", "training": {}, "seeds": [1, 2]}, "b": {"design": "mam", "seeds": []}},
    "paper": {"table": "12", "task": "xsum"},
}
PARENT = {"disk": {"used": 5, "limit": 10}, "spent": {"hours": 0.5, "device_hours": 1.0}}
TRIAL = {
    "counts": {"stored_parameters": 100.0},
    "final": {"validation": {"accuracy": 0.5, "loss": 1.0}, "test": {"accuracy": 0.5}},
    "believed": {"mean": 0.5, "spread": 0.1, "seeds": 2, "failed": 0, "probability": 0.5, "corrected": 0.4},
}
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
) | st.sampled_from([0, -1, 1e300, -1e300, 10**30, float("inf"), float("nan"), "", "\x1b[2J", "accuracy", {}, [], [1]])


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values in a JSON value, itself left out."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    value = copy.deepcopy(value)
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return value


def tags(values: dict[str, Any]) -> list[RunTag]:
    return [RunTag(name, text) for key, value in values.items() for name, text in pieces(key, value).items()]


def pieces(name: str, value: Any) -> dict[str, str]:
    return {name: value} if isinstance(value, str) else schema.split_text(name, json.dumps(value))


def mlflow_run(run_id: str, values: dict[str, Any]) -> Run:
    info = RunInfo(run_id, "1", "somebody", "FINISHED", 1_000, 2_000, "active", "file:///nowhere")
    return Run(info, RunData(tags=tags(values)))


def stored_trials() -> list[dict[str, Any]]:
    made = [
        record(0, 0.5, 100, name="a"),
        record(1, 0.6, 200, name="b"),
        record(2, 0.4, 50, reference="full"),
        record(3, 0.0, 1, state=State.FAIL, measurements=None, failure="diverged"),
        record(4, 0.0, 1, state=State.PRUNED, measurements=None, rungs={0.5: 0.3, 1.0: 0.4}),
    ]
    return [{**TRIAL, "record": one.to_dict()} for one in made]


def read(study: dict[str, Any], trials: list[dict[str, Any]]) -> Study:
    """As `load_study` reads it. Raises StoreError for a study that is left out."""
    experiment = Experiment("1", "demo", "file:///nowhere", "active", tags=[RunTag(schema.STUDY_TAG, "demo")])
    summary = schema.study_summary(experiment, mlflow_run("parent", study))
    rows = []
    for number, trial in enumerate(trials):
        with suppress(StoreError):
            rows.append(schema.trial_row(mlflow_run(str(number), trial)))
    return Study(summary, tuple(sorted(rows, key=lambda row: row.record.number)), "sqlite:///nowhere.db")


def show(study: Study, plot: Path | None = None) -> str:
    out = Console(file=io.StringIO(), width=200, markup=False, highlight=False)
    out.print(tables.studies_table([study]))
    tables.print_study(study, out)
    tables.print_ending(study, out)
    for trial in (*study.trials, *study.references):
        tables.print_trial(trial, out)
    with suppress(StoreError):  # no list, or no table to compare with
        lists.print_against(study, out)
        lists.compare(study).to_rows()
    front = study.front()
    front.to_frame().to_csv(io.StringIO())
    json.dumps([*front.to_rows(), *study.reference_rows()])
    json.dumps(to_dict(document([study])), allow_nan=False)
    study.to_frame()
    if plot:
        draw(study, front, plot / "front.png")
    return out.file.getvalue()  # type: ignore[attr-defined,no-any-return]


STUDIES = {"search": {**PARENT, "info": INFO}, "list": {**PARENT, "info": LIST}}
FIELDS = [(kind, path) for kind, study in STUDIES.items() for path in leaves(study)]
TRIAL_FIELDS = [(number, path) for number, trial in enumerate(stored_trials()) for path in leaves(trial)]


def test_a_study_as_we_write_it_is_shown(tmp_path: Path) -> None:
    for study in STUDIES.values():
        text = show(read(study, stored_trials()), tmp_path)
        assert "demo" in text
        assert "tiny" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"constraints": {"foo": 1}},
        {"backbone": {"model": 5}},
        {"budget": [1]},
        {"designs": {"a": {"seeds": 3}}},
        {"objectives": {"score": "accuracy", "cost": "accuracy"}},
    ],
)
def test_a_study_that_makes_no_sense_is_left_out(changes: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match="run parent makes no sense"):
        read({"info": {**INFO, **changes}}, stored_trials())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(field=st.sampled_from(FIELDS), value=ANY)
def test_no_value_of_a_study_raises(field: tuple[str, tuple[Any, ...]], value: Any) -> None:
    kind, path = field
    with suppress(StoreError):
        show(read(changed(STUDIES[kind], path, value), stored_trials()))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(field=st.sampled_from(TRIAL_FIELDS), value=ANY, kind=st.sampled_from(sorted(STUDIES)))
def test_no_value_of_a_trial_raises(field: tuple[int, tuple[Any, ...]], value: Any, kind: str) -> None:
    number, path = field
    trials = stored_trials()
    trials[number] = changed(trials[number], path, value)
    show(read(STUDIES[kind], trials))


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_value_spoils_the_picture(data: st.DataObject, tmp_path: Path) -> None:
    number, path = data.draw(st.sampled_from(TRIAL_FIELDS))
    trials = stored_trials()
    trials[number] = changed(trials[number], path, data.draw(ANY))
    show(read(STUDIES["search"], trials), tmp_path)


def test_every_part_is_a_field_of_these_tests() -> None:
    """A section that readers come to look at is fuzzed too."""
    assert set(schema.StudyInfo.__dataclass_fields__) <= set(LIST)
