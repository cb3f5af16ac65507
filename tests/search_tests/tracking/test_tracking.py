"""TrialRecord -> MLflow -> TrialRecord, on a real sqlite store."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from petl.configuration import Configuration, Training
from petl.design import Composition, Design, Form, Modification, Site
from petl.measurements import Measurements
from search.results.query import load_study
from search.storage.errors import StoreError
from search.tracking import experiment, reader
from search.tracking.client import answering
from search.tracking.schema import STATUS, DiskUse, StudyInfo, joined
from search.tracking.writer import MlflowTracker
from search.trials.naming import flat_parameters
from search.trials.record import Replicate, SeedSummary, Spent, State, TrialRecord

INFO = {
    "study": "demo",
    "backbone": {"model": "tiny"},
    "task": {"name": "tweets"},
    "objectives": {"score": "accuracy", "cost": "stored_parameters"},
    "constraints": {"stored_percent": 5.0},
}
MAM = Design(
    (
        Modification(form=Form.PREFIX, site=Site.HEADS, composition=Composition.GATE, size=16),
        Modification(form=Form.BOTTLENECK, site=Site.FFN, composition=Composition.SCALE, size=64, scale=4.0),
    )
)
RUNNING = TrialRecord(
    number=3,
    state=State.RUNNING,
    configuration=Configuration(MAM, Training(learning_rate=0.002, dropout=0.1), seed=7),
    params={"prefix": 4, "rate": 0.002, "insertion": "parallel"},
    name="mam",
    started=1_700_000_000.25,
)
COMPLETE = replace(
    RUNNING,
    state=State.COMPLETE,
    rungs={1.0: 0.61, 3.0: 2 / 3},
    measurements=Measurements(accuracy=2 / 3, loss=0.71, stored_parameters=1234, base_parameters=20_000, steps=90),
    ended=1_700_000_060.5,
)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for the module: making it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def study(request: pytest.FixtureRequest) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")
    return f"{name[:50]}-{zlib.crc32(name.encode()):08x}"


@pytest.fixture
def tracker(uri: str, study: str, tmp_path: Path) -> Iterator[MlflowTracker]:
    return MlflowTracker.open(uri, study, tmp_path / "artifacts", INFO)


def test_a_store_whose_making_was_killed_is_made(tmp_path: Path) -> None:
    """MLflow's migrations of a new sqlite file take seconds, and cannot be repeated from where they were."""
    scratch, home = tmp_path / "scratch", tmp_path / "home"
    scratch.mkdir()
    command = "from search.tracking.writer import MlflowTracker; "
    command += f"MlflowTracker.open('sqlite:///{home}/mlflow.db', 'demo', None, {INFO!r})"
    made = subprocess.Popen([sys.executable, "-c", command], env={**os.environ, "TMPDIR": str(scratch)})
    while not any(file.stat().st_size > 100_000 for file in tmp_path.rglob("*.db")):  # half of the tables are there
        assert made.poll() is None
        time.sleep(0.01)
    made.kill()
    made.wait()
    assert not (home / "mlflow.db").exists()
    MlflowTracker.open(f"sqlite:///{home}/mlflow.db", "demo", None, INFO)
    assert [file.name for file in home.iterdir()] == ["mlflow.db"]


def again(tracker: MlflowTracker, uri: str, tmp_path: Path) -> MlflowTracker:
    """What a restarted driver does."""
    return MlflowTracker.open(uri, tracker.study, tmp_path / "artifacts", INFO)


def history(tracker: MlflowTracker, number: int, key: str) -> list[tuple[int, float]]:
    run_id = tracker.run_of(number)
    return [(point.step, point.value) for point in tracker._client.get_metric_history(run_id, key)]


def runs(tracker: MlflowTracker) -> list:
    return list(tracker._client.search_runs([tracker.experiment_id]))


@pytest.mark.parametrize(
    "record",
    [
        RUNNING,
        COMPLETE,
        replace(COMPLETE, state=State.PRUNED, measurements=None),
        replace(RUNNING, state=State.FAIL, failure="diverged: " + "é\n'\"" * 4_000, ended=1.5),
        TrialRecord(number=0, state=State.COMPLETE, reference="majority", measurements=Measurements(accuracy=0.4)),
    ],
    ids=["running", "complete", "stopped", "failed with a long reason", "reference without configuration"],
)
def test_mlflow_alone_gives_the_record_back(tracker: MlflowTracker, uri: str, study: str, record: TrialRecord) -> None:
    run_id = tracker.publish(record)
    (row,) = reader.records(uri, study)
    assert row.record == record
    assert row.run_id == run_id
    assert tracker._client.get_run(run_id).info.status == STATUS[record.state]


def test_every_state_has_a_status() -> None:
    assert set(STATUS) == set(State)


def test_a_shorter_record_after_a_longer_one(tracker: MlflowTracker, uri: str, study: str) -> None:
    tracker.publish(replace(RUNNING, failure="x" * 20_000))
    tracker.publish(RUNNING)
    assert [row.record for row in reader.records(uri, study)] == [RUNNING]


def test_a_restart_makes_no_second_run(tracker: MlflowTracker, uri: str, tmp_path: Path) -> None:
    tracker.publish(COMPLETE)
    tracker.publish(replace(RUNNING, number=4))
    before = {run.info.run_id for run in runs(tracker)}
    tracker.close("KILLED")
    assert "RUNNING" not in {run.info.status for run in runs(tracker)}

    second = again(tracker, uri, tmp_path)
    assert second.run_id == tracker.run_id
    second.publish(COMPLETE)
    second.publish(replace(RUNNING, number=4))
    status = {run.data.tags.get("trial", "parent"): run.info.status for run in runs(second)}
    assert status == {"parent": "RUNNING", "3": "FINISHED", "4": "RUNNING"}
    assert {run.info.run_id for run in runs(second)} == before
    assert history(second, 3, "accuracy") == [(90, 2 / 3)]


def test_of_two_runs_of_a_trial_the_fuller_one_stays(tracker: MlflowTracker, uri: str, tmp_path: Path) -> None:
    """A request that was given up, and sent again, may have made two."""
    for record in (COMPLETE, replace(COMPLETE, number=4), replace(COMPLETE, number=5)):
        empty = tracker._create(record).run_id if record.number != 4 else ""
        full = tracker.publish(record)
        empty = empty or tracker._create(record).run_id
        second = again(tracker, uri, tmp_path)
        assert second.run_of(record.number) == full
        assert empty not in {run.info.run_id for run in runs(second)}


def test_a_run_whose_record_was_never_written_is_completed(tracker: MlflowTracker, uri: str, tmp_path: Path) -> None:
    tracker._create(RUNNING)  # killed before the first batch
    assert reader.records(uri, tracker.study) == []
    second = again(tracker, uri, tmp_path)
    second.publish(COMPLETE)
    assert [row.record for row in reader.records(uri, tracker.study)] == [COMPLETE]
    assert len(runs(second)) == 2


def test_children_are_nested_named_and_tagged(tracker: MlflowTracker) -> None:
    run = tracker._client.get_run(tracker.publish(COMPLETE))
    tags = run.data.tags
    assert run.info.run_name == "3 mam"
    assert tags["mlflow.parentRunId"] == tracker.run_id
    assert (tags["study"], tags["trial"], tags["kind"], tags["state"]) == (tracker.study, "3", "trial", "COMPLETE")
    assert (tags["design"], tags["design_key"], tags["on_front"]) == (MAM.describe(), MAM.key, "false")
    assert "mlflow " in tags["versions"]
    point = {"x.prefix": "4", "x.rate": "0.002", "x.insertion": "parallel"}
    assert run.data.params == flat_parameters(COMPLETE.configuration) | point
    assert tags["method"] == "prefix + ffn"
    assert run.data.metrics["stored_parameters"] == 1234
    assert run.data.metrics["loss"] == 0.71
    assert "f1" not in run.data.metrics  # not measured
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_250, 1_700_000_060_500)


def test_replicates_are_children_of_their_trials(tracker: MlflowTracker, uri: str, study: str, tmp_path: Path) -> None:
    parent = tracker.publish(COMPLETE)
    over = Replicate(
        number=3,
        seed=8,
        measurements=replace(COMPLETE.measurements, accuracy=0.5),
        started=1_700_000_100.0,
        ended=1_700_000_160.5,
    )
    failed = Replicate(number=3, seed=9, failure="diverged", started=1.0, ended=2.0)
    tracker.replicate(over, [{"step": 45, "accuracy": 0.4}, {"step": 10, "train_loss": 1.5}])
    tracker.replicate(over)
    tracker.replicate(failed)
    second = again(tracker, uri, tmp_path)
    second.replicate(over)
    children = [run for run in runs(second) if run.data.tags.get("mlflow.parentRunId") == parent]
    assert sorted((run.data.tags["seed"], run.info.run_name, run.info.status) for run in children) == [
        ("8", "3 seed 8", "FINISHED"),
        ("9", "3 seed 9", "FAILED"),
    ]
    [run] = [run for run in children if run.data.tags["seed"] == "8"]
    assert (run.data.tags["kind"], run.data.tags["trial"], run.data.metrics["accuracy"]) == ("replicate", "3", 0.5)
    history = second._client.get_metric_history(run.info.run_id, "accuracy")
    assert [(point.step, point.value) for point in history] == [(45, 0.4), (90, 0.5)]
    assert (run.info.start_time, run.info.end_time) == (1_700_000_100_000, 1_700_000_160_500)
    assert [row.record for row in reader.records(uri, study)] == [COMPLETE]  # they are no trials
    tracker.close()
    assert load_study(study, uri).trials[0].state is State.COMPLETE


def test_a_half_written_replicate_is_made_again(
    tracker: MlflowTracker, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.publish(COMPLETE)
    over = Replicate(number=3, seed=8, measurements=COMPLETE.measurements, started=1.0, ended=2.0)

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracker._client, "set_terminated", killed)
        with pytest.raises(KeyboardInterrupt):
            tracker.replicate(over)
    again(tracker, uri, tmp_path).replicate(over)
    kept = [run for run in runs(tracker) if run.data.tags["kind"] == "replicate"]
    assert [(run.info.status, run.data.metrics["accuracy"]) for run in kept] == [("FINISHED", 2 / 3)]


def test_what_is_believed_comes_back(tracker: MlflowTracker, uri: str, study: str, tmp_path: Path) -> None:
    tracker.publish(COMPLETE)
    for mean in (0.62, 0.63):
        belief = SeedSummary(mean=mean, spread=0.02, seeds=3, failed=1, probability=0.875, corrected=0.61)
        tracker.facts(3, {"believed": asdict(belief)})
        again(tracker, uri, tmp_path).facts(3, {"believed": asdict(belief)})
        [row] = reader.records(uri, study)
        assert row.seed_summary == belief
    assert history(tracker, 3, "believed_mean") == [(0, 0.62), (1, 0.63)]  # one value a step
    assert history(tracker, 3, "believed_spread") == [(0, 0.02)]
    assert history(tracker, 3, "believed_probability") == [(0, 0.875)]


@pytest.mark.parametrize("nonsense", [{"probability": 1.5}, {"seeds": -1}, {"spread": "wide"}, {"mean": None}])
def test_beliefs_that_make_no_sense_are_left_out(
    tracker: MlflowTracker, uri: str, study: str, nonsense: dict[str, object]
) -> None:
    run = tracker.publish(COMPLETE)
    belief = {"mean": 0.6, "spread": 0.1, "seeds": 2, "failed": 0, "probability": 0.5, "corrected": 0.6}
    tracker._client.set_tag(run, "believed", json.dumps({**belief, **nonsense}))
    with pytest.warns(reader.LeftOutWarning, match="makes no sense"):
        assert reader.records(uri, study) == []


def test_counts_are_there_before_training_and_stay(
    tracker: MlflowTracker, uri: str, study: str, tmp_path: Path
) -> None:
    counts = {"stored_parameters": 1234, "stored_percent": 6.17}
    run = tracker._client.get_run(tracker.publish(RUNNING, counts))
    assert run.data.metrics == counts
    second = again(tracker, uri, tmp_path)
    for record in (RUNNING, replace(RUNNING, state=State.PRUNED, rungs={1.0: 0.5})):
        second.publish(record, counts)
    (row,) = reader.records(uri, study)
    assert (row.counts, row.record.state) == (counts, State.PRUNED)
    assert history(second, 3, "stored_parameters") == [(0, 1234)]


def test_no_step_is_written_twice(tracker: MlflowTracker, uri: str, tmp_path: Path) -> None:
    tracker.publish(RUNNING)
    points = [{"step": step, "train_loss": 1 / step, "learning_rate": 1e-3} for step in range(10, 60, 10)]
    tracker.progress(3, reversed(points[:3]))
    tracker.progress(3, points[:4])
    second = again(tracker, uri, tmp_path)
    second.progress(3, [*points, {"step": 50, "accuracy": 0.5}])
    assert history(second, 3, "train_loss") == [(p["step"], p["train_loss"]) for p in points]
    assert history(second, 3, "accuracy") == [(50, 0.5)]
    second.progress(3, [{"step": 50, "accuracy": 0.75}])  # repeated after a restart, on other hardware
    again(tracker, uri, tmp_path).progress(3, [{"step": 50, "accuracy": 0.75}])
    assert history(second, 3, "accuracy") == [(50, 0.5)]


def test_the_final_value_is_the_latest_one(tracker: MlflowTracker) -> None:
    tracker.publish(RUNNING)
    tracker.progress(3, [{"step": 90, "accuracy": 2 / 3, "loss": 0.9, "time": 1_900_000_000.0}])
    run = tracker._client.get_run(tracker.publish(COMPLETE))
    assert history(tracker, 3, "accuracy") == [(90, 2 / 3)]  # equal: once is enough
    assert run.data.metrics["accuracy"] == 2 / 3


def test_many_points_and_values_that_are_no_numbers(tracker: MlflowTracker) -> None:
    tracker.publish(RUNNING)
    tracker.progress(3, [{"step": step, "train_loss": 0.5, "pace": step} for step in range(1, 1201)])
    tracker.progress(3, [{"step": 1201, "train_loss": math.nan, "pace": math.inf}])
    assert len(history(tracker, 3, "train_loss")) == len(history(tracker, 3, "pace")) == 1200


def test_test_scores(tracker: MlflowTracker, uri: str, study: str) -> None:
    tracker.publish(COMPLETE)
    for _ in range(2):
        tracker.facts(3, {"final": {"test": {"accuracy": 0.625, "loss": 0.8}, "validation": {"accuracy": 0.6}}})
    tracker.publish(replace(COMPLETE, failure="later"))  # does not take them away
    (row,) = reader.records(uri, study)
    assert row.test == {"accuracy": 0.625, "loss": 0.8}
    assert row.validation == {"accuracy": 0.6}
    assert history(tracker, 3, "test_accuracy") == [(0, 0.625)]


def test_artifacts_go_up_once_and_come_down_whole(tracker: MlflowTracker, uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "design.json").write_text("{}")
    (folder / "tokenizer" / "vocab.txt").write_text("a b c")
    run_id = tracker.publish(COMPLETE)
    tracker.artifacts(3, folder)

    stored = next((tmp_path / "artifacts").rglob("vocab.txt"))
    stored.write_text("a")  # a torn upload
    kept = next((tmp_path / "artifacts").rglob("design.json"))
    before = kept.stat().st_mtime_ns
    again(tracker, uri, tmp_path).artifacts(3, folder)
    assert kept.stat().st_mtime_ns == before

    got = reader.download(uri, run_id, tmp_path / "out" / "mine")
    assert {path.relative_to(got).as_posix() for path in got.rglob("*")} == {
        "design.json",
        "tokenizer",
        "tokenizer/vocab.txt",
    }
    assert (got / "tokenizer" / "vocab.txt").read_text() == "a b c"
    assert not [path for path in got.parent.iterdir() if path != got]
    with pytest.raises(StoreError, match="new or empty folder"):
        reader.download(uri, run_id, got)


def test_no_adapter(tracker: MlflowTracker, uri: str, tmp_path: Path) -> None:
    run_id = tracker.publish(RUNNING)
    with pytest.raises(StoreError, match="no adapter"):
        reader.download(uri, run_id, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def row(number: int) -> dict:
    return {
        "trial": number,
        "name": f"mam {number}",
        "design": "",
        "score": 0.5,
        "metric": "accuracy",
        "stored_parameters": 1_000,
        "stored_percent": 0.1,
        "trained_parameters": 1_100,
        "test_score": None,
        "seconds": 3.0,
        "run_id": "abc",
    }


def test_the_front_is_tagged_noted_and_kept(tracker: MlflowTracker, uri: str, study: str, tmp_path: Path) -> None:
    for number in range(4):
        tracker.publish(replace(COMPLETE, number=number))
    tracker.publish(replace(COMPLETE, number=4, reference="full"))
    (tmp_path / "front.json").write_text("[]")
    tracker.front([row(0), row(1)], [row(4)])
    tracker = again(tracker, uri, tmp_path)
    tracker.front([row(1), row(2)], [row(4)], [tmp_path / "front.json"])
    assert [r.record.number for r in reader.records(uri, study) if r.on_front] == [1, 2]

    client = tracker._client
    note = client.get_run(tracker.run_id).data.tags["mlflow.note.content"]
    assert "| mam 2 | 0.5000 |" in note
    assert "### References" in note
    assert [artifact.path for artifact in client.list_artifacts(tracker.run_id)] == ["front.json"]
    filters = [line.split("``")[1] for line in note.splitlines() if "``" in line]
    found = {text: len(client.search_runs([tracker.experiment_id], text)) for text in filters}
    assert found == {
        "tags.on_front = 'true'": 2,
        "tags.kind = 'reference'": 1,
        "attributes.status = 'FINISHED' and tags.kind = 'trial'": 4,
        "metrics.stored_percent <= 1 and attributes.status = 'FINISHED' and tags.kind = 'trial'": 4,
        "tags.state = 'FAIL'": 0,
        "tags.kind = 'replicate'": 0,
        "tags.kind = 'trial'": 4,
    }


def test_only_changed_front_tags_are_written(tracker: MlflowTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        tracker.publish(replace(COMPLETE, number=number))
    tracker.front([row(0), row(1)], [])
    written = []
    monkeypatch.setattr(tracker._client, "set_tag", lambda run_id, key, value: written.append((run_id, key, value)))
    tracker.front([row(0), row(2)], [])
    changes = {entry for entry in written if entry[1] == "on_front"}
    assert changes == {(tracker.run_of(1), "on_front", "false"), (tracker.run_of(2), "on_front", "true")}


@pytest.mark.parametrize("many", [20_000])
def test_what_a_study_is_can_be_long_and_is_read_back(uri: str, tmp_path: Path, many: int) -> None:
    """Twice: a resume writes all of it again."""
    labels = [f"product category {index:05d}, with a name of fifty letters" for index in range(many)]
    for _ in range(2):
        opened = MlflowTracker.open(uri, "long", tmp_path / "artifacts", {**INFO, "resolved": {"labels": labels}})
        assert reader.summary(uri, "long").info.objectives.score == "accuracy"
    tags = MlflowClient(uri).get_run(opened.run_id).data.tags
    assert json.loads(joined(tags, "info") or "")["resolved"]["labels"] == labels


def test_what_no_reader_would_take_is_not_written(uri: str, tmp_path: Path) -> None:
    labels = ["x" * 1_000] * 11_000
    with pytest.raises(StoreError, match=r"info of 11,\d+,\d+ characters.*10,000,000"):
        MlflowTracker.open(uri, "longer", tmp_path / "artifacts", {**INFO, "resolved": {"labels": labels}})
    with pytest.raises(StoreError, match="no study 'longer'"):
        reader.summary(uri, "longer")


def test_a_long_front_is_cut_in_the_note(tracker: MlflowTracker) -> None:
    tracker.front([row(number) for number in range(300)], [row(300)])
    note = tracker._client.get_run(tracker.run_id).data.tags["mlflow.note.content"]
    assert "more are in the artifact front.csv" in note
    assert "tags.on_front" in note


@pytest.mark.parametrize(
    ("costs", "headings", "cells"),
    [
        (("latency_ms",), "latency ms |", "3.25 |"),
        (("stored_parameters", "latency_ms"), "latency ms |", "3.25 |"),
        (("latency_ms", "peak_memory_mb"), "latency ms | peak memory mb |", "3.25 | 512 |"),
    ],
)
def test_the_note_has_costs_of_another_kind(
    uri: str, study: str, tmp_path: Path, costs: tuple[str, ...], headings: str, cells: str
) -> None:
    objectives = dict(zip(("score", "cost", "second_cost"), ("accuracy", *costs), strict=False))
    tracker = MlflowTracker.open(uri, study, tmp_path / "artifacts", {**INFO, "objectives": objectives})
    tracker.front([{**row(3), "latency_ms": 3.25, "peak_memory_mb": 512.0}], [{**row(4), "latency_ms": None}, row(5)])
    note = tracker._client.get_run(tracker.run_id).data.tags["mlflow.note.content"]
    count = headings.count("|")
    assert f"| seconds | {headings}\n|--:|---|{'--:|' * (5 + count)}\n" in note
    assert f"| 3 | {cells}\n" in note
    assert note.count(f"| 3 | {' | ' * (count - 1)} |\n") == 2  # the references' are not measured


def test_mlflow_gives_three_objectives_back(uri: str, study: str, tmp_path: Path) -> None:
    info = {**INFO, "objectives": {"score": "accuracy", "cost": "stored_parameters", "second_cost": "latency_ms"}}
    tracker = MlflowTracker.open(uri, study, tmp_path / "artifacts", info)
    for number, latency in enumerate((3.0, 2.0, 4.0)):  # the last one is dominated
        measured = replace(COMPLETE.measurements, accuracy=0.5 - number / 10, latency_ms=latency)
        tracker.publish(replace(COMPLETE, number=number, measurements=measured))
    loaded = load_study(study, uri)
    assert loaded.summary.info == StudyInfo.from_dict(info)
    assert [objective.name for objective in loaded.objectives] == ["accuracy", "stored_parameters", "latency_ms"]
    assert [(t.number, t.score, t.cost, t.second_cost) for t in loaded.front()] == [
        (1, 0.4, 1234.0, 2.0),
        (0, 0.5, 1234.0, 3.0),
    ]


@pytest.mark.parametrize("second_cost", [None, ...])
def test_a_study_without_a_second_cost_is_read(uri: str, study: str, tmp_path: Path, second_cost: object) -> None:
    """Of this release, which says that there is none, and of earlier ones, which say nothing."""
    objectives = {"score": "accuracy", "cost": "stored_parameters"}
    more = {} if second_cost is ... else {"second_cost": second_cost}
    MlflowTracker.open(uri, study, tmp_path / "artifacts", {**INFO, "objectives": {**objectives, **more}})
    assert [objective.name for objective in load_study(study, uri).objectives] == list(objectives.values())


def test_info_and_studies(tracker: MlflowTracker, uri: str, study: str) -> None:
    assert study in {summary.name for summary in reader.studies(uri)}
    summary = reader.summary(uri, study)
    assert (summary.info, summary.run_id, summary.status) == (StudyInfo.from_dict(INFO), tracker.run_id, "RUNNING")
    assert (summary.disk, summary.spent) == (None, None)  # as of earlier releases
    tracker.disk(5, None)
    tracker.spent(Spent(hours=0.5, device_hours=1.25))
    tracker.close()
    summary = reader.summary(uri, study)
    assert summary.status == "FINISHED"
    assert summary.disk == DiskUse(used=5, limit=None)
    assert summary.spent == Spent(hours=0.5, device_hours=1.25)


def test_a_study_is_readable_from_its_first_moment(
    uri: str, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_run = MlflowClient.create_run

    def killed(*arguments: object, **options: object) -> None:
        create_run(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", killed)
        with pytest.raises(KeyboardInterrupt):
            MlflowTracker.open(uri, study, tmp_path / "artifacts", INFO)
    before = reader.summary(uri, study)
    assert (before.info, before.status) == (StudyInfo.from_dict(INFO), "RUNNING")
    assert MlflowTracker.open(uri, study, tmp_path / "artifacts", INFO).run_id == before.run_id


def test_a_study_that_does_not_say_what_it_is(tracker: MlflowTracker, uri: str, study: str, tmp_path: Path) -> None:
    tracker._client.delete_tag(tracker.run_id, "info")
    assert study not in {summary.name for summary in reader.studies(uri)}
    for read in (reader.summary, reader.records):
        with pytest.raises(StoreError, match=f"does not say what it is.*resume {study}"):
            read(uri, study)
    again(tracker, uri, tmp_path)
    assert reader.summary(uri, study).info == StudyInfo.from_dict(INFO)


def test_unknown_study_and_missing_store(tracker: MlflowTracker, uri: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no study 'nope' in sqlite.*studies there: .*" + tracker.study):
        reader.summary(uri, "nope")
    nowhere = tmp_path / "nowhere" / "mlflow.db"
    with pytest.raises(StoreError, match=r"no store at .*nowhere"):
        reader.studies(f"sqlite:///{nowhere}")
    assert not nowhere.exists()


def test_a_discarded_study_frees_its_name(tracker: MlflowTracker, uri: str, study: str, tmp_path: Path) -> None:
    tracker.publish(COMPLETE)
    experiment.discard(uri, study)
    with pytest.raises(StoreError):
        reader.summary(uri, study)
    assert again(tracker, uri, tmp_path).run_id != tracker.run_id
    assert reader.records(uri, study) == []
    experiment.discard(uri, "never there")


def test_a_study_that_was_deleted_in_mlflow_starts_anew(tracker: MlflowTracker, uri: str, tmp_path: Path) -> None:
    tracker._client.delete_experiment(tracker.experiment_id)
    assert again(tracker, uri, tmp_path).run_id != tracker.run_id


def test_an_experiment_of_somebody_else_is_left_alone(tracker: MlflowTracker, uri: str, tmp_path: Path) -> None:
    tracker._client.create_experiment("theirs")
    for action in (
        lambda: MlflowTracker.open(uri, "theirs", tmp_path, INFO),
        lambda: experiment.discard(uri, "theirs"),
    ):
        with pytest.raises(StoreError, match="not a study"):
            action()
    assert "theirs" not in {summary.name for summary in reader.studies(uri)}


def test_json_of_a_record_is_plain() -> None:
    assert TrialRecord.from_dict(json.loads(json.dumps(COMPLETE.to_dict(), allow_nan=False))) == COMPLETE


def test_a_fault_of_ours_is_not_told_as_a_damaged_store(uri: str) -> None:
    with pytest.raises(AttributeError, match="of ours"), answering(uri):
        raise AttributeError("of ours")


def test_a_complete_trial_that_is_sent_again_asks_and_writes_nothing(
    tracker: MlflowTracker, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [{"step": step, "train_loss": 1 / step} for step in (10, 20, 30)]
    tracker.progress(tracker.publish(COMPLETE) and COMPLETE.number, points)
    second, asked = again(tracker, uri, tmp_path), []
    for name in ("get_metric_history", "log_batch", "set_tag", "create_run", "set_terminated", "update_run"):
        monkeypatch.setattr(second._client, name, lambda *_, name=name, **__: asked.append(name))
    second.ensure(COMPLETE)
    second.progress(COMPLETE.number, points)
    second.publish(COMPLETE)
    assert asked == []
