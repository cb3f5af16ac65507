"""TrialRecord <-> MLflow run, both directions. The only module that imports mlflow.

A study is an experiment of its name. In it, one parent run (tag `kind` = study), one child run per
trial (`kind` = trial or reference, `trial` = its number), and of those one per replicate (`kind` = replicate,
`seed` = its seed). Parameters, metrics and the readable tags are
for people who sort, filter and compare; the tag `record` holds the TrialRecord itself as JSON, so that
MLflow alone gives it back exactly. It is written last: a run without it is a half-written one, and the
next `publish` completes it.

MLflow's status of a run: FINISHED for a complete trial, KILLED for one that its rung rule stopped (so
that ``attributes.status = 'FINISHED'`` keeps the fully trained ones only), FAILED for one that failed.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when mlflow is imported
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"  # it would be drawn into tables and logs
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # two lines for every run that ends

from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.utils.rest_utils import augmented_raise_for_status, http_request  # type: ignore[attr-defined]
from pydantic import TypeAdapter, ValidationError

from petl.configuration import Configuration
from petl.measurements import SCORES, SHARES, Measurements
from petl.untrusted import MOST_JSON, parse, printable
from search.address import bare, masked, sqlite_file, whole
from search.database import is_postgresql, reaching, require_database
from search.home import STUDY_NAME, StoreError, require_store
from search.naming import flat_parameters, run_name
from search.note import links, note
from search.objectives import Objectives, objectives
from search.provenance import provenance
from search.record import State, TrialRecord
from search.seeds import Believed, Replicate

STATUS: Final[Mapping[State, str]] = {
    State.RUNNING: "RUNNING",
    State.PAUSED: "SCHEDULED",
    State.COMPLETE: "FINISHED",
    State.PRUNED: "KILLED",
    State.FAIL: "FAILED",
}


@dataclass(frozen=True)
class _Info:
    """What readers look at in a study's `info`."""

    objectives: dict[str, str | None]
    constraints: dict[str, float] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    designs: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    seed: int = 0
    paper: dict[str, str] | None = None


ADAPTER: Final = "adapter"  # the artifact folder of a trial's adapter directory
_WITHDRAWN: Final = "withdrawn"  # the tag that says why a trial has no adapter any more
_DISK: Final = "disk"  # the parent's tags
_SPENT: Final = "spent"
_FINAL: Final = "final"  # the tag of a trial's scores on whole splits
_BELIEVED: Final = "believed"  # that of what all its seeds say
_STUDY_TAG: Final = "petl_search.study"  # on the experiment
_TAG_LENGTH: Final = 5_000  # MLflow takes 8,000 characters, some of its older servers 5,000
_METRICS_PER_BATCH: Final = 1_000
_PASSING: Final = (401, 403, 408, 409, 425, 429, 499)  # of the answers 4xx, those that time or a person may mend
# Of a process that writes, unless the user says otherwise. Its journal is what tries again: MLflow's own retries take
# minutes, and repeat also what has arrived, so that a run would be made twice.
_IMPATIENT: Final = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
_PAGE: Final = 1_000
# What is read of a run is bounded, and is what this module can have written: whoever reads a study may not know who
# else writes into its store.
_MOST_TAGS: Final = 200  # of one text: a million characters, a list of some thousand designs
_MOST_FILES: Final = 100  # of an adapter
_MOST_TENSORS: Final = 2**36  # bytes of a file: full fine-tuning of a 16 B model in float32
_ADAPTER_FOLDER: Final = re.compile(ADAPTER + r"(/\w[\w.-]*){1,2}", re.ASCII)
_ADAPTER_FILE: Final = re.compile(
    ADAPTER + r"(/\w[\w.-]*){0,2}/\w[\w.-]*\.(json|safetensors|txt|model|jinja)", re.ASCII
)
_PIECE: Final = 2**20
_MOST: Final = 1e18  # of counts, seconds, bytes
_RECORD: Final = TypeAdapter(TrialRecord)
_MEASUREMENTS: Final = TypeAdapter(Measurements)
_NUMBERS: Final = TypeAdapter(dict[str, float])
_BELIEFS: Final = TypeAdapter(Believed)
_BYTES: Final = TypeAdapter(dict[str, int | None])
_INFO: Final = TypeAdapter(_Info)
_NONSENSE: Final = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)

_OPENING: Final = threading.Lock()  # MLflow opens a database once a process, and imports what it takes for that

T = TypeVar("T")


class LeftOutWarning(UserWarning):
    """A run, or a study, that is not shown since it makes no sense."""


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """A study as its experiment and parent run tell it. `info` is what `Tracker.open` was given.

    `status` is MLflow's word for the parent run; `started` is seconds since the epoch. As it last told, `disk` has the
    bytes `used` by the study, and their `limit`, and `spent` its `hours` of searching and `device_hours`.
    """

    name: str
    experiment_id: str
    run_id: str
    status: str
    started: float
    info: Mapping[str, Any]
    disk: Mapping[str, int | None] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A TrialRecord and what else MLflow has of it.

    `counts` are the measurements known before training, by name; `validation` and `test` the scores on
    the whole of these splits, where the trial was scored on them when its study ended. `believed` is what replicates
    say of it, where the study had some. `withdrawn` says why its adapter was removed, if it was.
    """

    record: TrialRecord
    run_id: str
    counts: Mapping[str, float] = field(default_factory=dict)
    validation: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    believed: Believed | None = None
    on_front: bool = False
    withdrawn: str = ""


# --- writing -------------------------------------------------------------------------------------


@dataclass
class _Child:
    """What the writer knows of a child run, so that nothing is sent twice.

    `last` maps a metric to its last step and value; a metric that is missing was not looked up yet.
    """

    run_id: str
    status: str
    record: str | None
    counts: str | None
    final: str | None
    believed: str | None
    on_front: bool
    has_parameters: bool
    last: dict[str, tuple[int, float]]
    fresh: bool  # created by this tracker: MLflow has no earlier points of it

    @classmethod
    def of(cls, run_id: str) -> _Child:
        """One that was just made."""
        return cls(
            run_id=run_id,
            status="RUNNING",
            record=None,
            counts=None,
            final=None,
            believed=None,
            on_front=False,
            has_parameters=False,
            last={},
            fresh=True,
        )


class Tracker:
    """The one writer of a study's runs, on the driver. Every method may be called again after a restart.

    It remembers what it wrote, so that nothing is sent twice. Where a method raised, MLflow may have taken in
    all of it, some or nothing, and only a Tracker that is opened anew knows which. What is sent again has the
    times that it had, so that MLflow knows a metric again that did arrive after all.

    Example::

        tracker = Tracker.open(store_uri(), "demo", artifact_root(), info)
        tracker.publish(record)
        tracker.progress(record.number, [{"step": 10, "train_loss": 0.9}])
        tracker.close()
    """

    def __init__(
        self, client: MlflowClient, experiment_id: str, run_id: str, study: str, objectives: Objectives
    ) -> None:
        self.study = study
        self.objectives = objectives
        self.experiment_id = experiment_id
        self.run_id = run_id  # of the parent
        self._client = client
        # One writer and an index read at the start: between the two nobody else creates a run.
        self._children = {
            int(run.data.tags["trial"]): _Child(
                run_id=run.info.run_id,
                status=run.info.status,
                record=_joined(run.data.tags, "record"),
                counts=_joined(run.data.tags, "counts"),
                final=_joined(run.data.tags, _FINAL),
                believed=_joined(run.data.tags, _BELIEVED),
                on_front=run.data.tags.get("on_front") == "true",
                has_parameters=bool(run.data.params),
                last={},
                fresh=False,
            )
            for run in _one_a_trial(client, experiment_id)
        }
        self._replicates: dict[tuple[int, int], str] = {
            (int(run.data.tags["trial"]), int(run.data.tags["seed"])): run.info.run_id
            for run in _replicates(client, experiment_id)
            if run.info.status != "RUNNING"  # a half-written one is made again
        }

    @classmethod
    def open(cls, uri: str, study: str, artifact_root: Path | None, info: Mapping[str, Any]) -> Tracker:
        """The study's experiment and parent run, created or found again, with the parent marked RUNNING.

        `info` is the study file with what was resolved, JSON-ready; readers need its
        `objectives`, `constraints`, `backbone.model` and `task.name`.
        Raises StoreError where no store answers, or the experiment of that name is somebody else's.
        """
        client = _client(uri, create=True)
        with _answering(uri):
            experiment_id = _own_experiment(client, study, artifact_root)
            tags = {"kind": "study", "study": study, **_split("info", json.dumps(info)), **provenance()}
            parent = _parent(client, experiment_id)
            if parent is None:  # made with its tags: killed at any moment, there is no parent that readers cannot read
                parent = client.create_run(experiment_id, run_name=study, tags=tags)
            else:
                client.update_run(parent.info.run_id, status="RUNNING")
                _write(client, parent.info.run_id, tags=tags)
            run_id = parent.info.run_id
            searched = objectives(**info["objectives"])
            line = links(experiment_id, run_id, searched[0].name)
            client.set_experiment_tag(experiment_id, "mlflow.note.content", line)
            return cls(client, experiment_id, run_id, study, searched)

    def begin(self) -> None:
        """The parent run goes on, whatever an earlier driver ended it as."""
        self._client.update_run(self.run_id, status="RUNNING")

    def run_of(self, number: int) -> str | None:
        """The MLflow run of a trial; None where it was never published."""
        child = self._children.get(number)
        return child.run_id if child else None

    def ensure(self, record: TrialRecord) -> None:
        """The trial has a run, to which `progress` may add; one that was published has it already."""
        if record.number not in self._children:
            self._children[record.number] = self._create(record)

    def publish(
        self, record: TrialRecord, counts: Mapping[str, float] | None = None, *, at: float | None = None
    ) -> str:
        """Make the trial's run say what `record` says; returns its run id. Unchanged records cost nothing.

        `counts` are measurements known before training, by the names of Measurements: the only cost
        that a stopped or failed trial has. They never change. `at` is the time of all these metrics, by
        default now; seconds since the epoch.
        """
        self.ensure(record)
        child = self._children[record.number]
        text = json.dumps(to_dict(record), sort_keys=True)
        if child.record != text:
            parameters = flat_parameters(record.configuration) if record.configuration else {}
            measured = record.measurements
            _write(
                self._client,
                child.run_id,
                params={} if child.has_parameters else parameters,
                metrics=self._new(child, measured.to_dict(), measured.steps, at) if measured else (),
                tags=_readable(record) | _split("record", text),
            )
            child.record, child.has_parameters = text, bool(parameters)
        if counts and child.counts is None:
            child.counts = json.dumps(dict(counts), sort_keys=True)
            metrics = [] if record.measurements else self._new(child, counts, 0, at)
            _write(self._client, child.run_id, metrics=metrics, tags=_split("counts", child.counts))
        status = STATUS[record.state]
        if child.status != status:
            if record.state.open:
                self._client.update_run(child.run_id, status=status)
            else:
                self._client.set_terminated(child.run_id, status, _milliseconds(record.ended))
            child.status = status
        return child.run_id

    def progress(self, number: int, points: Iterable[Mapping[str, float]], *, at: float | None = None) -> None:
        """Metrics of a published trial over its steps: each point has a `step`, perhaps a `time`, and values.

        `at` is the time of those without one, by default now; seconds since the epoch.

        A step that a metric already has is left as it is, so a resumed trial may report again what it
        repeats. Values that are not finite are left out: they would spoil the charts' axes.
        """
        child = self._child(number)
        metrics: list[Metric] = []
        for point in sorted(points, key=lambda point: point["step"]):
            step = int(point["step"])
            values = {k: v for k, v in point.items() if k not in ("step", "time") and self._last(child, k)[0] < step}
            metrics += self._new(child, values, step, point.get("time", at))
        for batch in _batches(metrics, _METRICS_PER_BATCH):
            self._client.log_batch(child.run_id, metrics=batch)

    def tested(self, number: int, scores: Mapping[str, Mapping[str, float]], *, at: float | None = None) -> None:
        """Scores of a published trial by split, by the names of Measurements: metrics such as `test_accuracy`.

        `at` is when they were made known, by default now; seconds since the epoch.
        """
        child = self._child(number)
        text = json.dumps({split: dict(values) for split, values in scores.items()}, sort_keys=True)
        if child.final != text:
            named = {f"{split}_{name}": value for split, values in scores.items() for name, value in values.items()}
            _write(self._client, child.run_id, metrics=self._new(child, named, 0, at), tags=_split(_FINAL, text))
            child.final = text

    def replicate(self, run: Replicate, points: Sequence[Mapping[str, float]] = (), *, at: float | None = None) -> None:
        """A run below the trial's, of a replicate that is over; nothing where there is one already.

        `points` are as for `progress`; `at` is the time of those without one, by default now.
        """
        if (run.number, run.seed) in self._replicates:
            return
        child = self._child(run.number)
        for half in _replicates(self._client, self.experiment_id, run):
            self._client.delete_run(half.info.run_id)
        tags = {
            "mlflow.parentRunId": child.run_id,
            "study": self.study,
            "trial": str(run.number),
            "seed": str(run.seed),
            "kind": "replicate",
            "state": str(State.FAIL if run.failure else State.COMPLETE),
            **({"failure": run.failure[:500]} if run.failure else {}),
            **provenance(),
        }
        made = self._client.create_run(
            self.experiment_id,
            start_time=_milliseconds(run.started),
            tags=tags,
            run_name=f"{run.number} seed {run.seed}",
        )
        own = _Child.of(made.info.run_id)
        measured = run.measurements
        metrics = [
            metric
            for point in sorted(points, key=lambda point: point["step"])
            for metric in self._new(
                own,
                {name: value for name, value in point.items() if name not in ("step", "time")},
                int(point["step"]),
                point.get("time", at),
            )
        ] + (self._new(own, measured.to_dict(), measured.steps, at) if measured else [])
        for batch in _batches(metrics, _METRICS_PER_BATCH):
            self._client.log_batch(own.run_id, metrics=batch)
        status = STATUS[State.FAIL if run.failure else State.COMPLETE]
        self._client.set_terminated(own.run_id, status, _milliseconds(run.ended))
        self._replicates[run.number, run.seed] = own.run_id

    def believed(self, number: int, what: Believed, *, at: float | None = None) -> None:
        """What all seeds of a published trial say: metrics `believed_mean`, `believed_probability` ..."""
        child = self._child(number)
        text = json.dumps(asdict(what), sort_keys=True)
        if child.believed != text:
            named = {f"{_BELIEVED}_{name}": value for name, value in asdict(what).items()}
            _write(self._client, child.run_id, metrics=self._new(child, named, 0, at), tags=_split(_BELIEVED, text))
            child.believed = text

    def artifacts(self, number: int, folder: Path, name: str = ADAPTER) -> None:
        """Upload the files of a folder to a published trial's `adapter/`, or `name`; files that are there stay."""
        run_id = self._child(number).run_id
        there = dict(_listing(self._client, run_id, name))
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            path = f"{name}/{file.relative_to(folder).as_posix()}"
            if there.get(path) != file.stat().st_size:  # a torn upload is shorter
                self._client.log_artifact(run_id, str(file), path.rpartition("/")[0])

    def withdraw(self, number: int, why: str) -> None:
        """Removes a published trial's adapter; its run says why."""
        run_id = self._child(number).run_id
        self._client.set_tag(run_id, _WITHDRAWN, why)  # first: no reader finds an adapter gone without a reason
        if self._client.list_artifacts(run_id, ADAPTER):
            location = self._client.get_run(run_id).info.artifact_uri
            repository = get_artifact_repository(location, self._client.tracking_uri)
            repository.delete_artifacts(ADAPTER)  # type: ignore[no-untyped-call]

    def disk(self, used: int, limit: int | None) -> None:
        """Publish the bytes that the study uses, and their limit."""
        self._client.set_tag(self.run_id, _DISK, json.dumps({"used": used, "limit": limit}))

    def spent(self, hours: Mapping[str, float]) -> None:
        """Publish what the study has spent, as `budget.spent` tells it."""
        self._client.set_tag(self.run_id, _SPENT, json.dumps(hours))

    def front(
        self, rows: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]], files: Iterable[Path] = ()
    ) -> None:
        """Publish the front: `on_front` on every run, and the parent's note and files.

        `rows` and `references` are rows of `query.ParetoFront.to_rows` and `query.Study.reference_rows`.
        """
        members = {row["trial"] for row in rows}
        for number, child in self._children.items():
            if child.on_front != (number in members):
                child.on_front = number in members
                self._client.set_tag(child.run_id, "on_front", str(child.on_front).lower())
        score, *costs = (each.name for each in self.objectives)
        text = note(rows, references, self.experiment_id, self.run_id, score, costs)
        self._client.set_tag(self.run_id, "mlflow.note.content", text)
        for file in files:
            self._client.log_artifact(self.run_id, str(file))

    def close(self, status: str = "FINISHED") -> None:
        """End the parent run. A child that still runs is marked KILLED until a resume publishes it again."""
        for run in _one_a_trial(self._client, self.experiment_id):
            if run.info.status == "RUNNING":
                self._client.set_terminated(run.info.run_id, "KILLED")
                if child := self._children.get(int(run.data.tags["trial"])):
                    child.status = "KILLED"
        self._client.set_terminated(self.run_id, status)

    def _child(self, number: int) -> _Child:
        if number not in self._children:
            raise LookupError(f"trial {number} has no run: it was never published, or somebody deleted it")
        return self._children[number]

    def _create(self, record: TrialRecord) -> _Child:
        tags = {
            "mlflow.parentRunId": self.run_id,
            "study": self.study,
            "trial": str(record.number),
            "kind": "reference" if record.reference else "trial",
            "on_front": "false",
            **provenance(),
        }
        run = self._client.create_run(
            self.experiment_id, start_time=_milliseconds(record.started), tags=tags, run_name=run_name(record)
        )
        return _Child.of(run.info.run_id)

    def _new(
        self, child: _Child, values: Mapping[str, float | None], step: int, at: float | None = None
    ) -> list[Metric]:
        """Metrics for the finite ones of `values` that the run does not end in already."""
        timestamp = round((at or time.time()) * 1000)
        metrics = [
            Metric(name, float(value), timestamp, step)
            for name, value in values.items()
            if value is not None and math.isfinite(value) and self._last(child, name) != (step, value)
        ]
        child.last.update({metric.key: (step, metric.value) for metric in metrics})
        return metrics

    def _last(self, child: _Child, key: str) -> tuple[int, float]:
        nothing = (-1, 0.0)
        if key not in child.last and not child.fresh:
            history = self._client.get_metric_history(child.run_id, key)
            latest = max(history, key=lambda point: (point.step, point.timestamp), default=None)
            child.last[key] = (latest.step, latest.value) if latest else nothing
        return child.last.get(key, nothing)


def discard(uri: str, study: str) -> None:
    """Move the study's experiment, if there is one, to MLflow's trash, and free its name."""
    client = _client(uri, create=True)
    with _answering(uri):
        experiment = client.get_experiment_by_name(study)
        if experiment is not None:
            _require_ours(experiment, study)
            _free_name(client, experiment)


# --- reading -------------------------------------------------------------------------------------


def has_trials(uri: str, study: str) -> bool:
    """Whether the store has an experiment of that name with runs of trials."""
    client = _client(uri, create=True)
    with _answering(uri):
        experiment = client.get_experiment_by_name(study)
        return experiment is not None and bool(_children(client, experiment.experiment_id))


def studies(uri: str) -> list[StudySummary]:
    """The studies of a store that tell what they are, the newest first, with a warning of those that make no sense.

    Raises StoreError where there is no store.
    """
    client = _client(uri)
    with _answering(uri):
        parents = [
            (experiment, parent)
            for experiment in _pages(client.search_experiments)
            if _STUDY_TAG in experiment.tags
            and (parent := _parent(client, experiment.experiment_id))
            and "info" in parent.data.tags
        ]
    found = []
    for experiment, parent in parents:
        try:
            found.append(_summary(experiment, parent))
        except StoreError as error:
            warnings.warn(f"left out: {error}", LeftOutWarning, stacklevel=2)
    return sorted(found, key=lambda summary: -summary.started)


def summary(uri: str, study: str) -> StudySummary:
    """One study. Raises StoreError where it is not there, naming those that are, or does not tell what it is."""
    client = _client(uri)
    with _answering(uri):
        experiment = client.get_experiment_by_name(study)
    if experiment and experiment.lifecycle_stage == "active" and _STUDY_TAG in experiment.tags:
        with _answering(uri):
            parent = _parent(client, experiment.experiment_id)
        if parent and "info" not in parent.data.tags:
            raise StoreError(
                f"the study {study!r} in {masked(uri)} does not say what it is: run {parent.info.run_id} has no tag "
                f"`info`. `petl-search resume {study}` writes it"
            )
        if parent:
            return _summary(experiment, parent)
    names = ", ".join(sorted(other.name for other in studies(uri))) or "none"
    raise StoreError(f"no study {study!r} in {masked(uri)}; studies there: {names}")


def records(uri: str, study: str) -> list[TrialRow]:
    """Every trial and reference of a study, by number, without runs that make no sense, of which it warns.

    Raises StoreError as `summary` does.
    """
    experiment_id = summary(uri, study).experiment_id
    client = _client(uri)
    with _answering(uri):
        runs = _children(client, experiment_id)
    rows = []
    for run in runs:
        try:
            rows += [_row(run)] if "record" in run.data.tags else []
        except StoreError as error:
            warnings.warn(f"left out of study {study}: {error}", LeftOutWarning, stacklevel=2)
    return sorted(rows, key=lambda row: row.record.number)


def download(uri: str, run_id: str, destination: Path) -> Path:
    """The adapter directory of a trial's run, as the folder `destination`, which must be new or empty.

    Raises StoreError where the run has no adapter, or one with files that none has, and where the folder holds
    something.
    """
    must_be_new(destination)
    client = _client(uri)
    with _fetching(run_id):
        files = _adapter_files(client, run_id)
        artifacts = get_artifact_repository(client.get_run(run_id).info.artifact_uri, client.tracking_uri)
    if not files:
        withdrawn = printable(client.get_run(run_id).data.tags.get(_WITHDRAWN, ""))
        reason = f"it was {withdrawn}" if withdrawn else "trained trials that completed have one"
        raise StoreError(f"run {run_id} has no adapter; {reason}")
    destination.parent.mkdir(parents=True, exist_ok=True)
    if sum(files.values()) > shutil.disk_usage(destination.parent).free:
        raise StoreError(f"there is no room for the adapter of run {run_id} in {destination.parent}")
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".petl-search-") as folder:
        for path, size in files.items():
            (target := Path(folder, path)).parent.mkdir(parents=True, exist_ok=True)
            with _fetching(run_id):
                _fetch(artifacts, path, target, size, run_id)
        # moved when whole, so that an interrupted download is not taken for an adapter
        if destination.exists():
            destination.rmdir()
        shutil.move(Path(folder, ADAPTER), destination)
    return destination


@contextmanager
def _fetching(run_id: str) -> Iterator[None]:
    """Raises StoreError where an artifact cannot be had inside."""
    try:
        yield
    except (MlflowException, OSError) as error:
        text = " ".join(printable(masked(error)).split())
        raise StoreError(f"the adapter of run {run_id} cannot be fetched: {text}") from None


def _adapter_files(client: MlflowClient, run_id: str) -> dict[str, int]:
    """The files of a run's adapter, with their sizes, before any is fetched.

    Raises StoreError for what is in no adapter directory: other names, too large files, too many of them.
    """
    files: dict[str, int] = {}
    folders, seen = [ADAPTER], 0
    while folders:
        for item in client.list_artifacts(run_id, folders.pop()):
            seen += 1
            name, size = printable(item.path), item.file_size or 0
            most = _MOST_TENSORS if name.endswith(".safetensors") else MOST_JSON
            if seen > _MOST_FILES:
                raise StoreError(f"the adapter of run {run_id} has more than {_MOST_FILES} files; none has so many")
            if not (_ADAPTER_FOLDER if item.is_dir else _ADAPTER_FILE).fullmatch(item.path):
                raise StoreError(f"the adapter of run {run_id} has {name!r}, which belongs to none")
            if size > most:
                raise StoreError(f"{name} of run {run_id} has {size:,} bytes; in an adapter it has at most {most:,}")
            if item.is_dir:
                folders.append(item.path)
            else:
                files[item.path] = size
    return files


def _fetch(artifacts: ArtifactRepository, path: str, target: Path, size: int, run_id: str) -> None:
    """One artifact as the file `target`; no byte beyond the size that was listed is written.

    Raises StoreError for another size, and for what is no file: a link, a device, a pipe.
    """
    if isinstance(artifacts, LocalArtifactRepository):
        place = Path(artifacts.artifact_dir).resolve() / path
        if place.resolve() != place or not place.is_file():
            raise StoreError(f"{path} of run {run_id} is no file of its own")
        written = _copy(place.open("rb"), target, size)
    elif isinstance(artifacts, HttpArtifactRepository):
        answer = http_request(  # type: ignore[no-untyped-call]
            artifacts._host_creds, f"/{path}", "GET", stream=True, extra_headers={"Accept-Encoding": "identity"}
        )
        augmented_raise_for_status(answer)  # type: ignore[no-untyped-call]
        written = _copy(answer.raw, target, size)
    else:  # s3:// and the like, where the store itself says how large a thing is
        artifacts._download_file(path, str(target))  # type: ignore[no-untyped-call]
        written = target.stat().st_size
    if written != size:
        raise StoreError(f"{path} of run {run_id} has not the {size:,} bytes that were announced")


def _copy(source: Any, target: Path, most: int) -> int:
    """How many bytes there were, of which at most so many are written; the rest is not waited for."""
    read = 0
    with source, target.open("wb") as file:
        while read <= most and (piece := source.read(_PIECE)):
            file.write(piece[: most - read])
            read += len(piece)
    return read


def must_be_new(destination: Path) -> None:
    """Raises StoreError for a file, and for a folder that holds something."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise StoreError(f"an adapter is exported to a new or empty folder; received {destination}")


# --- a record in MLflow's terms ------------------------------------------------------------------


def to_dict(record: TrialRecord) -> dict[str, Any]:
    """A record as JSON holds it; `from_dict` reads it back."""
    return {
        "number": record.number,
        "state": str(record.state),
        "configuration": record.configuration.to_dict() if record.configuration else None,
        "params": dict(record.params),
        "reference": record.reference,
        "name": record.name,
        "rungs": [[epochs, score] for epochs, score in record.rungs.items()],
        "measurements": record.measurements.to_dict() if record.measurements else None,
        "failure": record.failure,
        "started": record.started,
        "ended": record.ended,
    }


def from_dict(data: Mapping[str, Any]) -> TrialRecord:
    """The inverse of `to_dict`. Raises ValueError, TypeError or KeyError for what it cannot have written."""
    configuration, measurements = data["configuration"], data["measurements"]
    return _RECORD.validate_python(
        {
            **data,
            "configuration": Configuration.from_dict(configuration) if configuration else None,
            "rungs": dict(data["rungs"]),
            "measurements": _MEASUREMENTS.validate_python(Measurements.from_dict(measurements).to_dict())
            if measurements
            else None,
        }
    )


def _readable(record: TrialRecord) -> dict[str, str]:
    tags = {"state": str(record.state)}
    if record.configuration:
        design = record.configuration.design
        tags |= {"design": design.describe()[:_TAG_LENGTH], "design_key": design.key}
    for name, value in (("reference", record.reference), ("name", record.name), ("failure", record.failure)):
        if value:
            tags[name] = value[:500]
    return tags


def _row(run: Run) -> TrialRow:
    """Raises StoreError for a run whose tags are not as this module writes them."""
    with _sense(run):
        final = _parsed(run, _FINAL)
        final = final or {"test": _parsed(run, "test")}  # as earlier releases have it
        row = TrialRow(
            record=from_dict(_parsed(run, "record")),
            run_id=run.info.run_id,
            counts=_NUMBERS.validate_python(_parsed(run, "counts")),
            validation=_NUMBERS.validate_python(final.get("validation", {})),
            test=_NUMBERS.validate_python(final.get("test", {})),
            believed=_BELIEFS.validate_python(told) if (told := _parsed(run, _BELIEVED)) else None,
            on_front=run.data.tags.get("on_front") == "true",
            withdrawn=printable(run.data.tags.get(_WITHDRAWN, "")),
        )
        _require_sense(row)
    return row


def _summary(experiment: Experiment, parent: Run) -> StudySummary:
    """Raises StoreError for an experiment, or a parent run, that is not as this module writes it."""
    with _sense(parent):
        name, info = experiment.tags[_STUDY_TAG], _parsed(parent, "info")
        if name != experiment.name or not STUDY_NAME.fullmatch(name):
            raise ValueError(f"a study has the name of its experiment; received {printable(name)!r}")
        _INFO.validate_python(info)
        disk = _BYTES.validate_python(_parsed(parent, _DISK))
        spent = _NUMBERS.validate_python(_parsed(parent, _SPENT))
        objectives(**info["objectives"])
    return StudySummary(
        name=name,
        experiment_id=experiment.experiment_id,
        run_id=parent.info.run_id,
        status=parent.info.status,
        started=parent.info.start_time / 1000,
        info=info,
        disk=disk,
        spent=spent,
    )


@contextmanager
def _sense(run: Run) -> Iterator[None]:
    """Raises StoreError, naming the run, where what it says does not make sense inside: anybody may have written it."""
    try:
        yield
    except _NONSENSE as error:
        reason = (
            "; ".join(_fault(fault) for fault in error.errors()[:3]) if isinstance(error, ValidationError) else error
        )
        text = " ".join(f"{type(error).__name__}: {reason}".split())
        raise StoreError(printable(f"run {run.info.run_id} makes no sense ({text[:300]})")) from None


def _fault(fault: Any) -> str:
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"


def _parsed(run: Run, name: str) -> dict[str, Any]:
    """The JSON object in a run's tags `name`, `name.1` ...; none where there are none. Raises ValueError."""
    data = parse(_joined(run.data.tags, name) or "{}")
    if not isinstance(data, dict):
        raise ValueError(f"{name} is no object")
    return data


def _require_sense(row: TrialRow) -> None:
    """Raises ValueError for what a trial cannot have come to."""
    record, measured = row.record, row.record.measurements.to_dict() if row.record.measurements else {}
    for name, value in (("number", record.number), *row.counts.items(), *measured.items()):
        share, score = name in SHARES, name in SCORES
        # the scores of a trial that diverged are no numbers, its loss is infinite
        if not (math.isnan(value) or -1 <= value <= 1 if share else score or 0 <= value <= _MOST):
            raise ValueError(f"{name} is {'a share' if share else f'from 0 to {_MOST:g}'}; received {value:g}")
    if row.believed:
        for name, value in asdict(row.believed).items():
            if not (0 <= value <= (1 if name == "probability" else _MOST) or name in ("mean", "corrected")):
                raise ValueError(f"{name} of what is believed is at least 0; received {value:g}")
    for at in (record.started, record.ended, *record.rungs):
        if at is not None and not 0 <= at <= _MOST:
            raise ValueError(f"times and epochs are from 0 to {_MOST:g}; received {at:g}")


# --- MLflow's corners ----------------------------------------------------------------------------


def refused(error: Exception) -> bool:
    """Whether MLflow answered that it will not do this, or it makes no sense: asking again does not help."""
    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    else:  # an artifact goes past MLflow's own errors
        status = getattr(getattr(error, "response", None), "status_code", 500)
    return (400 <= status < 500 and status not in _PASSING) or isinstance(error, (LookupError, TypeError))


def _client(uri: str, *, create: bool = False) -> MlflowClient:
    """Raises StoreError where the store is not there or does not answer. `create`: to write, perhaps anew."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a line for each of some fifty migrations
    # the same, and a traceback for every connection that is lost, which is raised as well
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    address = whole(uri)
    if not create:
        require_store(address)
    else:
        for name, value in _IMPATIENT.items():
            os.environ.setdefault(name, value)
        if (file := sqlite_file(address)) and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with _OPENING:
                _make(file)
    if is_postgresql(address):
        require_database(address, None if create else "experiments")
        address = reaching(address)
    with _answering(uri):
        with _OPENING:
            client = MlflowClient(_with_credentials(address))
        client.search_experiments(max_results=1)
    return client


def _make(file: Path) -> None:
    """A new sqlite store that is there as a whole or not at all.

    Its tables are made by migrations that take seconds; where they were cut off, MLflow can never open the file.
    """
    with tempfile.TemporaryDirectory(prefix="petl-mlflow-") as scratch:
        made, new = Path(scratch) / file.name, file.with_name(f"{file.name}.{os.getpid()}")
        MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
        try:
            shutil.copyfile(made, new)
            if not file.exists():  # nobody else made it meanwhile
                new.rename(file)
        finally:
            new.unlink(missing_ok=True)


def _with_credentials(address: str) -> str:
    """The address of a server without user and password, which are put where MLflow looks for them as well.

    MLflow prints a server's address as it is given, in messages and beside every run that ends.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return address
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    if parts.password is not None:
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    return bare(address)


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    """Raises StoreError where MLflow does not answer inside."""
    try:
        yield
    except MlflowException as error:
        raise StoreError(f"no store answers at {masked(uri)}: {masked(error.message)}") from None


def _own_experiment(client: MlflowClient, study: str, artifact_root: Path | None) -> str:
    experiment = client.get_experiment_by_name(study)
    if experiment and experiment.lifecycle_stage == "deleted":  # in the trash it still holds its name
        _free_name(client, experiment)
        experiment = None
    if experiment:
        _require_ours(experiment, study)
        return str(experiment.experiment_id)
    location = (artifact_root / study).absolute().as_uri() if artifact_root else None
    tags = {_STUDY_TAG: study, "mlflow.experimentKind": "custom_model_development"}  # opens at its runs
    return str(client.create_experiment(study, artifact_location=location, tags=tags))


def _require_ours(experiment: Experiment, study: str) -> None:
    if experiment.lifecycle_stage == "active" and _STUDY_TAG not in experiment.tags:
        raise StoreError(f"the MLflow experiment {study!r} is not a study of petl-search; choose another name")


def _free_name(client: MlflowClient, experiment: Experiment) -> None:
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    client.rename_experiment(experiment.experiment_id, f"{experiment.name} (discarded {time.time_ns()})")
    client.delete_experiment(experiment.experiment_id)


def _parent(client: MlflowClient, experiment_id: str) -> Run | None:
    runs = client.search_runs([experiment_id], "tags.kind = 'study'", order_by=["attributes.start_time"])
    return runs[0] if runs else None


def _children(client: MlflowClient, experiment_id: str) -> list[Run]:
    runs = _pages(lambda **page: client.search_runs([experiment_id], run_view_type=ViewType.ACTIVE_ONLY, **page))
    numbered = re.compile(r"[0-9]{1,9}")
    return [
        run
        for run in runs
        if run.data.tags.get("kind") in ("trial", "reference") and numbered.fullmatch(run.data.tags.get("trial", ""))
    ]


def _replicates(client: MlflowClient, experiment_id: str, of: Replicate | None = None) -> list[Run]:
    """The runs of all replicates, or of one."""
    which = f" and tags.trial = '{of.number}' and tags.seed = '{of.seed}'" if of else ""
    runs = _pages(lambda **page: client.search_runs([experiment_id], f"tags.kind = 'replicate'{which}", **page))
    numbered = re.compile(r"[0-9]{1,10}")
    return [run for run in runs if all(numbered.fullmatch(run.data.tags.get(name, "")) for name in ("trial", "seed"))]


def _one_a_trial(client: MlflowClient, experiment_id: str) -> list[Run]:
    """The children, without those that MLflow made late, of a request that had been given up and sent again.

    The one that tells the most is kept, the others go to MLflow's trash.
    """
    kept: dict[str, Run] = {}
    for run in sorted(_children(client, experiment_id), key=lambda run: (-len(run.data.tags), run.info.run_id)):
        if kept.setdefault(run.data.tags["trial"], run) is not run:
            client.delete_run(run.info.run_id)
    return list(kept.values())


def _pages(search: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _listing(client: MlflowClient, run_id: str, folder: str) -> Iterator[tuple[str, int | None]]:
    for item in client.list_artifacts(run_id, folder):
        if item.is_dir:
            yield from _listing(client, run_id, item.path)
        else:
            yield item.path, item.file_size


def _write(
    client: MlflowClient,
    run_id: str,
    *,
    params: Mapping[str, str] | None = None,
    metrics: Sequence[Metric] = (),
    tags: Mapping[str, str] | None = None,
) -> None:
    client.log_batch(
        run_id,
        metrics=metrics,
        params=[Param(name, value) for name, value in (params or {}).items()],
        tags=[RunTag(name, value) for name, value in (tags or {}).items()],
    )


def _split(name: str, text: str) -> dict[str, str]:
    """A JSON text of any length as tags `name`, `name.1`, `name.2` ..."""
    pieces = [text[at : at + _TAG_LENGTH] for at in range(0, len(text), _TAG_LENGTH)]
    return {(f"{name}.{i}" if i else name): piece for i, piece in enumerate(pieces)}


def _joined(tags: Mapping[str, str], name: str) -> str | None:
    if name not in tags:
        return None
    pieces = [tags[name]]
    while (more := tags.get(f"{name}.{len(pieces)}")) is not None and len(pieces) < _MOST_TAGS:
        pieces.append(more)
    text = "".join(pieces)
    with suppress(ValueError, RecursionError):  # who reads it says what is wrong
        text = text[: json.JSONDecoder().raw_decode(text)[1]]  # without the tail of an older, longer text
    return text


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)
