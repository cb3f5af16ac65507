"""The saved views of MLflow's page: what is written and when, what stays a person's, and the page's own schema."""

from __future__ import annotations

import base64
import json
import re
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from published import INFO, record

from search.results.query import load_study
from search.tracking.schema import GREY
from search.tracking.views import Views, address
from search.tracking.writer import MlflowTracker
from search.trials.objectives import objectives

TAG = "mlflow.sharedViewState."
NAMES = [
    "Front",
    "Trained in full",
    "Under 1 %",
    "By method",
    "References",
    "Failed",
    "Replicates",
    "All trials",
]
POINT = {"ffn.size": 8, "ffn.insertion": "parallel", "learning_rate": 0.001}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the module: making a database takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def tracker(uri: str, request: pytest.FixtureRequest, tmp_path: Path) -> MlflowTracker:
    return opened(uri, request.node.name, tmp_path)


def opened(uri: str, study: str, tmp_path: Path, **sought: str) -> MlflowTracker:
    info = {**INFO, "objectives": {**INFO["objectives"], **sought}}
    return MlflowTracker.open(uri, study, tmp_path / "artifacts", info)


def tags(tracker: MlflowTracker) -> dict[str, str]:
    found: dict[str, str] = tracker._client.get_experiment(tracker.experiment_id).tags
    return {name: text for name, text in found.items() if name.startswith(TAG)}


def state(text: str) -> dict[str, Any]:
    """The state in a view's envelope, as the page reads it: JSON, compressed in zlib's format."""
    packed = json.loads(text)["state"].removeprefix("deflate;")
    shown: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return shown


def axes(tracker: MlflowTracker) -> set[tuple[str, ...]]:
    """The parameters in the parallel coordinates of all views."""
    charts = [chart for text in tags(tracker).values() for chart in state(text)["compareRunCharts"]]
    return {tuple(chart["selectedParams"]) for chart in charts if chart["type"] == "PARALLEL"}


def test_a_study_has_its_views_before_its_first_trial(tracker: MlflowTracker) -> None:
    listed = sorted(map(json.loads, tags(tracker).values()), key=lambda envelope: -envelope["createdAt"])
    assert [envelope["name"] for envelope in listed] == NAMES  # as the page sorts them
    assert max(map(len, tags(tracker).values())) < 5_000  # the tags of MLflow's older servers


def test_the_front_is_in_order_of_its_cost_with_what_a_choice_needs(tracker: MlflowTracker) -> None:
    front = state(tags(tracker)[TAG + "front"])
    assert (front["searchFilter"], front["orderByKey"], front["orderByAsc"]) == (
        "tags.on_front = 'true'",
        "metrics.`stored_parameters`",
        True,
    )
    needed = ["accuracy", "stored_parameters", "stored_percent", "test_accuracy", "believed_mean", "believed_spread"]
    assert front["selectedColumns"][:6] == [f"metrics.`{name}`" for name in needed]
    assert "tags.`design`" in front["selectedColumns"]
    scatter = [chart for chart in front["compareRunCharts"] if chart["type"] == "SCATTER"]
    drawn = [(chart["xaxis"]["key"], chart["yaxis"]["key"]) for chart in scatter]
    assert drawn == [("stored_parameters", "accuracy"), ("accuracy", "test_accuracy")]


def test_a_loss_is_best_where_it_is_least_and_both_costs_are_drawn(uri: str, tmp_path: Path) -> None:
    tracker = opened(uri, "loss", tmp_path, score="loss", cost="latency_ms", second_cost="stored_parameters")
    shown = {name.removeprefix(TAG): state(text) for name, text in tags(tracker).items()}
    assert (shown["references"]["orderByKey"], shown["references"]["orderByAsc"]) == ("metrics.`loss`", True)
    assert shown["methods"]["groupBy"]["aggregateFunction"] == "min"
    assert shown["front"]["orderByKey"] == "metrics.`latency_ms`"
    charts = shown["front"]["compareRunCharts"]
    assert [chart["xaxis"]["key"] for chart in charts if "xaxis" in chart] == [
        "latency_ms",
        "stored_parameters",
        "loss",
    ]
    logarithmic = [chart["metricKey"] for chart in charts if chart.get("scaleType") == "log"]
    assert logarithmic == ["stored_parameters"]  # a latency is drawn as it is


def test_the_parallel_axes_are_the_dimensions_that_every_point_has(
    tracker: MlflowTracker, uri: str, tmp_path: Path
) -> None:
    assert axes(tracker) == {()}
    tracker.publish(record(0, 0.8, 1_000, name="lora"))  # enqueued, and no point of the space
    assert axes(tracker) == {()}
    tracker.publish(record(1, 0.8, 1_000, params=POINT))
    every = {("x.ffn.insertion", "x.ffn.size", "x.learning_rate")}
    assert axes(tracker) == every
    run = tracker._client.get_run(tracker.run_of(1))
    assert every == {tuple(sorted(name for name in run.data.params if name.startswith("x.")))}
    again = opened(uri, tracker.study, tmp_path)
    again.publish(record(2, 0.8, 1_000, params=POINT))
    assert axes(tracker) == every
    again.publish(record(3, 0.8, 1_000, params={"ffn.size": 8, "learning_rate": 0.001}))
    assert axes(tracker) == {("x.ffn.size", "x.learning_rate")}


def test_nothing_is_written_twice(tracker: MlflowTracker, uri: str, tmp_path: Path) -> None:
    tracker.publish(record(0, 0.8, 1_000, params=POINT))
    before = tags(tracker)
    tracker.front([], [])
    opened(uri, tracker.study, tmp_path).publish(record(0, 0.8, 1_000, params=POINT))
    assert tags(tracker) == before


def test_what_people_change_stays(tracker: MlflowTracker, uri: str, tmp_path: Path) -> None:
    client, before = MlflowClient(uri), tags(tracker)

    def put(view: str, text: str) -> None:
        client.set_experiment_tag(tracker.experiment_id, TAG + view, text)

    renamed = json.dumps({**json.loads(before[TAG + "front"]), "name": "my front"})
    other = json.dumps({**json.loads(before[TAG + "all"]), "state": json.dumps({"searchFilter": "tags.mine = 'yes'"})})
    own = json.dumps({"name": "Mine", "createdAt": 1, "updatedAt": 1, "state": "{}"})  # as the page saves one
    theirs = {"front": renamed, "all": other, "methods": "{", "references": own, "5f0e6b5a": own}
    for view, text in theirs.items():
        put(view, text)
    client.delete_experiment_tag(tracker.experiment_id, TAG + "failed")

    tracker.publish(record(0, 0.8, 1_000, params=POINT))
    tracker.front([], [])
    opened(uri, tracker.study, tmp_path)
    after = tags(tracker)
    assert {view: after[TAG + view] for view in theirs} == theirs
    assert TAG + "failed" not in after
    ours = before.keys() - {TAG + view for view in (*theirs, "failed")}
    assert {view for view in ours if after[view] != before[view]} == ours  # they have the new axes
    times = {view: [json.loads(text[view])["createdAt"] for text in (before, after)] for view in ours}
    assert all(created == later for created, later in times.values())  # and their place in the list


@pytest.mark.parametrize("last", [0, 3, 8])
def test_a_driver_may_die_between_any_two_writes(
    uri: str, tracker: MlflowTracker, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(uri)
    experiment = client.create_experiment(f"killed after {last}")
    write, done = client.set_experiment_tag, []

    def dying(*arguments: str) -> None:
        if len(done) == last:
            raise ConnectionError
        done.append(arguments)
        write(*arguments)

    searched = objectives("accuracy", "stored_parameters")
    monkeypatch.setattr(client, "set_experiment_tag", dying)
    with pytest.raises(ConnectionError):
        Views(client, experiment, searched).write()
    monkeypatch.undo()
    Views(client, experiment, searched).write()
    found = client.get_experiment(experiment).tags
    assert sorted(json.loads(found[name])["name"] for name in found if name.startswith(TAG)) == sorted(NAMES)


def test_the_front_stands_out_in_colour_unless_a_person_chose_another(tracker: MlflowTracker, uri: str) -> None:
    def colours() -> list[str | None]:
        return [tracker._client.get_run(tracker.run_of(number)).data.tags.get("mlflow.runColor") for number in range(5)]

    for number, accuracy in enumerate((0.8, 0.9, 0.7, 0.6)):
        tracker.publish(record(number, accuracy, 1_000 * (number + 1)))
    tracker.publish(record(4, 0.9, 0, reference="full"))
    assert colours() == [GREY] * 4 + [None]
    tracker._client.set_tag(tracker.run_of(1), "mlflow.runColor", "#ff0000")
    rows = load_study(tracker.study, uri).front().to_rows()
    assert [row["trial"] for row in rows] == [0, 1]
    tracker.front(rows, [])
    assert colours() == [None, "#ff0000", GREY, GREY, None]
    tracker.front([], [])
    assert colours() == [GREY, "#ff0000", GREY, GREY, None]


# --- the page itself: the scripts of the installed MLflow, in which names of fields are as they were written ---


@cache
def script(containing: str) -> str:
    folder = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    found = [text for file in sorted(folder.glob("*.js")) if containing in (text := file.read_text())]
    assert found, f"no script of MLflow {mlflow.__version__} has {containing}: its views are kept in another way"
    return found[0]


def listed(*first: str) -> set[str]:
    """The names of the one array of the page that begins with these."""
    start = json.dumps(first, separators=(",", ":"))[:-1]
    [names] = re.findall(re.escape(start) + r'(?:,"\w+")*\]', script(start))
    return set(json.loads(names))


def test_the_page_reads_the_fields_of_a_state(tracker: MlflowTracker) -> None:
    tracker.publish(record(0, 0.8, 1_000, params=POINT))
    known = listed("selectedColumns", "columnOrder", "columnWidths") | listed("searchFilter", "orderByKey")
    personal = listed("runsExpanded", "runsPinned")  # of each browser: a view may say nothing of them
    for text in tags(tracker).values():
        assert set(state(text)) <= known - personal
    page = script(f'="{TAG}"')
    assert '="viewStateShareKey"' in page
    for value in ("SHOW_ALL", "SCATTER", "LINE", "PARALLEL", "Active", "All Runs", "Model metrics", "metric", "max"):
        assert f'="{value}"' in page, value


def test_the_page_reads_the_fields_of_charts_and_sections(tracker: MlflowTracker) -> None:
    page, cards = script("this.runsCountToCompare="), script("cardHeight")
    for text in tags(tracker).values():
        for chart in state(text)["compareRunCharts"]:
            for name in chart:
                assert f"this.{name}=" in page, name
        for section in state(text)["compareRunSections"]:
            assert {"uuid", "name", "display", "isReordered", "deleted", "isGenerated", "columns"} >= set(section)
    assert re.search(r"\{uuid:[^{}]+,name:\w+,display:!0,isReordered:!1,deleted:!1,isGenerated:!0\}", page)
    assert re.search(r"\w+\.columns\)", cards)
    assert re.search(r"aggregateFunction:\w+,groupByKeys:\[\{mode:\w+,groupByData:\w+\}\]", page)


def test_the_page_reads_the_envelope_and_the_address() -> None:
    page = script("Invalid saved-view envelope")
    for name, kind in (("name", "string"), ("createdAt", "number"), ("state", "string")):
        assert re.search(rf'"{kind}"!==?typeof \w+\.{name}\b', page)
    assert '="deflate;"' in script('="deflate;"')
    assert '="compareRunsMode"' in script('="compareRunsMode"')
    shown = address("7", "front", charts=True)
    assert shown == "#/experiments/7/runs?viewStateShareKey=front&workflowType=machine_learning&compareRunsMode=CHART"
    assert not listed("searchFilter", "orderByKey") & set(
        re.findall(r"[?&](\w+)=", shown)
    )  # with one of them no view is read


def test_the_table_has_the_columns_by_these_names() -> None:
    table = script("runDateAndNestInfo")
    for name in ('field:"runDateAndNestInfo"', 'field:"duration"', "columnWidths:", "columnOrder:"):
        assert name in table, name
    assert '+".`"+' in script(f'="{TAG}"')  # the id of a column: its kind and its name
