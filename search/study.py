"""run and resume: a study from its file to the published front.

Truth is the Optuna study and the trials' folders. MLflow is brought in line with it whenever a
driver starts, so that it does not matter when an earlier one died.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
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
from search.naming import curve
from search.pareto import front as non_dominated
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
    config = load_config(source, overrides)
    there = _existing(config.study)
    if there and or_resume:
        return resume(config.study, console=console)
    if there and not fresh:
        raise StudyError(
            f"there is a study {config.study!r} already; go on with it by `petl-search resume {config.study}`, "
            "or start it anew with --fresh, which deletes its trials and adapters"
        )
    with _driving(config.study):
        resolved = _resolve(config)
        _rehearse(config, resolved)  # whatever is wrong is said before anything is made or deleted
        _delete(config)  # also what a driver left that died in the next lines
        records = Records.create_study(_database(), config.study, (config.objectives.score, config.objectives.cost))
        records.set_info("config", config.model_dump(mode="json"))
        records.set_info("resolved", resolved)  # from here on the study exists
        return _drive(config, records, console or report.console())


def resume(name: str, *, overrides: Sequence[str] = (), console: Console | None = None) -> Study:
    """Goes on with a study where it stopped, for whatever reason; a finished one is read back.

    `overrides` may change the sections budget and resources. Raises StudyError where there is no
    such study, or where its backbone or data are not what they were.
    """
    if not _existing(name):
        there = ", ".join(Records.names(_database())) if _database_file().exists() else ""
        raise StudyError(f"there is no study {name!r} in {home()}; there are: {there or 'none'}")
    with _driving(name):
        records = Records.open_study(_database(), name)
        config = _changed(records, overrides)
        before, now = records.info("resolved"), _resolve(config)
        for what, thing in (("fingerprint", "backbone"), ("digest", "data")):
            if now[what] != before[what]:
                raise StudyError(
                    f"the {thing} of study {name!r} changed since it began ({what} {before[what]}, now {now[what]}); "
                    "restore it, or start anew with --fresh"
                )
        return _drive(config, records, console or report.console())


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


class _Publisher:
    """Keeps MLflow in line with the records: a Listener."""

    def __init__(self, tracker: Tracker, records: Records, folder: Path) -> None:
        self.tracker, self.records, self.folder = tracker, records, folder

    def started(self, record: TrialRecord) -> None:
        """The trial's run exists from here on."""
        self.tracker.publish(record, self.records.origin(record.number).counts)

    def reported(self, record: TrialRecord, report: Mapping[str, Any]) -> None:
        """Curves over steps."""
        self.started(record)
        start = [{"step": 0, "startup_seconds": report["startup_seconds"]}] if "startup_seconds" in report else []
        points = curve(report.get("points", ()), report.get("validations", ()))
        self.tracker.progress(record.number, [*start, *points])

    def restarted(self, record: TrialRecord) -> None:
        """Nothing: the run goes on."""

    def ended(self, record: TrialRecord) -> None:
        """The final state, and the adapter of a complete trial; a closed one keeps no training state."""
        self.started(record)
        trial = TrialFolder(self.folder, record.number)
        if record.state is State.COMPLETE and (result := trial.find("result")) and (result / "adapter").is_dir():
            self.tracker.artifacts(record.number, result / "adapter")
        trial.drop_states()

    def everything(self) -> None:
        """Whatever an earlier driver did not live to publish."""
        for record in self.records.all():
            (self.started if record.state is State.RUNNING else self.ended)(record)


def _drive(config: StudyConfig, records: Records, console: Console) -> Study:
    """Everything after the study is on record: trials, test scores, the published front."""
    folder, uri = _folder(config.study), store_uri(config.tracking.uri)
    with cluster.joined(config.resources) if _unfinished(config, records, folder) else nullcontext():
        resolved = _measured(config, records)
        info = {**config.model_dump(mode="json"), "resolved": {key: resolved[key] for key in _SHOWN}}
        tracker = Tracker.open(uri, config.study, artifact_root(uri), info)
        status = "FAILED"
        try:
            _search(config, records, resolved, _Publisher(tracker, records, folder), console)
            study = load_study(config.study, uri)
            tracker.front(study.front().to_rows(), study.reference_rows(), report.write_front(study, folder))
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            tracker.close(status)
    return load_study(config.study, uri)


def _search(
    config: StudyConfig, records: Records, resolved: Mapping[str, Any], publisher: _Publisher, console: Console
) -> None:
    """The trials, and the test scores of those that are shown. Raises KeyboardInterrupt where Tune was stopped."""
    workload = Workload(str(publisher.folder), resolved["backbone"], resolved["task"], resolved["precision"])
    search = Search(records, _plan(config, resolved))
    publisher.everything()
    at_once, score = cluster.room(config.resources), config.objectives.score
    display = Display(
        config.study, config.budget.trials, at_once, score, records.all, lambda: _front(records), console
    )
    display.say(_headline(config, resolved, at_once))
    if not search.done:
        with display.showing():
            run_trials(Bridge(search, (publisher, display), score), workload, config.resources)
    if not search.done:
        raise KeyboardInterrupt
    if search.note:
        display.say(search.note)
    untested = _untested(records, publisher.folder) if "test" in resolved["rows"] else []
    if untested:
        display.say(f"scoring {len(untested)} trials on the test split")

    def heard(number: int, scores: dict[str, float] | None, reason: str) -> None:
        if scores is None:
            display.say(f"trial {number} could not be tested: {reason}")

    cluster.test_scores(workload, config.resources, [(record.number, record.reference) for record in untested], heard)
    for record in _shown(records):
        if tested := TrialFolder(publisher.folder, record.number).find("test"):
            publisher.tracker.tested(record.number, read_json(tested / "scores.json"))


def _unfinished(config: StudyConfig, records: Records, folder: Path) -> bool:
    """Whether there may be work for Ray."""
    everything = records.all()
    trials = sum(record.reference is None for record in everything)
    return (
        any(record.state is State.RUNNING for record in everything)
        or trials < config.budget.trials
        or not set(config.references) <= {record.reference for record in everything}
        or bool("test" in records.info("resolved")["rows"] and _untested(records, folder))
    )


def _shown(records: Records) -> list[TrialRecord]:
    """Members of the front, and the references beside it: the only ones that see the test split."""
    return [*_front(records), *(r for r in records.all() if r.reference and r.state is State.COMPLETE)]


def _untested(records: Records, folder: Path) -> list[TrialRecord]:
    return [record for record in _shown(records) if not TrialFolder(folder, record.number).find("test")]


def _measured(config: StudyConfig, records: Records) -> dict[str, Any]:
    """What was resolved, the precision included: measured once a study, where it would train."""
    resolved: dict[str, Any] = records.info("resolved")
    if resolved["precision"] == "auto":
        precision = cluster.fastest_precision(config.backbone.model, resolved["labels"], config.resources)
        records.set_info("resolved", {**resolved, "precision": precision})
    return dict(records.info("resolved"))


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
        design = presets.parse(text).in_depth(backbone.depth)
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


def _resolve(config: StudyConfig) -> dict[str, Any]:
    """What a study fixes when it begins. Raises BackboneError and TaskError where something is not there."""
    from petl.engine import prepare_process

    prepare_process()
    from petl.data import load_data

    backbone = backbones.describe(config.backbone.model)
    task = tasks.resolve(config.task)
    data = load_data(task, backbones.load_tokenizer(config.backbone.model))
    return {
        "backbone": backbone.to_dict(),
        "fingerprint": backbone.fingerprint,
        "task": asdict(task),
        "labels": list(data.labels),
        "rows": {split: len(part) for split, part in data.splits.items()},
        "digest": data.digest,
        "precision": config.backbone.precision,
    }


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


def _changed(records: Records, overrides: Sequence[str]) -> StudyConfig:
    for override in overrides:
        if override.partition(".")[0] not in _CHANGEABLE:
            raise StudyError(f"a resume may change {' and '.join(_CHANGEABLE)}; received --set {override}")
    before = StudyConfig.model_validate(records.info("config"))
    config = load_config(before.model_dump(mode="json"), overrides)
    if config.budget.epochs != before.budget.epochs:
        raise StudyError("budget.epochs decides what a score means, so it stays; start another study for other epochs")
    records.set_info("config", config.model_dump(mode="json"))
    return config


def _headline(config: StudyConfig, resolved: Mapping[str, Any], at_once: int) -> str:
    rows = ", ".join(f"{count:,} {split}" for split, count in resolved["rows"].items())
    fewer = f" of {config.resources.concurrent} asked for" if at_once < config.resources.concurrent else ""
    return (
        f"study {config.study}: {config.backbone.model} on {resolved['task']['name']} ({rows}), "
        f"{resolved['precision']}, {config.budget.trials} trials, {at_once}{fewer} at once"
    )


def _delete(config: StudyConfig) -> None:
    """Removes a study everywhere, its lock file excepted; nothing where there is none."""
    if Records.exists(_database(), config.study):
        Records.delete(_database(), config.study)
    discard(store_uri(config.tracking.uri), config.study)
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
