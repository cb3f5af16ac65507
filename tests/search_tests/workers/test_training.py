"""A worker's attempts at trials, without Ray: what lies in the trial's folder decides where one goes on."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import studies

from petl.configuration import Configuration, Training
from petl.presets import parse
from search.storage.folder import TrialFolder, read_json
from search.storage.locks import StudyLock, run_token
from search.storage.remote import StoreAwayError
from search.trials.report import Report
from search.workers.assignment import Assignment, StudyContext, milestones
from search.workers.training import TrialTraining, WarmModel, failed


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return studies.study(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def context(content: dict[str, Any], tmp_path: Path) -> StudyContext:
    return studies.context(tmp_path, content)


def test_folder_of_another_run_is_not_the_one_that_all_nodes_share(context: StudyContext, tmp_path: Path) -> None:
    """As on a node that once drove a study of that name on a disk of its own, where nobody would see its trials."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    for folder in (own, shared):
        StudyLock(folder).drive()
    run = replace(context, folder=str(shared), run=run_token(shared))
    assert run.home == shared
    with pytest.raises(StoreAwayError, match=r"does not see the study's folder .*own"):
        _ = replace(run, folder=str(own)).home
    StudyLock(shared).drive()  # the next driver's
    with pytest.raises(StoreAwayError, match=r"does not see the study's folder .*shared"):
        _ = run.home


def assignment(design: str = "lora:rank=2", number: int = 0, **training: Any) -> Assignment:
    settings = {"learning_rate": 5e-3, "epochs": 3.0, "batch_size": 16, **training}
    configuration = Configuration(parse(design), Training(**settings))
    return Assignment(number, configuration, None, (1.0, 2.0, 3.0), time.time())


def finish(attempt: TrialTraining) -> Report:
    report = Report()
    while not report.done:
        report = attempt.advance()
    return report


def test_milestones_are_reported_and_kept(context: StudyContext) -> None:
    attempt = TrialTraining(WarmModel(context), assignment())
    for epoch in (1.0, 2.0):
        report = attempt.advance()
        assert [row["epoch"] for row in report.validations] == list(range(1, int(epoch) + 1))
        states = [path.name for path in attempt.folder.path.glob("state-*")]
        assert states == [f"state-{len(report.validations)}"]
    report = attempt.advance()
    assert report.done
    assert report.measurements.epochs == 3.0
    assert not list(attempt.folder.path.glob("state-*"))
    assert {path.name for path in (attempt.folder.path / "result" / "adapter").iterdir()} == {
        "adapter.safetensors", "design.json", "hashes.json", "head.safetensors", "model.json", "tokenizer",
    }  # fmt: skip


def test_each_milestone_is_reported_once_wherever_its_step_falls(context: StudyContext) -> None:
    """A third of an epoch is no whole number of steps; 2.9 and 3 epochs may be the same one."""
    milestones = (1 / 3, 0.67, 1.0, 2.99, 3.0)
    attempt = TrialTraining(WarmModel(context), replace(assignment(), milestones=milestones))
    report = finish(attempt)
    assert tuple(row["epoch"] for row in report.validations) == milestones
    steps = [row["step"] for row in report.validations]
    per_epoch = -(-len(attempt.warm.data.splits["train"]) // 16)
    assert steps == [round(milestone * per_epoch) for milestone in milestones]


@pytest.mark.parametrize("milestones", [0, 1, 2])
def test_another_process_goes_on_from_the_folder(context: StudyContext, milestones: int, tmp_path: Path) -> None:
    whole = finish(TrialTraining(WarmModel(replace(context, folder=str(tmp_path / "whole"))), assignment()))
    first = TrialTraining(WarmModel(context), assignment())
    for _ in range(milestones):
        first.advance()
    second = TrialTraining(WarmModel(context), assignment())
    if milestones:  # what the first reported may never have arrived
        assert len(second.advance().validations) == milestones
    report = finish(second)
    for key in ("accuracy", "loss", "f1"):
        assert report.measurements.to_dict()[key] == whole.measurements.to_dict()[key]
    assert [point["loss"] for point in report.points] == [point["loss"] for point in whole.points]


def test_a_committed_result_is_reported_without_training(context: StudyContext) -> None:
    report = finish(TrialTraining(WarmModel(context), assignment()))
    again = TrialTraining(WarmModel(context), assignment())
    manifest = (again.folder.path / "result" / "manifest.json").stat().st_mtime_ns
    assert again.advance().measurements == report.measurements
    assert (again.folder.path / "result" / "manifest.json").stat().st_mtime_ns == manifest


def test_a_trial_is_given_what_its_twin_came_to(context: StudyContext) -> None:
    first = TrialTraining(WarmModel(context), assignment())
    report, theirs = finish(first), first.folder.path / "result"
    follower = TrialTraining(WarmModel(context), replace(assignment(number=1), twin=0), rank=1)
    assert follower.advance().measurements == report.measurements
    assert not follower.folder.path.exists()  # which the first rank of a gang writes
    torn = follower.folder.begin("result")
    (torn / "report.json").write_text("{}")
    for _ in range(2):
        given = TrialTraining(WarmModel(context), replace(assignment(number=1), twin=0))
        assert given.advance() == replace(report, startup_seconds=None, facts={"twin": 0})
        assert given.warm._model is None
    own = given.folder.path / "result"
    assert {path.relative_to(own) for path in own.rglob("*")} == {
        path.relative_to(theirs) for path in theirs.rglob("*")
    }
    for path in theirs.rglob("adapter/*"):
        assert path.is_dir() or (own / path.relative_to(theirs)).read_bytes() == path.read_bytes()
    assert given.folder.result()


def test_a_trial_whose_twin_has_lost_its_result_trains(context: StudyContext) -> None:
    first = TrialTraining(WarmModel(context), assignment())
    report = finish(first)
    first.folder.drop("result")
    again = finish(TrialTraining(WarmModel(context), replace(assignment(number=1), twin=0)))
    assert not again.facts
    assert [point["loss"] for point in again.points] == [point["loss"] for point in report.points]
    assert again.measurements.accuracy == report.measurements.accuracy


def test_a_torn_state_is_not_used(context: StudyContext) -> None:
    attempt = TrialTraining(WarmModel(context), assignment())
    attempt.advance()
    state = attempt.folder.latest_state()
    assert state is not None
    (state / "state.safetensors").write_bytes((state / "state.safetensors").read_bytes()[:-8])
    assert len(finish(TrialTraining(WarmModel(context), assignment())).validations) == 3


@pytest.mark.parametrize(
    ("design", "training", "reason"),
    [
        ("full", {"learning_rate": 1e30, "clip": 0.0}, "diverged: "),
        ("prefix:length=10000000000000", {}, "out of memory: "),
        ("lora:layers=top 99", {}, "DesignError: the stack has 2 layers"),
    ],
)
def test_failures_are_reported_and_the_resident_lives_on(
    context: StudyContext, design: str, training: dict[str, Any], reason: str
) -> None:
    warm = WarmModel(context)
    before = finish(TrialTraining(warm, assignment(number=0)))
    report = finish(TrialTraining(warm, assignment(design, number=1, **training)))
    assert report.failure.startswith(reason)
    after = finish(TrialTraining(warm, assignment(number=2)))
    assert after.measurements.accuracy == before.measurements.accuracy
    assert after.measurements.loss == before.measurements.loss


@pytest.mark.parametrize(
    "text",  # of torch on a CPU of Linux, of another system, and of a GPU
    [
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes. Error code 12",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 400 bytes.",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
    ],
)
def test_whatever_lacks_memory_says_so(text: str) -> None:
    assert failed(RuntimeError(text)).failure == f"out of memory: {text}"


def test_a_failure_with_the_design_half_attached_does_not_reach_the_next_trial(
    context: StudyContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = WarmModel(context)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no engine")

    with monkeypatch.context() as patch:
        patch.setattr("petl.training.run.open_engine", broken)  # the design is on the model by then
        assert finish(TrialTraining(warm, assignment(number=0))).failure == "RuntimeError: no engine"
    assert finish(TrialTraining(warm, assignment(number=1))).measurements


def test_zero_stage_changes_nothing_that_is_reported_or_kept(context: StudyContext, tmp_path: Path) -> None:
    reports, scores = [], []
    for stage in (0, 3):
        warm = WarmModel(replace(context, folder=str(tmp_path / str(stage)), zero_stage=stage))
        attempt = TrialTraining(warm, assignment("bitfit+lora:rank=2"))
        attempt.advance()
        attempt.close()  # as where its process dies: the next one goes on from the folder
        reports.append(finish(TrialTraining(warm, assignment("bitfit+lora:rank=2"))))
        scores.append(warm.test(0, None))
    assert [point["step"] for point in reports[1].points] == [point["step"] for point in reports[0].points]
    for key in ("accuracy", "loss", "stored_parameters"):
        assert reports[1].measurements.to_dict()[key] == pytest.approx(reports[0].measurements.to_dict()[key], abs=1e-5)
    assert scores[1]["test"] == pytest.approx(scores[0]["test"], abs=1e-5)


@pytest.mark.parametrize("name", ["majority", "probe"])
def test_baselines(context: StudyContext, name: str) -> None:
    warm = WarmModel(context)
    report = TrialTraining(warm, Assignment(0, None, name, (), time.time())).advance()
    measured, labels = report.measurements, warm.data.splits["validation"].labels.numpy()
    counts = [int((warm.data.splits["train"].labels == index).sum()) for index in range(3)]
    majority = float((labels == counts.index(max(counts))).mean())
    if name == "majority":
        assert measured.accuracy == pytest.approx(majority)
        assert measured.trained_parameters == 0
    else:
        assert measured.trained_parameters == 3 * (32 + 1)
        assert measured.accuracy > majority
    scores = warm.test(0, name)
    assert scores == read_json(TrialFolder(Path(context.folder), 0).path / "test" / "scores.json")


def test_assignment_survives_json() -> None:
    given = replace(assignment(), seed=3, twin=2)
    assert Assignment.from_json(given.to_json()) == given


def test_milestones_are_rungs_validations_and_the_end() -> None:
    assert milestones((0.67,), 3.0) == (0.67, 1.0, 2.0, 3.0)
    assert milestones((), 2.0, every=0.75) == (0.75, 1.5, 2.0)
    assert milestones((0.5,), 1.0, every=0.5) == (0.5, 1.0)
    assert milestones((), 0.4) == (0.4,)
    assert len(milestones((0.1, 0.3, 0.9), 1.0, every=0.3)) == 5  # 3 x 0.3 is no other place than 0.9


def test_a_result_is_never_written_again(context: StudyContext) -> None:
    """By a process that was cut off, say, while another one took its trial up."""
    cut_off, other = TrialTraining(WarmModel(context), assignment()), TrialTraining(WarmModel(context), assignment())
    cut_off.advance()
    cut_off.advance()
    written: list[float] = []

    def meanwhile(what: str, done: int, total: int) -> None:
        if not written:
            written.append(0.0)
            finish(other)
            written[0] = manifest.stat().st_mtime_ns

    manifest = other.folder.path / "result" / "manifest.json"
    assert cut_off._run
    cut_off._run.progress = meanwhile
    assert cut_off.advance() == Report.from_dict(read_json(manifest.parent / "report.json"))
    assert written == [manifest.stat().st_mtime_ns]
