"""A whole study with every real component: Ray Tune, DeepSpeed, Optuna, MLflow, on a tiny model."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import psutil
import pytest
import studies
import yaml
from published import published_info
from rich.console import Console

from petl.adapters import storage
from petl.head import LINEAR_HEAD
from search.config.loading import load_config
from search.config.sections import ResourcesConfig
from search.config.text import ConfigError
from search.results.query import Study, load_study
from search.results.tables import print_trial
from search.storage.errors import StoreError
from search.storage.folder import read_json
from search.storage.locations import StudyHome, database_url
from search.storage.studies import open_study
from search.study.interrupts import terminated_as_interrupted
from search.study.places import InterruptedStudy, StudyError, driving
from search.study.run import resume, run
from search.study.runner import headline, study_context
from search.trials.record import State
from search.workers import cluster, scoring

DEVIL = """
from petl.configuration import Configuration, Training
from petl.presets import parse

DESIGNS = ["lora:rank=2", "lora:rank=3", "bitfit", "prefix:length=10000000000000"]  # the fourth needs petabytes


def space(trial, backbone, training):
    index = trial.suggest_int("index", 0, 3)
    rate = 1e30 if index == 1 else 5e-3  # the second one diverges
    return Configuration(parse(DESIGNS[index]), Training(learning_rate=rate, batch_size=16, clip=0.0, warmup=0.0))
"""


MOODY = """
from petl.configuration import Configuration
from petl.presets import parse

calls = []


def space(trial, backbone):
    calls.append(trial)
    if len(calls) > 4:  # the first is a rehearsal
        raise RuntimeError("had enough")
    return Configuration(parse(f"lora:rank={trial.suggest_int('rank', 1, 8)}"))
"""


@pytest.fixture(scope="module")
def content(home: Path) -> dict[str, Any]:
    """asha with rungs at 1 epoch; enqueued named designs; all four references, and one that is enqueued as well."""
    return studies.study(
        home / "inputs",
        references=["majority", "probe", "head_only", "full", "bitfit"],
        enqueue=["lora:rank=2", "bitfit"],
        scheduler={"name": "asha"},
        budget={"trials": 6, "epochs": 2},
    )


@pytest.fixture(scope="module")
def finished(home: Path, content: dict[str, Any]) -> tuple[Study, str]:
    (home / "study.yaml").write_text(yaml.safe_dump(content))
    console = Console(record=True, width=200, file=(home / "out.txt").open("w"))
    return run(home / "study.yaml", console=console), console.export_text()


def test_budget_and_references_are_spent(finished: tuple[Study, str]) -> None:
    study, _ = finished
    assert len(study.trials) == 6
    assert {trial.state for trial in study.trials} <= {State.COMPLETE, State.PRUNED}
    assert {trial.name: trial.state for trial in study.references} == dict.fromkeys(
        ("majority", "probe", "head_only", "full", "bitfit"), State.COMPLETE
    )
    assert [trial.name for trial in study.trials[:2]] == ["lora:rank=2", "bitfit"]


def test_a_reference_and_a_trial_of_one_configuration_are_trained_once(
    finished: tuple[Study, str], home: Path, tmp_path: Path
) -> None:
    study, _ = finished
    reference = next(trial for trial in study.references if trial.name == "bitfit")
    trial = study.trials[1]
    assert (trial.row.twin, reference.row.twin) == (reference.number, None)
    assert (trial.state, trial.record.rungs) == (State.COMPLETE, reference.record.rungs)
    assert trial.measurements == reference.measurements  # seconds and memory too
    assert trial.row.test in ({}, reference.row.test)
    own, theirs = (each.export(tmp_path / str(each.number)) for each in (trial, reference))
    for file in theirs.rglob("*"):
        assert file.is_dir() or (own / file.relative_to(theirs)).read_bytes() == file.read_bytes()
    out = StringIO()
    print_trial(trial, Console(file=out))
    assert f"the same training as trial {reference.number}, whose result it was given" in out.getvalue()
    assert [row["twin"] for row in study.trial_rows() if "twin" in row] == [reference.number]


def test_what_it_has_spent_is_published(finished: tuple[Study, str]) -> None:
    """Two trials at once hold a CPU each: for what they trained at least, and at most all the time."""
    study, _ = finished
    trained = sum(trial.measurements.seconds for trial in study.trials if trial.measurements)
    spent = study.summary.spent
    assert trained / 3600 < spent.device_hours <= 2 * spent.hours


def test_the_headline_says_where_trials_are_compared(finished: tuple[Study, str]) -> None:
    headline = next(line for line in finished[1].splitlines() if line.startswith("study tiny:"))
    assert headline.endswith("fp32, 6 trials of 2 epochs, asha at 1, 2 at once")


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        ({"name": "halving", "first_rung": 0.5}, "of 2 epochs, halving at 0.5 and 1.5, 2 at once"),
        ({"name": "halving", "first_rung": 2}, "of 2 epochs, halving without a rung below that, 2 at once"),
        ({"name": "none"}, "of 2 epochs, 2 at once"),
    ],
)
def test_a_rule_without_rungs_is_told_of(scheduler: dict[str, Any], words: str, content: dict[str, Any]) -> None:
    config = load_config({**content, "scheduler": scheduler})
    resolved = SimpleNamespace(rows={}, task=SimpleNamespace(name="tweets"), precision="fp32")
    assert headline(config, resolved, at_once=2).endswith(words)


def test_stopped_trials_are_not_complete_and_not_on_the_front(finished: tuple[Study, str]) -> None:
    study, _ = finished
    stopped = [trial for trial in study.trials if trial.state is State.PRUNED]
    assert stopped  # of six trials, asha takes at most a third on from one that was not the best so far
    front = {trial.number for trial in study.front()}
    assert not front & {trial.number for trial in stopped}
    for trial in study.trials:
        reached = max(trial.record.rungs)
        assert reached == (2.0 if trial.state is State.COMPLETE else 1.0)


def test_a_resume_that_no_cluster_takes_leaves_the_study_as_it_was(
    finished: tuple[Study, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins work, so that Ray is joined; what Ray refuses must not be what a later resume begins with."""
    records = open_study(database_url(), "tiny", writes=False)
    before = records.config
    with pytest.raises(cluster.ClusterError):
        resume("tiny", overrides=["budget.trials=7", "resources.gpus_per_trial=1"])
    assert open_study(database_url(), "tiny", writes=False).config == before


def test_heads_start_from_the_probe_that_is_kept(finished: tuple[Study, str], home: Path, tmp_path: Path) -> None:
    study, _ = finished
    resolved = open_study(database_url(), "tiny", writes=False).resolved
    kept = home / "studies" / "tiny" / "starts" / "mean.safetensors"
    assert resolved.starts == {"mean": hashlib.sha256(kept.read_bytes()).hexdigest()}
    assert {trial.configuration.head for trial in study.trials if trial.configuration} == {LINEAR_HEAD}
    assert storage.read_head(study.trials[0].export(tmp_path / "first")) == LINEAR_HEAD


def test_no_front_is_below_the_probe_and_it_can_be_loaded(finished: tuple[Study, str]) -> None:
    study, _ = finished
    probe = next(trial for trial in study.references if trial.name == "probe")
    front = study.front()
    assert max(member.score or 0.0 for member in front) >= (probe.score or 0.0)
    assert not any("probe" in front.dominating(member) for member in front)
    model = probe.load_model()
    assert set(model.predict(["great lovely table", "awful grim road"])) <= set(model.labels)


def test_measured_counts_equal_the_saved_tensors(finished: tuple[Study, str], home: Path) -> None:
    from safetensors import safe_open

    study, _ = finished
    for trial in study.trials:
        if trial.state is not State.COMPLETE:
            continue
        file = (
            home / "studies" / "tiny" / "trials" / f"{trial.number:04d}" / "result" / "adapter" / "adapter.safetensors"
        )
        with safe_open(file, "pt") as tensors:
            sizes = [tensors.get_tensor(name).numel() for name in tensors.keys()]  # noqa: SIM118 (no mapping)
        assert trial.measurements is not None
        assert sum(sizes) == trial.measurements.stored_parameters
        assert trial.measurements.stored_percent <= 30.0


def test_members_load_and_score_what_was_recorded(finished: tuple[Study, str]) -> None:
    """A member loaded from MLflow alone predicts the test split with the accuracy that was recorded."""
    from petl.backbones.locate import locate
    from petl.data.rows import read_splits
    from petl.tasks import Task

    study, _ = finished
    resolved = published_info(study)
    task = Task.from_dict(resolved["task"])
    test = read_splits(task)["test"]
    assert locate(resolved["backbone"]["model"])
    for member in study.front():
        predicted = member.load_model().predict(list(test["text"]))
        accuracy = sum(a == b for a, b in zip(predicted, test["label"], strict=True)) / len(test)
        assert accuracy == pytest.approx(member.test_score)


def test_test_split_is_for_the_front_and_references_alone(finished: tuple[Study, str]) -> None:
    study, _ = finished
    shown = {trial.number for trial in (*study.front(), *study.references)}
    tested = {trial.number for trial in (*study.trials, *study.references) if trial.test_score is not None}
    assert tested == shown


def test_workers_stay_alive_between_trials(finished: tuple[Study, str], home: Path) -> None:
    reports = [read_json(path) for path in (home / "studies" / "tiny" / "trials").glob("*/result/report.json")]
    reports = [report for report in reports if "twin" not in report.get("facts", {})]
    assert len(reports) > 2
    assert len({report["process"] for report in reports}) <= 2  # as many as run at once
    assert all(report["startup_seconds"] > 0 for report in reports)


def test_what_a_person_reads(finished: tuple[Study, str], home: Path) -> None:
    _, text = finished
    assert "trial 0 (reference majority) complete" in text
    assert "6/6" in text
    folder = home / "studies" / "tiny"
    assert {path.name for path in folder.glob("front.*")} == {"front.json", "front.csv", "front.png"}
    assert json.loads((folder / "front.json").read_text())[0]["metric"] == "accuracy"
    published = sorted(file.name for file in (home / "artifacts" / "tiny").glob("*/artifacts/*.*"))
    assert published == ["front.csv", "front.json", "front.png", "report.html"]


def test_no_training_state_is_left(finished: tuple[Study, str], home: Path) -> None:
    assert not list((home / "studies" / "tiny" / "trials").glob("*/state-*"))


def test_the_same_name_is_refused_and_resume_of_a_finished_study_trains_nothing(
    finished: tuple[Study, str], content: dict[str, Any], home: Path
) -> None:
    with pytest.raises(StudyError, match=r"petl-search resume tiny.*--fresh"):
        run(content)
    before = {path: path.stat().st_mtime_ns for path in home.glob("studies/tiny/trials/**/*")}
    study = resume("tiny", overrides=["budget.hours=2"], console=Console(quiet=True))
    assert {path: path.stat().st_mtime_ns for path in home.glob("studies/tiny/trials/**/*")} == before
    assert study.front().to_rows() == finished[0].front().to_rows()


def test_a_study_whose_records_are_elsewhere_is_not_deleted(
    finished: tuple[Study, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody forgot $PETL_SEARCH_DATABASE, say, and has run started again."""
    kept = sorted((home / "studies" / "tiny").rglob("manifest.json"))
    monkeypatch.setenv("PETL_SEARCH_DATABASE", f"sqlite:///{home}/other.db")
    with pytest.raises(StudyError, match=r"studies/tiny and sqlite.* trials of a study 'tiny' that .*other\.db"):
        run(home / "study.yaml", or_resume=True, console=Console(quiet=True))
    assert sorted((home / "studies" / "tiny").rglob("manifest.json")) == kept
    assert len(load_study("tiny").trials) == 6


@pytest.mark.parametrize("disposition", [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_is_a_ctrl_c(disposition: Any) -> None:
    """Also where SIGINT is ignored, as in what a shell puts into the background."""
    before = signal.signal(signal.SIGINT, disposition)
    try:
        with pytest.raises(KeyboardInterrupt), terminated_as_interrupted():  # noqa: PT012
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit(1)])
def test_ctrl_c_and_a_closed_pipe_say_how_to_go_on(end: Any, finished: tuple[Study, str], home: Path) -> None:
    """Rich raises SystemExit where it finds that nobody reads what it writes."""
    console = Console(file=(home / "unread.txt").open("w"))
    with (
        pytest.raises(InterruptedStudy, match=r"nothing that was finished is lost.*petl-search resume tiny"),
        driving(StudyHome("tiny"), console),
    ):
        raise end


@pytest.mark.full("a search of its own")
def test_a_trial_whose_scoring_kills_its_process_costs_no_other_its_scores(
    finished: tuple[Study, str], home: Path
) -> None:
    """Every process that takes up the first one is killed, from outside."""
    first, second = sorted((home / "studies" / "tiny" / "trials").glob("*/test"))[:2]
    numbers = [int(folder.parent.name) for folder in (first, second)]
    database = f"sqlite:///{home}/optuna.db"
    records = open_study(database, "tiny")
    context = study_context(load_config(home / "study.yaml"), records.resolved)
    for folder in (first, second):
        shutil.rmtree(folder)
    heard: dict[int, str] = {}
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if "Tester.test" in " ".join(process.cmdline()):
                        process.kill()

    killer = threading.Thread(target=kill)
    resources = ResourcesConfig(concurrent=1)
    with cluster.joined(resources, None, None, print):
        killer.start()

        def hear(number: int, reason: str) -> None:
            heard[number] = reason
            over.set()

        references = [records.get(number).reference for number in numbers]
        scoring.test_scores(context, resources, list(zip(numbers, references, strict=True)), hear)
        killer.join()
    assert heard[numbers[0]].startswith("its process died 3 times")
    assert heard[numbers[1]] == ""
    assert (second / "scores.json").exists()
    resume("tiny", console=Console(quiet=True))
    assert (first / "scores.json").exists()


def test_changed_data_is_noticed(finished: tuple[Study, str], content: dict[str, Any], tmp_path: Path) -> None:
    rows = Path(content["task"]["paths"]["train"])
    kept = shutil.copy(rows, tmp_path / "kept.csv")
    try:
        rows.write_text(rows.read_text().replace("word1 ", "word2 "))
        with pytest.raises(StudyError, match="the data of study 'tiny' changed"):
            resume("tiny")
    finally:
        shutil.copy(kept, rows)
    with pytest.raises(StudyError, match="may change budget, replicates, resources"):
        resume("tiny", overrides=["sampler.name=tpe"])
    with pytest.raises(StudyError, match="epochs"):
        resume("tiny", overrides=["budget.epochs=9"])
    with pytest.raises(StudyError, match="there are: tiny"):
        resume("tinny")


@pytest.mark.full("a search of its own; test_warm_start has the choice")
def test_a_study_begins_with_what_was_on_an_earlier_front(finished: tuple[Study, str], content: dict[str, Any]) -> None:
    rest = {"enqueue": [], "references": [], "budget": {"trials": 5, "epochs": 1}, "scheduler": {"name": "none"}}
    warmed = run({**content, **rest, "study": "warmed", "warm_start": ["tiny"]}, console=Console(quiet=True))
    best = finished[0].front().best()
    assert best.design
    first = warmed.trials[0]
    assert first.design == best.design
    assert first.name.endswith(f"(from tiny {best.number})")
    assert first.record.params  # it has coordinates, from which a sampler learns
    assert not any("from tiny" in trial.name for trial in warmed.trials[1:])
    with pytest.raises(StoreError, match="nowhere"):
        run({**content, "study": "cold", "warm_start": ["nowhere"]}, console=Console(quiet=True))


def test_exported_adapter_loads(finished: tuple[Study, str], tmp_path: Path) -> None:
    member = load_study("tiny").front().best()
    model = storage.load_model(member.export(tmp_path / "adapter"))
    assert model.labels == sorted(studies.WORDS) or model.labels == tuple(sorted(studies.WORDS))
    assert set(model.predict(["great lovely word1", "awful grim"])) <= set(studies.WORDS)


@pytest.fixture
def devil(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A study of four points, of which one diverges and one needs more memory than there is."""
    (tmp_path / "devil.py").write_text(DEVIL)
    monkeypatch.syspath_prepend(tmp_path)
    return studies.study(
        tmp_path / "inputs",
        study="devil",
        space={"name": "devil:space"},
        references=[],
        constraints={},
        scheduler={"name": "none"},
        budget={"trials": 4, "epochs": 1},
    )


def test_failures_are_kept_with_their_reason_and_the_search_goes_on(devil: dict[str, Any]) -> None:
    study = run(devil, console=Console(quiet=True))
    outcome = {trial.record.params["index"]: trial for trial in study.trials}
    assert sorted(outcome) == [0, 1, 2, 3]  # every point once
    assert {index: trial.state for index, trial in outcome.items()} == {
        0: State.COMPLETE, 1: State.FAIL, 2: State.COMPLETE, 3: State.FAIL,
    }  # fmt: skip
    assert (outcome[1].record.failure or "").startswith("diverged")
    assert (outcome[3].record.failure or "").startswith("out of memory")
    assert {trial.number for trial in study.front()} <= {outcome[0].number, outcome[2].number}


@pytest.mark.full("two searches")
def test_fresh_starts_over(devil: dict[str, Any]) -> None:
    study, again = (run(devil, fresh=True, console=Console(quiet=True)) for _ in range(2))
    assert [trial.score for trial in again.trials] == [trial.score for trial in study.trials]
    assert {trial.run_id for trial in again.trials}.isdisjoint(trial.run_id for trial in study.trials)


@pytest.mark.full("a search of its own; test_search has what is decided")
def test_a_space_that_raises_in_the_middle_ends_the_search_and_keeps_what_was_trained(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "moody.py").write_text(MOODY)
    monkeypatch.syspath_prepend(tmp_path)
    content = studies.study(
        tmp_path / "inputs",
        study="moody",
        space={"name": "moody:space"},
        references=[],
        scheduler={"name": "none"},
        budget={"trials": 9, "epochs": 1},
    )
    with pytest.raises(RuntimeError, match="had enough"):
        run(content, console=Console(quiet=True))
    trials = load_study("moody").trials
    assert trials
    assert {trial.state for trial in trials} == {State.COMPLETE}


def test_faults_of_a_study_leave_nothing_behind(home: Path, content: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        run({**content, "study": "faulty", "sampler": {"name": "grid"}})
    task = {**content["task"], "columns": {"text": "sentence", "label": "label"}}
    with pytest.raises(ValueError, match="no column"):
        run({**content, "study": "faulty", "task": task})
    with pytest.raises(ValueError, match="lora"):  # the smallest LoRA is larger than that
        run({**content, "study": "faulty", "constraints": {"stored_parameters": 1}})
    with pytest.raises(ValueError, match="no point of the space"):  # the head alone has 99
        run({**content, "study": "faulty", "enqueue": [], "constraints": {"trained_parameters": 1}})
    with pytest.raises(ValueError, match="first_layers"):  # the backbone has two layers
        run({**content, "study": "faulty", "space": {"name": "unified", "first_layers": [7]}})
    with pytest.raises(StudyError, match="no study 'faulty'"):
        resume("faulty")


@pytest.mark.full("two searches")
def test_a_study_of_three_objectives(home: Path) -> None:
    """Of what was measured, the front is what no other trial beats in accuracy, size and latency."""
    content = studies.study(
        home / "three",
        study="three",
        objectives={"second_cost": "latency_ms"},
        sampler={"name": "tpe"},
        references=["majority"],
        budget={"trials": 4, "epochs": 1},
    )
    run(content, console=Console(quiet=True))
    study = resume("three", overrides=["budget.trials=6"], console=Console(quiet=True))
    assert [objective.name for objective in study.objectives] == ["accuracy", "stored_parameters", "latency_ms"]
    assert [trial.state for trial in study.trials] == [State.COMPLETE] * 6
    losses = {
        trial.number: (-measured.accuracy, measured.stored_parameters, measured.latency_ms)
        for trial in study.trials
        if (measured := trial.measurements) and measured.accuracy is not None and measured.latency_ms is not None
    }
    expected = {
        number
        for number, own in losses.items()
        if not any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in losses.values())
    }
    rows = json.loads((home / "studies" / "three" / "front.json").read_text())
    assert {row["trial"] for row in rows} == expected
    assert {(-row["score"], row["stored_parameters"], row["latency_ms"]) for row in rows} == {
        losses[number] for number in expected
    }
    tested = {trial.number for trial in study.trials if trial.test_score is not None}
    assert tested >= expected  # also what was on the front before the resume
    kept = optuna.load_study(study_name="three", storage=f"sqlite:///{home}/optuna.db")
    assert [direction.name for direction in kept.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    assert [trial.values for trial in kept.trials[1:]] == [[-own[0], *own[1:]] for own in losses.values()]


def test_a_resume_takes_the_study_to_another_mlflow(home: Path, finished: tuple[Study, str]) -> None:
    """All of it is published there from the records; later resumes stay there."""
    study, uri = finished[0], f"sqlite:///{home}/moved.db"
    here = [{**row, "run_id": ""} for row in study.front().to_rows()]
    moved = resume(study.name, overrides=[f"tracking.uri={uri}"], console=Console(quiet=True))
    assert moved.uri == uri
    assert [{**row, "run_id": ""} for row in moved.front().to_rows()] == here
    assert moved.front().best().load_model().predict(["a word"])
    assert resume(study.name, console=Console(quiet=True)).uri == uri
    resume(study.name, overrides=["tracking.uri=null"], console=Console(quiet=True))
