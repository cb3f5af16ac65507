"""Write a study into MLflow: an experiment, its parent run, and a run for each trial and replicate.

A study is an experiment of its name. In it, one parent run (tag `kind` = study), one child run per
trial (`kind` = trial or reference, `trial` = its number), and of those one per replicate (`kind` = replicate,
`seed` = its seed). Parameters, metrics and the readable tags are
for people who sort, filter and compare; the tag `record` holds the TrialRecord itself as JSON, from which it is
read back exactly. It is written last: a run without it is a half-written one, which the next `publish` completes.

MLflow's status of a run: FINISHED for a complete trial, KILLED for one that its rung rule stopped (so
that ``attributes.status = 'FINISHED'`` keeps the fully trained ones only), FAILED for one that failed.
"""

from __future__ import annotations

import getpass
import json
import math
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import Metric

from petl.hashing import sha256
from search.tracking.artifacts import (
    differs,
    files_below,
    hash_tags,
    listing,
    make_way,
    repository,
)
from search.tracking.client import answering, open_client
from search.tracking.experiment import own_experiment
from search.tracking.note import links, note
from search.tracking.runs import log, milliseconds, one_run_a_trial, parent_run, replicate_runs
from search.tracking.schema import (
    ADAPTER,
    COLOUR,
    COUNTS,
    DISK,
    FACTS,
    GREY,
    INFO,
    KIND,
    ON_FRONT,
    POINT,
    RECORD,
    REFERENCE_KIND,
    REPLICATE_KIND,
    SEED,
    SPENT,
    STATE,
    STATUS,
    STUDY,
    STUDY_KIND,
    TRIAL,
    TRIAL_KIND,
    WITHDRAWN,
    joined,
    readable_tags,
    split_text,
)
from search.tracking.views import Views
from search.trials.naming import flat_parameters, run_name
from search.trials.objectives import Objectives, objectives
from search.trials.record import Replicate, Spent, State, TrialRecord


@dataclass
class _Child:
    """Hold what the writer knows of a child run, so that nothing is sent twice.

    `last` maps a metric to its last step and value; a metric that is missing was not looked up yet.
    """

    run_id: str
    status: str
    record: str | None
    counts: str | None
    facts: dict[str, str]  # JSON by name
    on_front: bool
    has_parameters: bool
    last: dict[str, tuple[int, float]]
    fresh: bool  # created by this tracker: MLflow has no earlier points of it
    complete: bool = False  # found as such: its record is published after its last point, and changes no more

    @classmethod
    def of(cls, run_id: str) -> _Child:
        """Return a run that was just created."""
        return cls(
            run_id=run_id,
            status="RUNNING",
            record=None,
            counts=None,
            facts={},
            on_front=False,
            has_parameters=False,
            last={},
            fresh=True,
        )


class MlflowTracker:
    """Write a study's runs, on the driver alone. Every method may be called again after a restart.

    A tracker remembers what it wrote, so that nothing is sent twice. Where a method raised, MLflow may have received
    all of it, some or nothing, and only a tracker that is opened again knows which. What is sent again has the
    same times as before, by which MLflow recognises a metric that did arrive.

    Example::

        tracker = MlflowTracker.open(store_uri(), "demo", artifact_root(), info)
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
        self.views = Views(client, experiment_id, objectives)
        self._client = client
        # One writer and an index read at the start: between the two nobody else creates a run.
        self._children = {
            int(run.data.tags[TRIAL]): _Child(
                run_id=run.info.run_id,
                status=run.info.status,
                record=joined(run.data.tags, RECORD),
                counts=joined(run.data.tags, COUNTS),
                facts={name: text for name in FACTS if (text := joined(run.data.tags, name)) is not None},
                on_front=run.data.tags.get(ON_FRONT) == "true",
                has_parameters=bool(run.data.params),
                last={},
                fresh=False,
                complete=RECORD in run.data.tags and run.data.tags.get(STATE) == State.COMPLETE,
            )
            for run in one_run_a_trial(client, experiment_id)
        }
        self._replicates: dict[tuple[int, int], str] = {
            (int(run.data.tags[TRIAL]), int(run.data.tags[SEED])): run.info.run_id
            for run in replicate_runs(client, experiment_id)
            if run.info.status != "RUNNING"  # a half-written one is created again
        }

    @classmethod
    def open(cls, uri: str, study: str, artifact_root: Path | None, info: Mapping[str, Any]) -> MlflowTracker:
        """Create or find the study's experiment and parent run, and mark the parent RUNNING.

        `info` is the study file with what was resolved, JSON-ready; readers need its
        `objectives`, `constraints`, `backbone.model` and `task.name`.
        Raises StoreError where no store answers, the experiment of that name is somebody else's, or `info` is so long
        that no reader would take it.
        """
        tags = {KIND: STUDY_KIND, STUDY: study, **split_text(INFO, json.dumps(info)), **provenance()}
        client = open_client(uri, create=True)
        with answering(uri):
            experiment_id = own_experiment(client, study, artifact_root)
            parent = parent_run(client, experiment_id)
            if parent is None:  # made with its tags: killed at any moment, there is no parent that readers cannot read
                parent = client.create_run(experiment_id, run_name=study, tags=tags)
            else:
                client.update_run(parent.info.run_id, status="RUNNING")
                log(client, parent.info.run_id, tags=tags)
            run_id = parent.info.run_id
            searched = objectives(**info["objectives"])
            line = links(experiment_id, run_id, searched)
            client.set_experiment_tag(experiment_id, "mlflow.note.content", line)
            tracker = cls(client, experiment_id, run_id, study, searched)
            tracker.views.write()
            return tracker

    def begin(self) -> None:
        """Mark the parent run RUNNING, whatever an earlier driver ended it as."""
        self._client.update_run(self.run_id, status="RUNNING")

    def run_of(self, number: int) -> str | None:
        """Return the MLflow run of a trial, None where the trial was never published."""
        child = self._children.get(number)
        return child.run_id if child else None

    def ensure(self, record: TrialRecord) -> None:
        """Create the trial's run, to which `progress` may add, unless it exists."""
        if record.number not in self._children:
            self._children[record.number] = self._create(record)

    def publish(
        self, record: TrialRecord, counts: Mapping[str, float] | None = None, *, at: float | None = None
    ) -> str:
        """Write a record into the trial's run, and return the run's id. An unchanged record costs nothing.

        `counts` are measurements known before training, by the names of Measurements: the only cost
        that a stopped or failed trial has. They never change. `at` is the time of all these metrics, by
        default now; seconds since the epoch.
        """
        self.ensure(record)
        self.views.meet(record.params)
        child = self._children[record.number]
        text, measured = json.dumps(record.to_dict(), sort_keys=True), record.measurements
        parameters, metrics, tags = {}, [], {}  # in one request, of which an embedded store makes several transactions
        if counts and child.counts is None:
            child.counts = json.dumps(dict(counts), sort_keys=True)
            metrics = [] if measured else self._new(child, counts, 0, at)
            tags = split_text(COUNTS, child.counts)
        if child.record != text:
            if record.configuration and not child.has_parameters:
                point = {POINT + name: str(value) for name, value in record.params.items()}
                parameters = flat_parameters(record.configuration) | point
            if measured:
                metrics = self._new(child, measured.to_dict(), measured.steps, at)
            tags |= readable_tags(record) | split_text(RECORD, text)
        if tags:
            log(self._client, child.run_id, params=parameters, metrics=metrics, tags=tags)
            child.record, child.has_parameters = text, child.has_parameters or bool(parameters)
        status = STATUS[record.state]
        if child.status != status:
            if record.state.open:
                self._client.update_run(child.run_id, status=status)
            else:
                self._client.set_terminated(child.run_id, status, milliseconds(record.ended))
            child.status = status
        derived = {name: fact.of(record) for name, fact in FACTS.items() if fact.of}
        self.facts(record.number, {name: value for name, value in derived.items() if value is not None}, at=at)
        return child.run_id

    def progress(self, number: int, points: Iterable[Mapping[str, float]], *, at: float | None = None) -> None:
        """Publish metrics of a published trial over its steps: a point has a `step`, perhaps a `time`, and values.

        `at` is the time of those without one, by default now; seconds since the epoch.

        A step that a metric already has is left as it is, so a resumed trial may report again what it
        repeats. Values that are not finite are left out: they would spoil the charts' axes.
        """
        child = self._child(number)
        if child.complete:
            return
        metrics: list[Metric] = []
        for point in sorted(points, key=lambda point: point["step"]):
            step = int(point["step"])
            values = {k: v for k, v in point.items() if k not in ("step", "time") and self._last(child, k)[0] < step}
            metrics += self._new(child, values, step, point.get("time", at))
        self._client.log_batch(child.run_id, metrics=metrics)

    def facts(self, number: int, facts: Mapping[str, Any], *, at: float | None = None) -> None:
        """Publish facts of a published trial, JSON values by the names of FACTS: as tags, and their numbers as metrics.

        A number that changes, such as what is believed after another replicate, is at the step after the last.
        `at` is when they were made known, by default now; seconds since the epoch.
        """
        child = self._child(number)
        for name, value in facts.items():
            text = json.dumps(value, sort_keys=True)
            if child.facts.get(name) != text:
                metrics = []
                for key, measured in FACTS[name].metrics(value).items():
                    step, known = self._last(child, key)
                    if step < 0 or known != measured:
                        metrics += self._new(child, {key: measured}, step + 1, at)
                log(self._client, child.run_id, metrics=metrics, tags=split_text(name, text))
                child.facts[name] = text

    def replicate(self, run: Replicate, points: Sequence[Mapping[str, float]] = (), *, at: float | None = None) -> None:
        """Create a run below the trial's for a replicate that is over, unless there is one.

        `points` are as for `progress`; `at` is the time of those without one, by default now.
        """
        if (run.number, run.seed) in self._replicates:
            return
        child = self._child(run.number)
        for half in replicate_runs(self._client, self.experiment_id, run):
            self._client.delete_run(half.info.run_id)
        tags = {
            "mlflow.parentRunId": child.run_id,
            STUDY: self.study,
            TRIAL: str(run.number),
            SEED: str(run.seed),
            KIND: REPLICATE_KIND,
            STATE: str(State.FAIL if run.failure else State.COMPLETE),
            **({"failure": run.failure[:500]} if run.failure else {}),
            **provenance(),
        }
        created = self._client.create_run(
            self.experiment_id,
            start_time=milliseconds(run.started),
            tags=tags,
            run_name=f"{run.number} seed {run.seed}",
        )
        own = _Child.of(created.info.run_id)
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
        self._client.log_batch(own.run_id, metrics=metrics)
        status = STATUS[State.FAIL if run.failure else State.COMPLETE]
        self._client.set_terminated(own.run_id, status, milliseconds(run.ended))
        self._replicates[run.number, run.seed] = own.run_id

    def artifacts(self, number: int, folder: Path, name: str = ADAPTER) -> None:
        """Upload the files of a folder to a published trial's `adapter/`, or `name`, and their hashes to its tags.

        Files that are there stay, unless they are damaged.
        """
        run = self._client.get_run(self._child(number).run_id)
        files = files_below(folder, name)
        hashes = {path: sha256(file) for path, file in files.items()}
        tags = hash_tags(name, hashes) if hashes else {}
        if not tags.items() <= run.data.tags.items():
            log(self._client, run.info.run_id, tags=tags)
        artifacts = repository(self._client, run)
        uploaded = dict(listing(artifacts, name))
        for path, file in files.items():
            if path in uploaded and not differs(artifacts, path, uploaded[path], file, hashes[path]):
                continue
            make_way(artifacts, path)
            artifacts.log_artifact(str(file), path.rpartition("/")[0])  # type: ignore[no-untyped-call]

    def withdraw(self, number: int, why: str) -> None:
        """Remove a trial's adapter, where the trial was published; its run says why."""
        if (run_id := self.run_of(number)) is None:
            return
        self._client.set_tag(run_id, WITHDRAWN, why)  # first: no reader finds an adapter gone without a reason
        if self._client.list_artifacts(run_id, ADAPTER):
            artifacts = repository(self._client, self._client.get_run(run_id))
            artifacts.delete_artifacts(ADAPTER)  # type: ignore[no-untyped-call]

    def disk(self, used: int, limit: int | None) -> None:
        """Publish the bytes that the study uses, and their limit."""
        self._client.set_tag(self.run_id, DISK, json.dumps({"used": used, "limit": limit}))

    def spent(self, spent: Spent) -> None:
        """Publish what the study has spent."""
        self._client.set_tag(self.run_id, SPENT, json.dumps(asdict(spent)))

    def front(
        self, rows: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]], files: Iterable[Path] = ()
    ) -> None:
        """Publish the front: the tag `on_front` of every run, and the parent's note and files.

        `rows` and `references` are rows of `query.ParetoFront.to_rows` and `query.Study.reference_rows`.
        """
        members = {row["trial"] for row in rows}
        for number, child in self._children.items():
            if child.on_front != (number in members):
                self._colour(child.run_id, number in members)
                child.on_front = number in members
                self._client.set_tag(child.run_id, ON_FRONT, str(child.on_front).lower())
        text = note(rows, references, self.experiment_id, self.objectives)
        self._client.set_tag(self.run_id, "mlflow.note.content", text)
        self.views.write()
        for file in files:
            self._client.log_artifact(self.run_id, str(file))

    def close(self, status: str = "FINISHED") -> None:
        """End the parent run. A child that still runs is marked KILLED until a resume publishes it again."""
        for run in one_run_a_trial(self._client, self.experiment_id):
            if run.info.status == "RUNNING":
                self._client.set_terminated(run.info.run_id, "KILLED")
                if child := self._children.get(int(run.data.tags[TRIAL])):
                    child.status = "KILLED"
        self._client.set_terminated(self.run_id, status)

    def _child(self, number: int) -> _Child:
        if number not in self._children:
            raise LookupError(f"trial {number} has no run: it was never published, or somebody deleted it")
        return self._children[number]

    def _create(self, record: TrialRecord) -> _Child:
        tags = {
            "mlflow.parentRunId": self.run_id,
            STUDY: self.study,
            TRIAL: str(record.number),
            KIND: REFERENCE_KIND if record.reference else TRIAL_KIND,
            ON_FRONT: "false",
            **({} if record.reference else {COLOUR: GREY}),
            **provenance(),
        }
        run = self._client.create_run(
            self.experiment_id, start_time=milliseconds(record.started), tags=tags, run_name=run_name(record)
        )
        return _Child.of(run.info.run_id)

    def _colour(self, run_id: str, on_front: bool) -> None:
        """Leave a member of the front the colour that MLflow chooses, and make others grey, unless a person chose."""
        colour = self._client.get_run(run_id).data.tags.get(COLOUR)
        if on_front and colour == GREY:
            self._client.delete_tag(run_id, COLOUR)
        elif not on_front and colour is None:
            self._client.set_tag(run_id, COLOUR, GREY)

    def _new(
        self, child: _Child, values: Mapping[str, float | None], step: int, at: float | None = None
    ) -> list[Metric]:
        """Return metrics for the finite values that are not the run's last ones already."""
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


_LIBRARIES: Final = ("petl-search", "torch", "transformers", "deepspeed", "ray", "optuna", "mlflow")


@cache
def provenance() -> dict[str, str]:
    """Return tags that say who ran which code: versions of the libraries, and the commit of a checkout."""
    versions = []
    for name in _LIBRARIES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue  # a reader's machine has fewer of them
    tags = {"versions": ", ".join(versions), "mlflow.source.name": "petl-search", "mlflow.user": _user()}
    # asking for this very file keeps out the commit of a repository that merely contains our .venv
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
    if tracked and (commit := _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*")):
        tags |= {"commit": commit, "mlflow.source.git.commit": commit.removesuffix("-dirty")}
    return tags


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "unknown"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
