"""Ray Tune around the search: a searcher and a scheduler that only ask `core`, and the Tuner.

Ray runs the workers and starts those again that die; it keeps no truth. What it would save of an
experiment is never read.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from ray import tune
from ray.tune import Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from petl.measurements import Measurements
from search.optimizer.replication import Race
from search.optimizer.search import DONE, Decision, Idle, Search
from search.storage.locations import FullDiskError, StoreError
from search.storage.locks import StudyBusyError
from search.storage.remote import StoreAwayError
from search.trials.record import Replicate, TrialRecord
from search.trials.records import RecordsError
from search.workers.trainable import Worker
from search.workers.training import DISK_FULL, STORE_AWAY, Job, Workload, milestones

if TYPE_CHECKING:
    from search.config.sections import ResourcesConfig


_NO_RECORDS: Final = (StoreError, RecordsError, StudyBusyError)  # a database or disk that is away, or another driver's
_RESTARTS: Final = 3  # of a trial whose process died, without a milestone in between, before it counts as failed


class Listener(Protocol):
    """Who is told what happens, once each and in order, on the driver."""

    def started(self, record: TrialRecord) -> None:
        """A worker was given the trial, for the first time or again after a resume."""

    def reported(self, record: TrialRecord, report: Mapping[str, Any]) -> None:
        """The trial passed a milestone; `report` is a worker's."""

    def restarted(self, record: TrialRecord) -> None:
        """The trial's process died; another one goes on from the last milestone."""

    def paused(self, record: TrialRecord) -> None:
        """The trial waits for its promotion, without a worker."""

    def ended(self, record: TrialRecord) -> None:
        """The trial is COMPLETE, PRUNED or FAIL."""


class RaceListener(Protocol):
    """Who is told what becomes of replicates, on the driver."""

    def began(self, run: Replicate) -> None:
        """A worker was given the replicate, for the first time or again after a resume."""

    def died(self, run: Replicate) -> None:
        """The replicate's process died; another one goes on from the last milestone."""

    def over(self, run: Replicate, report: Mapping[str, Any]) -> None:
        """The replicate has measurements, or a failure; `report` is a worker's last one."""


class _Bridge(ABC):
    """Between Tune's trials and those who say what is trained."""

    def __init__(self) -> None:
        self.error: Exception | None = None  # why no further trial could be proposed
        self.cut_off = False  # from its records, or the disk: nothing that still runs could be kept
        self._validated: dict[str, int] = {}  # Tune's trial id -> how often it has validated

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles its searcher for a restore that never happens."""
        return {}

    def next(self, tune_id: str) -> dict[str, Any] | str | None:
        """A configuration for Tune, None to wait, or FINISHED."""
        try:
            job = self.assign(tune_id)
        except _NO_RECORDS as error:
            self.sever(error)
            return str(Searcher.FINISHED)
        except Exception as error:  # also what a space of the user's own raises; running trials still end
            self.error = error
            return str(Searcher.FINISHED)
        if job is DONE:
            return str(Searcher.FINISHED)
        return {"job": job.to_json()} if isinstance(job, Job) else None

    @abstractmethod
    def assign(self, tune_id: str) -> Job | Idle:
        """What this trial of Tune's is to train."""

    @abstractmethod
    def heard(self, tune_id: str, report: Mapping[str, Any]) -> bool:
        """Takes a report in; whether the trial goes on."""

    @abstractmethod
    def ended(self, tune_id: str, report: Mapping[str, Any] | None) -> None:
        """Tune is done with a trial: it finished, failed, or its process died once too often (no report)."""

    @abstractmethod
    def restarted(self, tune_id: str) -> None:
        """Tune starts the trial again in another process."""

    def progressed(self, tune_id: str, report: Mapping[str, Any]) -> bool:
        """Whether a report, which has all of a trial's validations, has one that none before had."""
        validated = len(report.get("validations", ()))
        before, self._validated[tune_id] = self._validated.get(tune_id, 0), validated
        return validated > before

    def sever(self, error: Exception) -> None:
        """Nothing can be kept any more."""
        self.error, self.cut_off = error, True


class Bridge(_Bridge):
    """Translates between Tune's trials and the search's."""

    def __init__(self, search: Search, listeners: Sequence[Listener], score: str) -> None:
        super().__init__()
        self.search, self.listeners, self.score = search, listeners, score
        self._numbers: dict[str, int] = {}  # Tune's trial id -> number, while open

    def assign(self, tune_id: str) -> Job | Idle:
        """The next trial."""
        decision = self.search.next(free_workers=1)
        self._tell_closed()
        if isinstance(decision, Idle):
            return decision
        record = decision.record
        self._numbers[tune_id] = record.number
        configuration = record.configuration
        training = configuration.training if configuration else None
        job = Job(
            number=record.number,
            configuration=configuration.to_dict() if configuration else None,
            reference=record.reference,
            milestones=milestones(self.search.rungs(record.number), training.epochs, training.validate_every)
            if training
            else (),
            assigned=time.time(),
        )
        for listener in self.listeners:
            listener.started(record)
        return job

    def heard(self, tune_id: str, report: Mapping[str, Any]) -> bool:
        """Takes a report in; whether the trial goes on, as the rung rule has it."""
        if self.cut_off:
            return True
        try:
            decision = self._take_in(self._numbers[tune_id], report)
            if decision is Decision.STOP:
                self._end(tune_id, stopped=True)
            elif decision is Decision.PAUSE:  # to Tune that is an end: its promotion is another trial of Tune's
                number = self._numbers.pop(tune_id)
                for listener in self.listeners:
                    listener.paused(self.search.records.get(number))
                self._tell_closed()
        except _NO_RECORDS as error:
            self.sever(error)
            return True
        return decision is Decision.CONTINUE

    def ended(self, tune_id: str, report: Mapping[str, Any] | None) -> None:
        """The trial is over, unless Tune itself is being stopped: then it stays open, and a resume takes it up."""
        if tune_id not in self._numbers or self.cut_off:
            return  # stopped by the rung rule, and closed then; or left open for a resume
        try:
            if failure := _failure(report, f"trial {self._numbers[tune_id]}"):
                self._end(tune_id, failure=failure)
            elif report and (measured := report.get("measurements")):
                self._take_in(self._numbers[tune_id], report)
                self._end(tune_id, measurements=Measurements.from_dict(measured))
        except _NO_RECORDS as error:
            self.sever(error)

    def restarted(self, tune_id: str) -> None:
        """Said to the listeners."""
        for listener in self.listeners:
            listener.restarted(self.search.records.get(self._numbers[tune_id]))

    def _take_in(self, number: int, report: Mapping[str, Any]) -> Decision:
        """A report has all of a trial's validations so far: an earlier one may have been lost with a driver."""
        over = bool(report.get("measurements"))
        decisions = [
            self.search.report(number, validation["epoch"], validation["scores"][self.score], over=over)
            for validation in report.get("validations", ())
        ]
        for listener in self.listeners:
            listener.reported(self.search.records.get(number), report)
        return next((decision for decision in decisions if decision is not Decision.CONTINUE), Decision.CONTINUE)

    def _end(self, tune_id: str, **outcome: Any) -> None:
        number = self._numbers.pop(tune_id)
        self.search.finish(number, **outcome)
        self._tell_closed(number)

    def _tell_closed(self, *numbers: int) -> None:
        """Of these, and of those that the search closed itself: one may be both."""
        for number in dict.fromkeys([*numbers, *(record.number for record in self.search.take_closed())]):
            for listener in self.listeners:
                listener.ended(self.search.records.get(number))


class RaceBridge(_Bridge):
    """Translates between Tune's trials and a race's replicates."""

    def __init__(self, race: Race, listeners: Sequence[RaceListener]) -> None:
        super().__init__()
        self.race, self.listeners = race, listeners
        self._runs: dict[str, Replicate] = {}  # by Tune's trial id, while open

    def assign(self, tune_id: str) -> Job | Idle:
        """The next replicate."""
        run = self.race.next()
        if isinstance(run, Idle):
            return run
        configuration = self.race.configuration(run.number, run.seed)
        training = configuration.training
        self._runs[tune_id] = run
        for listener in self.listeners:
            listener.began(run)
        return Job(
            number=run.number,
            configuration=configuration.to_dict(),
            reference=None,
            milestones=milestones(self.race.rungs, training.epochs, training.validate_every),
            assigned=time.time(),
            seed=run.seed,
        )

    def heard(self, tune_id: str, report: Mapping[str, Any]) -> bool:
        """Nothing stops a replicate but a budget that is spent; what it was trained is left for a resume."""
        try:
            if self.cut_off or not self.race.meter.spent or report.get("done"):
                return True
            run = self._runs.pop(tune_id)
            self.race.release(run.number, run.seed)
        except _NO_RECORDS as error:
            self.sever(error)
            return True
        return False

    def ended(self, tune_id: str, report: Mapping[str, Any] | None) -> None:
        """The replicate is over, unless Tune itself is being stopped: then a resume takes it up."""
        if tune_id not in self._runs or self.cut_off:
            return
        run = self._runs[tune_id]
        try:
            measured = (report or {}).get("measurements")
            failure = _failure(report, f"trial {run.number} with seed {run.seed}")
            if not (failure or measured):
                return
            del self._runs[tune_id]
            measurements = Measurements.from_dict(measured) if measured else None
            over = self.race.finish(run.number, run.seed, measurements, failure or None)
            for listener in self.listeners:
                listener.over(over, report or {})
        except _NO_RECORDS as error:
            self.sever(error)

    def restarted(self, tune_id: str) -> None:
        """Said to the listeners."""
        for listener in self.listeners:
            listener.died(self._runs[tune_id])


def _failure(report: Mapping[str, Any] | None, whose: str) -> str:
    """Why a trial failed, from its last report, or none where its process died once too often; "" if it did not.

    Raises FullDiskError or StoreAwayError where the next ones would fail as well, and this one can go on when things
    are mended.
    """
    if report is None:
        return f"its worker process died {_RESTARTS + 1} times without progress (killed, or out of memory)"
    failure = str(report.get("failure", ""))
    if failure.startswith(DISK_FULL):
        raise FullDiskError(f"{whose}: {failure}")
    if failure.startswith(STORE_AWAY):
        raise StoreAwayError(f"{whose}: {failure}")
    return failure


class _Searcher(Searcher):
    """Asks the bridge for trials."""

    def __init__(self, bridge: _Bridge) -> None:
        super().__init__(metric="score", mode="max")
        self.bridge = bridge

    def suggest(self, trial_id: str) -> Any:
        """A trial to start, None, or FINISHED."""
        return self.bridge.next(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Called once a trial, stopped ones included."""
        self.bridge.ended(trial_id, None if error else json.loads((result or {}).get("report", "{}")))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the truth is elsewhere."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a resume starts a fresh Tune run."""


class _Scheduler(FIFOScheduler):
    """Asks the bridge whether a trial goes on."""

    def __init__(self, bridge: _Bridge) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bridge = bridge

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Called at every milestone but the last."""
        report = json.loads(result["report"])
        if self.bridge.progressed(trial.trial_id, report):
            trial.run_metadata.num_failures = 0  # Tune counts those of a trial's whole life, perhaps days on spot nodes
        goes_on = self.bridge.heard(trial.trial_id, report)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)


class _CutOff(Stopper):
    """Ends everything where the records cannot be reached."""

    def __init__(self, bridge: _Bridge) -> None:
        self.bridge = bridge

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether this trial ends: that is the scheduler's to say."""
        return False

    def stop_all(self) -> bool:
        """Asked at every step of Tune's."""
        return self.bridge.cut_off


class _Restarts(tune.Callback):
    """Hears of trials whose process died."""

    def __init__(self, bridge: _Bridge) -> None:
        self.bridge = bridge

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called before the trial starts again."""
        self.bridge.restarted(trial.trial_id)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Tune takes SIGINT and SIGUSR1 over and gives them back only where they arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_trials(bridge: Bridge | RaceBridge, workload: Workload, resources: ResourcesConfig) -> None:
    """Runs Tune until the search, or the race, is done, or interrupted (Ctrl-C): see `Search.done`.

    Raises what the search raised when it was asked for a trial, once the running ones have ended.
    """
    os.environ |= {
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
        "TUNE_WARN_THRESHOLD_S": "60",  # a GP's proposal may take seconds
        "TUNE_MAX_PENDING_TRIALS_PG": str(resources.concurrent),  # else workers start one after another
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # tracebacks of workers that died
    workers, each = resources.workers_per_trial, resources.each
    trainable = tune.with_resources(
        tune.with_parameters(Worker, workload=workload, workers=workers, each=each),
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
