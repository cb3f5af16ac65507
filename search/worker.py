"""The trainable: a process that keeps backbone and data, and trains one trial after another.

What a trial leaves lies in its folder; what is reported is small. A trial whose process died is
started again by Ray with the same job and continues from the folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from petl.backbones import Backbone
from petl.configuration import Configuration
from petl.count import count
from petl.design import Design
from petl.measurements import Measurements
from search.store import StudyLock, TrialFolder, read_json, write_json

if TYPE_CHECKING:
    from petl.data import TaskData
    from petl.train import TrainingRun

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Workload:
    """What is the same for all trials of a study.

    `backbone` is a Backbone and `task` a Task, as dicts; `seed`, the study's, draws the untrained head.
    """

    folder: str
    backbone: Mapping[str, Any]
    task: Mapping[str, Any]
    precision: str
    seed: int = 0


@dataclass(frozen=True)
class Job:
    """One trial to train. `milestones`: epochs at which it validates and reports, ascending.

    `assigned` is when the driver handed it out, in seconds since the epoch.
    """

    number: int
    configuration: Mapping[str, Any] | None
    reference: str | None
    milestones: tuple[float, ...]
    assigned: float

    def to_json(self) -> str:
        """Text, since Ray would interpret the keys of a mapping."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The inverse of `to_json`."""
        data = json.loads(text)
        return cls(**{**data, "milestones": tuple(data["milestones"])})


class Resident:
    """Backbone, tokenizer and data of a study, loaded when first used and kept."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self._model: Any = None
        self._data: TaskData | None = None

    @property
    def data(self) -> TaskData:
        """The tokenised task."""
        if self._data is None:
            from petl import backbones
            from petl.data import load_data
            from petl.tasks import Task

            backbone = self.workload.backbone
            tokenizer = backbones.load_tokenizer(backbone["model"], revision=backbone["revision"])
            self._data = load_data(Task(**self.workload.task), tokenizer)
        return self._data

    @property
    def model(self) -> Any:
        """The frozen backbone with an untrained head."""
        if self._model is None:
            from petl import backbones

            backbone, seed = self.workload.backbone, self.workload.seed
            self._model = backbones.load(
                backbone["model"], labels=self.data.labels, seed=seed, revision=backbone["revision"]
            )
        return self._model

    def warm(self) -> None:
        """Loads and imports all that a trial needs, so that only a process's first one waits for it."""
        from petl.engine import join_process_group

        join_process_group()
        _ = self.model

    def discard_model(self) -> None:
        """Forgets the backbone, after a failure that may have left something on it."""
        self._model = None

    def test(self, number: int, reference: str | None) -> dict[str, float]:
        """Scores of a finished trial on the test split, kept in its folder: computed once."""
        folder = TrialFolder(Path(self.workload.folder), number)
        if done := folder.find("test"):
            return read_json(done / "scores.json")
        result = folder.find("result")
        if result is None:
            raise FileNotFoundError(f"trial {number} has no result to test under {folder.path}")
        from safetensors.torch import load_file

        from petl import storage
        from petl.baselines import BASELINES, evaluate
        from petl.train import evaluate as evaluate_model

        if reference in BASELINES:
            baseline = load_file(result / "baseline.safetensors")
            scores = evaluate(baseline, self.model, self.data, "test", self.workload.precision)
        else:
            with storage.load_adapter(result / "adapter", self.model):
                scores = evaluate_model(self.model, self.data, "test", self.workload.precision)
        write_json(folder.begin("test") / "scores.json", scores)
        folder.commit("test")
        return scores


class Attempt:
    """One job on a resident: each `advance` goes to the next milestone and returns what to report."""

    def __init__(self, resident: Resident, job: Job) -> None:
        self.resident, self.job = resident, job
        self.folder = TrialFolder(Path(resident.workload.folder), job.number)
        self._run: TrainingRun | None = None
        self._began: float | None = None

    def advance(self) -> dict[str, Any]:
        """The trial's curves so far; with `measurements` when it is done, or `failure` when it failed."""
        try:
            if result := self.folder.find("result"):
                return {**read_json(result / "report.json"), "done": True}
            self.resident.warm()
            return self._baseline() if self.job.configuration is None else self._train()
        except Exception as error:  # whatever a trial raises is recorded as its end; the worker lives on
            self.close()
            self.resident.discard_model()
            return {"failure": _reason(error), "done": True}

    def close(self) -> None:
        """Puts the resident backbone back as it was."""
        if self._run is not None:
            run, self._run = self._run, None
            run.close()

    def _train(self) -> dict[str, Any]:
        from safetensors.torch import load_file, save_file

        from petl.train import TrainingRun

        configuration = Configuration.from_dict(self.job.configuration or {})
        if self._run is None:
            resident = self.resident
            self._run = TrainingRun(resident.model, resident.data, configuration, resident.workload.precision)
            self._began = time.time()
            if state := self.folder.latest_state():
                self._run.restore(load_file(state / "state.safetensors"), read_json(state / "position.json"))
                # what the state had reached may never have arrived
                return self._report()
        run = self._run
        reached = run.position.validations[-1].epoch if run.position.validations else 0.0
        reached = run.advance(next(milestone for milestone in self.job.milestones if milestone > reached)).epoch
        if reached < configuration.training.epochs:
            part = f"state-{len(run.position.validations)}"  # a new one is whole before the last one goes
            state, (tensors, position) = self.folder.begin(part), run.state()
            save_file(tensors, state / "state.safetensors")
            write_json(state / "position.json", position)
            self.folder.commit(part)
            self.folder.drop_states(but=part)
            return self._report()
        backbone = self.backbone
        measured = run.measurements(count(configuration.design, backbone, len(self.resident.data.labels)))
        report = {**self._report(), "measurements": measured.to_dict()}
        self._commit(report)
        self.close()
        return {**report, "done": True}

    @property
    def backbone(self) -> Backbone:
        """The study's."""
        return Backbone.from_dict(self.resident.workload.backbone)

    def _commit(self, report: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        from petl import storage

        result = self.folder.begin("result")
        write_json(result / "report.json", report)
        if self._run is None:
            save_file(self._baseline_tensors, result / "baseline.safetensors")
        else:
            task = self.resident.workload.task
            facts = {"kind": task["kind"], "name": task["name"], "max_length": task["max_length"]}
            storage.save(
                result / "adapter",
                self._run.attachment,
                self.backbone,
                {**facts, "labels": list(self.resident.data.labels)},
                self.resident.data.tokenizer,
            )
        self.folder.commit("result")
        self.folder.drop_states()

    def _baseline(self) -> dict[str, Any]:
        from petl.baselines import evaluate, fit

        resident, name = self.resident, self.job.reference or ""
        self._began = began = time.time()
        self._baseline_tensors = fit(name, resident.model, resident.data, resident.workload.precision)
        scores = evaluate(
            self._baseline_tensors, resident.model, resident.data, "validation", resident.workload.precision
        )
        base = count(Design(), self.backbone).base
        trained = sum(tensor.numel() for tensor in self._baseline_tensors.values()) if name == "probe" else 0
        measured = Measurements(
            **scores,  # type: ignore[arg-type]
            base_parameters=base,
            trained_parameters=trained,
            trained_percent=100 * trained / base,
            seconds=time.time() - began,
        )
        report = {**self._report(), "measurements": measured.to_dict()}
        self._commit(report)
        return {**report, "done": True}

    def _report(self) -> dict[str, Any]:
        report: dict[str, Any] = {"startup_seconds": (self._began or time.time()) - self.job.assigned}
        if self._run is not None:
            position = self._run.position.to_dict()
            report |= {"points": position["points"], "validations": position["validations"]}
        return report


class Worker(tune.Trainable):
    """Tune's view of a resident: one step is one milestone."""

    def setup(self, config: dict[str, Any], workload: Workload | None = None) -> None:
        """Called once a process; `reset_config` hands it the next job."""
        assert workload is not None
        from petl.engine import prepare_process

        prepare_process()
        self._lock = StudyLock(Path(workload.folder))
        self._lock.work()
        self.resident = Resident(workload)
        self.attempt = Attempt(self.resident, Job.from_json(config["job"]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial of this process."""
        self.attempt.close()
        self.attempt = Attempt(self.resident, Job.from_json(new_config["job"]))
        return True

    def step(self) -> dict[str, Any]:
        """Trains to the next milestone."""
        report = self.attempt.advance()
        return {"report": json.dumps(report), "done": bool(report.get("done"))}

    def cleanup(self) -> None:
        """Called when the process is no longer needed."""
        self.attempt.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the trial's folder is the checkpoint."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the trial's folder is the checkpoint."""


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, MemoryError) or any(phrase in text.lower() for phrase in _OUT_OF_MEMORY):
        return f"out of memory: {text}"[:1000]
    if isinstance(error, ArithmeticError):
        return f"diverged: {text}"[:1000]
    return f"{type(error).__name__}: {text}"[:1000]
