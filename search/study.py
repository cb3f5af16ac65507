"""run and resume: a study from its file to the published front.

Truth is the Optuna study and the trials' folders. MLflow is brought in line with it whenever a
driver starts, so that it does not matter when an earlier one died.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from petl import backbones, presets, tasks
from petl.backbones import Backbone
from petl.configuration import Configuration
from petl.count import count
from search import cluster, report
from search.config import StudyConfig, load_config
from search.core import Budget, Enqueued, Plan, Search
from search.display import Display
from search.home import artifact_root, home, store_uri
from search.pareto import front as non_dominated
from search.publisher import Publisher
from search.query import Study, load_study
from search.ray_tune import Bridge, run_trials
from search.record import Records, State, TrialRecord
from search.store import StudyLock, TrialFolder, read_json
from search.tracking import Tracker, discard
from search.worker import Workload
from spaces.space import encode
from spaces.space import resolve as resolve_space

_SHOWN: Final = ("labels", "rows", "precision", "digest", "fingerprint")  # of what is resolved, in MLflow
_CHANGEABLE: Final = ("budget", "resources")  # sections that a resume may set anew


class StudyError(ValueError):
    """A study that exists already, does not exist, or no longer fits its backbone or data."""


class InterruptedStudy(Exception):  # noqa: N818 (no error: the user asked for it)
    """The run was interrupted; nothing that was finished is lost."""

    exit_code = 130  # as shells have it for SIGINT


def run(
    source: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    or_resume: bool = False,
    console: Console | None = None,
) -> Study:
    """Runs a study file (or the same as a mapping) to its end, and returns the study read back.

    A study of that name is refused unless `fresh` removes it or `or_resume` goes on with it.

    Example::

        front = run("spaces/studies/demo.yaml", overrides=["budget.trials=6"]).front()

    Raises ConfigError with every fault of the file, StudyError, BackboneError, TaskError, and
    InterruptedStudy for Ctrl-C.
    """
    if fresh and or_resume:
        raise StudyError("--fresh and --or-resume contradict each other; give one")
    config, console = load_config(source, overrides), console or report.console()
    with _driving(config.study):
        there = _existing(config.study)
        if there and or_resume:
            return _go_on(config.study, config, console)
        if there and not fresh:
            raise StudyError(
                f"there is a study {config.study!r} already; go on with it by `petl-search resume {config.study}`, "
                "or start it anew with --fresh, which deletes its trials and adapters"
            )
        resolved = _resolve(config)
        _rehearse(config, resolved)
        with cluster.joined(config.resources):  # whatever is wrong is said before anything is made or deleted
            _delete(config)  # also what a driver left that died in the next lines
            objectives = (config.objectives.score, config.objectives.cost)
            records = Records.create_study(_database(), config.study, objectives)
            records.set_info("config", config.model_dump(mode="json"))
            records.set_info("resolved", resolved)  # from here on the study exists
            return _drive(config, records, console)


def resume(name: str, *, overrides: Sequence[str] = (), console: Console | None = None) -> Study:
    """Goes on with a study where it stopped, for whatever reason; a finished one is read back.

    `overrides` may change the sections budget and resources. Raises StudyError where there is no
    such study, or where its backbone or data are not what they were.
    """
    if not _existing(name):
        there = ", ".join(Records.names(_database())) if _database_file().exists() else ""
        raise StudyError(f"there is no study {name!r} in {home()}; there are: {there or 'none'}")
    with _driving(name):
        stored = Records.open_study(_database(), name).info("config")
        return _go_on(name, load_config(stored, overrides), console or report.console())


def _go_on(name: str, config: StudyConfig, console: Console) -> Study:
    """Resumes with what may change taken from `config`. Raises StudyError where more than that differs."""
    records = Records.open_study(_database(), name)
    now, before = config.model_dump(mode="json"), records.info("config")
    changed = [section for section in now if now[section] != before.get(section)]
    if set(changed) - set(_CHANGEABLE):
        raise StudyError(
            f"a resume may change {' and '.join(_CHANGEABLE)}; received another {', '.join(changed)}. "
            "Start another study for that, or this one anew with --fresh"
        )
    if now["budget"]["epochs"] != before["budget"]["epochs"]:
        raise StudyError("budget.epochs decides what a score means, so it stays; start another study for other epochs")
    started = records.info("resolved")
    resolved = _resolve(config, started["backbone"]["revision"])
    for what, thing in (("fingerprint", "backbone"), ("digest", "data")):
        if resolved[what] != started[what]:
            raise StudyError(
                f"the {thing} of study {name!r} changed since it began ({what} {started[what]}, now {resolved[what]}); "
                "restore it, or start anew with --fresh"
            )
    records.set_info("config", now)
    with cluster.joined(config.resources) if _unfinished(config, records) else nullcontext():
        return _drive(config, records, console)


@contextmanager
def _driving(study: str) -> Iterator[None]:
    """This process is the study's one driver inside; Ctrl-C becomes InterruptedStudy."""
    lock = StudyLock(_folder(study))
    lock.drive()
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedStudy(
            f"interrupted; nothing that was finished is lost. Go on with: petl-search resume {study}"
            if _existing(study)
            else f"interrupted before the study {study!r} began"
        ) from None
    finally:
        lock.release()


def _drive(config: StudyConfig, records: Records, console: Console) -> Study:
    """Everything after the study is on record: trials, test scores, the published front."""
    folder, uri = _folder(config.study), _uri(records)
    workload = _workload(config, records)
    resolved = records.info("resolved")
    info = {**config.model_dump(mode="json"), "resolved": {key: resolved[key] for key in _SHOWN}}
    tracker = Tracker.open(uri, config.study, artifact_root(uri), info)
    status = "FAILED"
    try:
        _search(config, records, workload, tracker, console)
        study = load_study(config.study, uri)
        tracker.front(study.front().to_rows(), study.reference_rows(), report.write_front(study, folder))
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.close(status)
    return load_study(config.study, uri)


def _search(config: StudyConfig, records: Records, workload: Workload, tracker: Tracker, console: Console) -> None:
    """The trials, and the test scores of those that are shown. Raises KeyboardInterrupt where Tune was stopped."""
    resolved, folder = records.info("resolved"), Path(workload.folder)
    at_once, score = cluster.room(config.resources), config.objectives.score
    display = Display(config.study, config.budget.trials, at_once, score, records.all, lambda: _front(records), console)
    publisher = Publisher(tracker, records, folder, display.say)
    publisher.everything()
    display.say(_headline(config, resolved, at_once))
    with _stopwatch(records) as clock:
        search = Search(records, _plan(config, resolved), clock)
        if not search.done:
            with display.showing():
                run_trials(Bridge(search, (publisher, display), score), workload, config.resources)
        if not search.done:
            raise KeyboardInterrupt
        if search.note:
            display.say(search.note)
        elif search.counted < config.budget.trials:
            display.say(f"the budget of {config.budget.hours:g} hours is spent after {search.counted} trials")
    untested = _untested(config, records)
    if untested:
        display.say(f"scoring {len(untested)} trials on the test split")

    def heard(number: int, scores: dict[str, float] | None, reason: str) -> None:
        if scores is None:
            display.say(f"trial {number} could not be tested: {reason}")

    cluster.test_scores(workload, config.resources, [(record.number, record.reference) for record in untested], heard)
    publisher.catch_up()
    for record in _shown(records):
        if tested := TrialFolder(folder, record.number).find("test"):
            tracker.tested(record.number, read_json(tested / "scores.json"))


@contextmanager
def _stopwatch(records: Records) -> Iterator[Callable[[], float]]:
    """The seconds that the study has been searching, over all its drivers.

    What a killed driver spent since it began is not known, and not counted.
    """
    before, began = float(records.info("seconds", 0.0)), time.monotonic()

    def clock() -> float:
        return before + time.monotonic() - began

    try:
        yield clock
    finally:
        records.set_info("seconds", clock())


def _unfinished(config: StudyConfig, records: Records) -> bool:
    """Whether there may be work for Ray."""
    everything = records.all()
    return (
        any(record.state is State.RUNNING for record in everything)
        or sum(record.reference is None for record in everything) < config.budget.trials
        or not set(config.references) <= {record.reference for record in everything}
        or bool(_untested(config, records))
    )


def _shown(records: Records) -> list[TrialRecord]:
    """Members of the front, and the references beside it: the only ones that see the test split."""
    return [*_front(records), *(r for r in records.all() if r.reference and r.state is State.COMPLETE)]


def _untested(config: StudyConfig, records: Records) -> list[TrialRecord]:
    if "test" not in records.info("resolved")["rows"]:
        return []
    folder = _folder(config.study)
    return [record for record in _shown(records) if not TrialFolder(folder, record.number).find("test")]


def _workload(config: StudyConfig, records: Records) -> Workload:
    """What the workers are given; the precision is measured once a study, where it would train."""
    resolved = records.info("resolved")
    folder, precision = str(_folder(config.study)), resolved["precision"]
    workload = Workload(
        folder, resolved["backbone"], resolved["task"], precision, config.seed, config.resources.zero_stage
    )
    if precision == "auto":
        workload = replace(workload, precision=cluster.fastest_precision(workload, config.resources))
        records.set_info("resolved", {**resolved, "precision": workload.precision})
    return workload


def _rehearse(config: StudyConfig, resolved: Mapping[str, Any]) -> None:
    """A search that proposes one point and is thrown away.

    Raises SpaceError and SearchError for limits that leave nothing, and for enqueued designs outside them.
    """
    plan, objectives = _plan(config, resolved), (config.objectives.score, config.objectives.cost)
    Search(Records.in_memory(objectives), plan)
    bare = replace(plan, references={}, enqueued=(), sampler="random")
    Search(Records.in_memory(objectives), bare).next(free_workers=1)


def _plan(config: StudyConfig, resolved: Mapping[str, Any]) -> Plan:
    backbone, labels = Backbone.from_dict(resolved["backbone"]), len(resolved["labels"])
    options = dict(config.space)
    name = options.pop("name", "unified")
    training = config.fixed_training
    bound = resolve_space(name, options, training, config.seed)

    def space(trial: Any, backbone: Backbone, /) -> Configuration:
        configuration = bound(trial, backbone)
        return replace(configuration, training=replace(configuration.training, epochs=config.budget.epochs))

    def counts(configuration: Configuration) -> dict[str, float]:
        counted = count(configuration.design, backbone, labels)
        return {
            "stored_parameters": counted.stored,
            "stored_percent": counted.stored_percent,
            "trained_parameters": counted.trained,
            "trained_percent": counted.trained_percent,
            "paper_parameters": counted.paper,
        }

    def enqueued(text: str) -> Enqueued:
        design = presets.parse(text).canonical(backbone.layout)
        coordinates = encode(name, design, training.learning_rate, backbone, options)
        return Enqueued(text, Configuration(design, training, config.seed), coordinates)

    return Plan(
        space=space,
        backbone=backbone,
        count=counts,
        budget=Budget(
            trials=config.budget.trials,
            hours=config.budget.hours or math.inf,
            concurrent=cluster.room(config.resources),
        ),
        rule=config.scheduler.rule(config.budget.epochs),
        limits=config.constraints,
        sampler=config.sampler.name,
        seed=config.sampler.seed,
        references=config.reference_configurations(),
        enqueued=[enqueued(text) for text in config.enqueue],
    )


def _resolve(config: StudyConfig, revision: str = "") -> dict[str, Any]:
    """What a study fixes when it begins. Raises BackboneError and TaskError where something is not there."""
    from petl.engine import prepare_process

    prepare_process()
    from petl.data import load_data

    model, task = config.backbone.model, tasks.resolve(config.task)
    backbone = backbones.describe(model, revision=revision)
    if not backbone.fingerprint:
        raise backbones.BackboneError(f"{model} has no weights to train: no *.safetensors beside its config.json")
    if backbone.max_tokens is not None and task.max_length > backbone.max_tokens:
        raise tasks.TaskError(
            f"task.max_length is at most {backbone.max_tokens} on {model}, which has no more positions; "
            f"received {task.max_length}"
        )
    data = load_data(task, backbones.load_tokenizer(model, revision=backbone.revision))
    return {
        "backbone": backbone.to_dict(),
        "fingerprint": backbone.fingerprint,
        "task": asdict(task),
        "labels": list(data.labels),
        "rows": {split: len(part) for split, part in data.splits.items()},
        "digest": data.digest,
        "precision": config.backbone.precision,
        "uri": config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"),
    }


def _uri(records: Records) -> str:
    """The MLflow store of a study: what it was when the study began, the home's own where nothing was said."""
    return store_uri(records.info("resolved")["uri"] or f"sqlite:///{home() / 'mlflow.db'}")


def _front(records: Records) -> list[TrialRecord]:
    """The non-dominated complete trials, the cheapest first. Limits were kept before training."""
    complete = [
        (record, [objective.value(record.measurements) or 0.0 for objective in records.objectives])
        for record in records.all()
        if record.state is State.COMPLETE and record.reference is None and record.measurements
    ]
    mask = non_dominated([values for _, values in complete], [objective.direction for objective in records.objectives])
    members = [member for member, on_front in zip(complete, mask, strict=True) if on_front]
    return [record for record, _ in sorted(members, key=lambda member: member[1][1])]


def _headline(config: StudyConfig, resolved: Mapping[str, Any], at_once: int) -> str:
    rows = ", ".join(f"{count:,} {split}" for split, count in resolved["rows"].items())
    fewer = f" of {config.resources.concurrent} asked for" if at_once < config.resources.concurrent else ""
    return (
        f"study {config.study}: {config.backbone.model} on {resolved['task']['name']} ({rows}), "
        f"{resolved['precision']}, {config.budget.trials} trials, {at_once}{fewer} at once"
    )


def _delete(config: StudyConfig) -> None:
    """Removes a study everywhere, its lock file excepted; nothing where there is none."""
    discard(store_uri(config.tracking.uri), config.study)  # first: it may be a server that does not answer
    if Records.exists(_database(), config.study):
        Records.delete(_database(), config.study)
    shutil.rmtree(_folder(config.study) / "trials", ignore_errors=True)


def _existing(study: str) -> bool:
    """Whether a study was begun and not deleted; one whose driver died before it was on record was not."""
    if not (_database_file().exists() and Records.exists(_database(), study)):
        return False
    return Records.open_study(_database(), study).info("resolved") is not None


def _folder(study: str) -> Path:
    return home() / "studies" / study


def _database_file() -> Path:
    return home() / "optuna.db"


def _database() -> str:
    """The durable Optuna storage of this home."""
    home().mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{_database_file()}"
