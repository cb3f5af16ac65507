"""Ray Tune around the search: a searcher and a scheduler that only ask its Source, and the Tuner.

Ray runs the workers and restarts those that die; it keeps no truth. What it would save of an experiment is never read.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from ray import tune
from ray.tune import Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from search.optimizer.steps import DONE, Decision, Idle, Source
from search.storage.errors import FullDiskError, StoreError
from search.storage.locks import StudyBusyError
from search.storage.remote import StoreAwayError
from search.trials.record import Replicate
from search.trials.records import RecordsError
from search.trials.report import Listener, Report, Run
from search.workers.assignment import Assignment, StudyContext
from search.workers.trainable import Worker
from search.workers.training import DISK_FULL, STORE_AWAY

if TYPE_CHECKING:
    from types import FrameType

    from search.config.sections import ResourcesConfig


_NO_RECORDS: Final = (StoreError, RecordsError, StudyBusyError)  # a database or disk that is away, or another driver's
_AT_ONCE: Final = 1.0  # seconds that Tune has to end after a Ctrl-C
_RESTARTS: Final = 3  # of a trial whose process died, without a milestone in between, before it counts as failed


class Outcome(StrEnum):
    """How a run of Tune ended."""

    DONE = "done"
    INTERRUPTED = "interrupted"  # by Ctrl-C: what was running is left for a resume


class Bridge:
    """Between Tune's trials and a Source of runs: the search, or its replicates.

    `score` is what the source decides by.
    """

    def __init__(self, source: Source[Run], listeners: Sequence[Listener], score: str) -> None:
        self.source, self.listeners, self.score = source, listeners, score
        self.error: Exception | None = None  # why no further run could be handed out
        self.cut_off = False  # from its records, or the disk: nothing that still runs could be kept
        self._open: dict[str, Run] = {}  # by Tune's trial id
        self._validated: dict[str, int] = {}  # Tune's trial id -> how often it has validated

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray pickles its searcher for a restore that never happens."""
        return {}

    def next(self, tune_id: str) -> dict[str, Any] | str | None:
        """Return a configuration for Tune, None to wait, or FINISHED."""
        try:
            step = self.source.next()
            self._announce_ends()
            if isinstance(step, Idle):
                return str(Searcher.FINISHED) if step is DONE else None
            run = self._open[tune_id] = step.record
            assignment = Assignment.of(run, self.source.configuration(run.key), self.source.rungs(run.key), step.twin)
            for listener in self.listeners:
                listener.started(run)
            return {"assignment": assignment.to_json()}
        except _NO_RECORDS as error:
            self._sever(error)
        except Exception as error:  # also what a space of the user's own raises; running trials still end
            self.error = error
        return str(Searcher.FINISHED)

    def reported(self, tune_id: str, report: Report) -> bool:
        """Take a report in, and return whether the run trains on."""
        if self.cut_off:
            return True
        key = self._open[tune_id].key
        try:
            decision = self._take_in(key, report)
            if decision is not Decision.CONTINUE:
                del self._open[tune_id]
            if decision is Decision.STOP:
                self._finish(key, stopped=True)
            elif decision is Decision.PAUSE:  # to Tune that is an end: a resume is another trial of Tune's
                for listener in self.listeners:
                    listener.paused(self.source.get(key))
                self._announce_ends()
        except _NO_RECORDS as error:
            self._sever(error)
            return True
        return decision is Decision.CONTINUE

    def ended(self, tune_id: str, report: Report | None) -> None:
        """End a run that finished, failed, or whose process died once too often (no report).

        A run that Tune ends because it is being stopped itself stays open, and a resume takes it up.
        """
        if tune_id not in self._open or self.cut_off:
            return  # the source has stopped or paused it already
        run = self._open[tune_id]
        try:
            if failure := _failure(report, run):
                self._finish(run.key, failure=failure)
            elif report and report.measurements:
                self._take_in(run.key, report)
                self._finish(run.key, measurements=report.measurements)
            else:
                return
            del self._open[tune_id]
        except _NO_RECORDS as error:
            self._sever(error)

    def restarted(self, tune_id: str) -> None:
        """Announce that Tune starts the run again in another process."""
        for listener in self.listeners:
            listener.restarted(self.source.get(self._open[tune_id].key))

    def progressed(self, tune_id: str, report: Report) -> bool:
        """Return whether a report, which has all validations of a run, has one that none before had."""
        before, self._validated[tune_id] = self._validated.get(tune_id, 0), len(report.validations)
        return len(report.validations) > before

    def _take_in(self, key: Any, report: Report) -> Decision:
        """Hand every validation to the source: an earlier report of it may have been lost with a driver."""
        over = report.measurements is not None
        decisions = [
            self.source.report(key, validation["epoch"], validation["scores"][self.score], over=over)
            for validation in report.validations
        ]
        for listener in self.listeners:
            listener.reported(self.source.get(key), report)
        return next((decision for decision in decisions if decision is not Decision.CONTINUE), Decision.CONTINUE)

    def _finish(self, key: Any, **outcome: Any) -> None:
        self._announce_ends(self.source.finish(key, **outcome))

    def _announce_ends(self, *ended: Run) -> None:
        """Announce the end of these, and of those that the source closed itself: one may be both."""
        for run in {run.key: run for run in (*ended, *self.source.take_closed())}.values():
            for listener in self.listeners:
                listener.ended(run)

    def _sever(self, error: Exception) -> None:
        """Give up: nothing can be kept any more."""
        self.error, self.cut_off = error, True


def _failure(report: Report | None, run: Run) -> str:
    """Return why a run failed: its last report says it, or there is none where its process died once too often.

    Raises FullDiskError or StoreAwayError where the next ones would fail as well, and this one can be resumed when that
    is mended.
    """
    if report is None:
        return f"its worker process died {_RESTARTS + 1} times without progress (killed, or out of memory)"
    failure = report.failure or ""
    whose = f"trial {run.number}" + (f" with seed {run.seed}" if isinstance(run, Replicate) else "")
    if failure.startswith(DISK_FULL):
        raise FullDiskError(f"{whose}: {failure}")
    if failure.startswith(STORE_AWAY):
        raise StoreAwayError(f"{whose}: {failure}")
    return failure


class _Searcher(Searcher):
    """Asks the bridge for runs."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(metric="score", mode="max")
        self.bridge = bridge

    def suggest(self, trial_id: str) -> Any:
        """Return a run to start, None, or FINISHED."""
        return self.bridge.next(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """End a run, stopped ones included."""
        self.bridge.ended(trial_id, None if error else Report.from_json((result or {}).get("report", "{}")))

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the truth is elsewhere."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a resume starts a fresh run of Tune."""


class _Scheduler(FIFOScheduler):
    """Asks the bridge whether a run trains on."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bridge = bridge

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return what a report means for its run: at every milestone except the last."""
        report = Report.from_json(result["report"])
        if self.bridge.progressed(trial.trial_id, report):
            trial.run_metadata.num_failures = 0  # Tune counts those of a trial's whole life, perhaps days on spot nodes
        continues = self.bridge.reported(trial.trial_id, report)
        return str(TrialScheduler.CONTINUE if continues else TrialScheduler.STOP)


class _CutOff(Stopper):
    """Ends everything where the records cannot be reached."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: the scheduler decides which runs end."""
        return False

    def stop_all(self) -> bool:
        """Return whether all ends now."""
        return self.bridge.cut_off


class _Restarts(tune.Callback):
    """Learns of runs whose process died."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Announce that a run starts again."""
        self.bridge.restarted(trial.trial_id)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Let Ctrl-C end Tune at its next step, and whatever it is doing a second later: it waits for what workers do.

    The handlers of signals are afterwards what they were: Tune takes SIGUSR1 over, which ends it in the same way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGALRM)}
    asked = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        ends_tune = signal.getsignal(signal.SIGUSR1)
        if asked or not callable(ends_tune) or ends_tune is before[signal.SIGUSR1]:  # Tune has not begun
            insist(number, frame)
            return
        asked = True
        signal.setitimer(signal.ITIMER_REAL, _AT_ONCE)
        ends_tune(number, frame)

    def insist(number: int, frame: FrameType | None) -> None:
        handler = before[signal.SIGINT]
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    signal.signal(signal.SIGALRM, insist)
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if asked:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def run_trials(bridge: Bridge, context: StudyContext, resources: ResourcesConfig) -> Outcome:
    """Run Tune until the bridge's source is done, or Ctrl-C interrupts Tune, and return which of them it was.

    Raises what the source raised when it was asked for a run, once the running ones have ended.
    """
    os.environ |= {
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
        "TUNE_WARN_THRESHOLD_S": "60",  # a GP's proposal may take seconds
        "TUNE_MAX_PENDING_TRIALS_PG": str(resources.concurrent),  # else workers start one after another
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # there is one here
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # tracebacks of workers that died
    workers, each = resources.workers_per_trial, resources.each
    trainable = tune.with_resources(
        tune.with_parameters(Worker, context=context, workers=workers, each=each),
        # One that leads a gang needs nothing itself, but its place is where the gang's are.
        tune.PlacementGroupFactory([each] if workers == 1 else [{}, *workers * [each]]),
    )
    with tempfile.TemporaryDirectory(prefix="petl-tune-") as scratch, _own_signals():
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_Searcher(bridge),
                scheduler=_Scheduler(bridge),
                num_samples=10**9,  # the search itself says when it is done
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.trial_id,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                name="trials",
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=_RESTARTS),
                # else a trial on another node fails at its end, where it does not find the driver's scratch
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                stop=_CutOff(bridge),
                callbacks=[_Restarts(bridge)],
            ),
        ).fit()
    if bridge.error:
        raise bridge.error
    return Outcome.DONE if bridge.source.done else Outcome.INTERRUPTED
