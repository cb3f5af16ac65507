"""Train one run after another on a warm model, without Ray.

What a trial leaves lies in its folder; what is reported is small. A trial that another process began is resumed from
the folder.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petl.backbones.count import count
from petl.backbones.model import Backbone
from petl.configuration import Configuration
from petl.design import Design
from petl.errors import UserNotice
from petl.head import PROBE
from petl.measurements import Measurements
from search.storage.errors import is_full
from search.storage.folder import RESULT, SCORED, ResultPart, ScoredPart, TrialFolder, read_json, state_part, write_json
from search.storage.remote import StoreAwayError
from search.trials.report import TWIN, Report
from search.workers.assignment import Assignment, StudyContext

if TYPE_CHECKING:
    from petl.data.tokens import TaskData
    from petl.training.evaluation import Progress
    from petl.training.run import TrainingRun

DISK_FULL, STORE_AWAY = "disk full", "store away"  # how such failures begin: not the trial's own
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class WarmModel:
    """Backbone, tokenizer and data of a study, loaded when first used and kept; torch is imported then."""

    def __init__(self, context: StudyContext) -> None:
        self.context = context
        self._model: Any = None
        self._data: TaskData | None = None

    @property
    def data(self) -> TaskData:
        """The tokenised task."""
        if self._data is None:
            from petl.training.processes import prepare_process

            prepare_process()
            from petl import backbones
            from petl.data.tokens import load_data

            backbone = self.backbone
            tokenizer = backbones.load_tokenizer(backbone.model, revision=backbone.revision)
            task = self.context.resolved.task
            self._data = load_data(task, tokenizer, decoder_only=backbone.architecture == "decoder")
        return self._data

    @property
    def model(self) -> Any:
        """The frozen backbone, with an untrained head where the task has labels."""
        if self._model is None:
            from petl import backbones

            backbone, labels = self.backbone, self.data.labels
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserNotice)  # what it says, the driver has said
                self._model = backbones.load(
                    backbone.model,
                    labels=labels or None,
                    generates=not labels,
                    seed=self.context.seed,
                    revision=backbone.revision,
                    tokenizer=self.data.tokenizer,
                )
        return self._model

    def load(self) -> None:
        """Load and import all that a trial needs, so that only the first one of a process waits for it."""
        _ = self.model
        from petl.training.processes import join_process_group

        join_process_group()

    @property
    def backbone(self) -> Backbone:
        return self.context.resolved.backbone

    def save(self, run: TrainingRun, folder: Path) -> None:
        """Write the adapter directory of a run whose tensors are gathered, with all that it needs to predict."""
        from petl.adapters import storage

        start = run.configuration.head.start
        storage.save(folder, run.attachment, self.backbone, self.data.facts(), self.data.tokenizer, start=start)

    def save_probe(self, tensors: Mapping[str, Any], folder: Path) -> None:
        """Write a linear probe as the adapter directory of a design that changes the head alone."""
        from petl.adapters import storage
        from petl.training import baselines

        with baselines.attach_probe(self.model, tensors) as attachment:
            storage.save(folder, attachment, self.backbone, self.data.facts(), self.data.tokenizer, start=PROBE)

    def discard_model(self) -> None:
        """Forget the backbone, after a failure that may have left something on it."""
        self._model = None

    def test(self, number: int, reference: str | None) -> dict[str, dict[str, float]]:
        """Score a finished trial on whole splits, once; scores and predictions are kept in its folder."""
        resolved, folder = self.context.resolved, TrialFolder(Path(self.context.folder), number)
        if done := folder.scored():
            return read_json(done.scores)
        result = folder.result()
        if result is None:
            raise FileNotFoundError(f"trial {number} has no result to test under {folder.path}")
        from petl.adapters import storage
        from petl.training import baselines, evaluation

        tells = Teller(folder)
        evaluations: dict[str, evaluation.Evaluation] = {}
        if reference in baselines.BASELINES:
            baseline = baselines.load(result.folder)
            for split in resolved.final:
                evaluations[split] = baselines.evaluate(
                    baseline, self.model, self.data, split, resolved.precision, progress=tells
                )
        else:
            with storage.load_adapter(result.adapter, self.model):
                for split in resolved.final:
                    evaluations[split] = evaluation.evaluate(
                        self.model, self.data, split, resolved.precision, progress=tells
                    )
        part = ScoredPart(folder.begin(SCORED))
        part.predictions.mkdir()
        for split, found in evaluations.items():
            if found.predictions:
                self._write_predictions(part.predictions_of(split), split, found.predictions)
        scores = {split: dict(found.scores) for split, found in evaluations.items()}
        write_json(part.scores, scores)
        folder.commit(SCORED)
        return scores

    def _write_predictions(self, file: Path, split: str, predictions: Sequence[str]) -> None:
        """Write a line a row, in the split's order: the reference, and the prediction."""
        with file.open("w") as lines:
            for reference, prediction in zip(self.data.references(split), predictions, strict=True):
                row = {"reference": reference, "prediction": prediction}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")


class Teller:
    """A Progress that leaves a line in a trial's folder, at most one a second."""

    def __init__(self, folder: TrialFolder) -> None:
        self._folder = folder
        self._last = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report progress, if it is time."""
        if time.monotonic() - self._last >= 1.0:
            self._last = time.monotonic()
            self._folder.note(f"{what} {done:,}/{total:,}")


class TrialTraining:
    """One assignment on a warm model: each `advance` goes to the next milestone and returns what to report.

    Ranks that train a trial together make the same calls, each on a training and a model of its own;
    rank 0 alone writes.
    """

    def __init__(self, warm: WarmModel, assignment: Assignment, rank: int = 0) -> None:
        self.warm, self.assignment = warm, assignment
        self._leads = rank == 0
        self.folder = TrialFolder(Path(warm.context.folder), assignment.number, assignment.seed)
        self._run: TrainingRun | None = None
        self._began: float | None = None

    def advance(self) -> Report:
        """Train to the next milestone, and return the report: of a failure too, which ends the trial."""
        try:
            return self.to_milestone()
        except Exception as error:  # whatever a trial raises is recorded as its end; the worker lives on
            self.close()
            self.warm.discard_model()
            return failed(error)

    def to_milestone(self) -> Report:
        """Do what `advance` does, leaving backbone and errors as they are."""
        if result := self.folder.result() or self._given():
            return Report.from_dict(read_json(result.report))
        self.warm.load()
        if self.assignment.configuration is None:
            return self._baseline(self.assignment.reference or "")
        return self._train(self.assignment.configuration)

    def close(self) -> None:
        """Put the backbone back as it was."""
        if self._run is not None:
            run, self._run = self._run, None
            run.close()

    def _train(self, configuration: Configuration) -> Report:
        warm = self.warm
        if self._run is None:
            from petl.training.run import TrainingRun

            context = warm.context
            self._run = TrainingRun(
                warm.model,
                warm.data,
                configuration,
                context.resolved.precision,
                generates=context.resolved.generates,
                progress=self._progress(),
                zero=context.zero_stage,
                offload=context.offload,
                start=self._start(configuration),
            )
            self._began = time.time()
            if state := self.folder.latest_state():
                self._run.load(state)
                return self._report()  # what the state had reached may never have arrived
        run = self._run
        reached = run.position.validations[-1].epoch if run.position.validations else 0.0
        run.advance(next(milestone for milestone in self.assignment.milestones if milestone > reached))
        if not run.finished:
            with self._part(state_part(len(run.position.validations))) as folder:
                run.save(folder)
            return self._report()
        run.finish()
        labels, pooling = len(warm.data.labels), configuration.head.pooling
        measured = run.measurements(count(configuration.design, warm.backbone, labels, pooling))
        with run.gathered():
            report = self._finish(measured, partial(self._save, run))
        self.close()
        return report

    def _given(self) -> ResultPart | None:
        """Give the trial its twin's result, and return it; None where it has no twin, or that has no result now."""
        number = self.assignment.twin
        twin = None if number is None else TrialFolder(Path(self.warm.context.folder), number).result()
        if twin is None or not self._leads:
            return twin
        report = Report.from_dict(read_json(twin.report))
        given = ResultPart(self.folder.copy(RESULT, twin.folder))
        write_json(given.report, replace(report, startup_seconds=None, facts={**report.facts, TWIN: number}).to_dict())
        self.folder.commit(RESULT)
        self.folder.drop_states()
        return given

    def _start(self, configuration: Configuration) -> dict[str, Any] | None:
        """Return what the head starts from; None for one that is drawn."""
        from safetensors.torch import load

        head = configuration.head
        return load(self.warm.context.starts[head.pooling]) if head.start == PROBE else None

    def _save(self, run: TrainingRun, folder: Path) -> None:
        """Save what is kept of a training beside its report: of a replicate nothing."""
        if self.assignment.seed is None:
            self.warm.save(run, ResultPart(folder).adapter)

    def _baseline(self, name: str) -> Report:
        """Fit a baseline, which is one step."""
        from petl.training import baselines

        self._began = time.time()
        model, data, resolved = self.warm.model, self.warm.data, self.warm.context.resolved
        fitted = baselines.fit(name, model, data, resolved.precision)
        scores = baselines.evaluate(
            fitted,
            model,
            data,
            "sample",
            resolved.precision,
            generates=resolved.generates,
            progress=self._progress(),
        ).scores
        base = count(Design(), resolved.backbone).base
        trained = sum(tensor.numel() for tensor in fitted.values()) if name == "probe" else 0
        measured = Measurements(
            **scores,  # type: ignore[arg-type]
            base_parameters=base,
            trained_parameters=trained,
            trained_percent=100 * trained / base,
            head_parameters=trained,
            seconds=time.time() - self._began,
        )

        def save(folder: Path) -> None:
            baselines.save(fitted, folder)
            if name == "probe":
                self.warm.save_probe(fitted, ResultPart(folder).adapter)

        return self._finish(measured, save)

    def _finish(self, measured: Measurements, save: Callable[[Path], object]) -> Report:
        """Commit the result, of which `save` writes what was trained, and return the last report."""
        if self._leads and (done := self.folder.result()):  # of another process: this one was cut off
            return Report.from_dict(read_json(done.report))
        report = replace(self._report(), measurements=measured)
        with self._part(RESULT) as folder:
            if folder:
                write_json(ResultPart(folder).report, report.to_dict())
                save(folder)
        return report

    @contextmanager
    def _part(self, name: str) -> Iterator[Path | None]:
        """Yield a part of the trial's folder to fill, which replaces older training states; None on other ranks."""
        if not self._leads:
            yield None
            return
        yield self.folder.begin(name)
        self.folder.commit(name)
        self.folder.drop_states(keep=name)

    def _progress(self) -> Progress:
        from petl.training.evaluation import silent

        return Teller(self.folder) if self._leads else silent

    def _report(self) -> Report:
        position = self._run.position.to_dict() if self._run else {}
        return Report(
            process=os.getpid(),
            startup_seconds=(self._began or time.time()) - self.assignment.assigned,
            points=position.get("points", ()),
            validations=position.get("validations", ()),
        )


def failed(error: BaseException) -> Report:
    """Return the report of a run that an error ended."""
    return Report(failure=_reason(error))


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    if is_full(error):
        return f"{DISK_FULL}: {text}"[:1000]
    if isinstance(error, StoreAwayError):
        return f"{STORE_AWAY}: {text}"[:1000]
    if isinstance(error, MemoryError) or any(phrase in text.lower() for phrase in _OUT_OF_MEMORY):
        return f"out of memory: {text}"[:1000]
    if isinstance(error, ArithmeticError):
        return f"diverged: {text}"[:1000]
    return f"{type(error).__name__}: {text}"[:1000]
