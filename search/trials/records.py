"""Records: the durable Optuna study that holds what is known of all trials.

Everything of a trial is a user attribute and in place before its state is set, because Optuna takes
no attributes afterwards. A trial is created with all its attributes in one transaction, and what it
ends with is written as one attribute before the state: at whatever moment the writer is killed, the
study is whole, and the next writer sets the states that are missing.

On PostgreSQL every operation is repeated where the connection was lost in the middle of it, and has
happened once in the end: attributes are set to the same value again, a state that is set stays, and a
trial is recognised by its token.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from petl.configuration import Configuration
from petl.errors import UserError
from petl.measurements import Measurements
from search.trials.objectives import Objectives
from search.trials.objectives import objectives as by_names
from search.trials.quiet import quiet
from search.trials.record import Proposal, Rejected, Replicate, SeedSummary, Spent, State, TrialRecord
from search.trials.resolved import Resolved
from search.trials.upgrade import VersionError

# The study's user attributes.
_OBJECTIVES: Final = "objectives"
_CONFIG: Final = "config"
RESOLVED: Final = "resolved"  # the last one that `run` writes: a study without it has not begun
_SECONDS: Final = "seconds"
_DEVICE_SECONDS: Final = "device_seconds"
_REPLICATES: Final = "replicates"
_SUMMARIES: Final = "believed"
# Of a trial's record, the keys that are attributes from its creation on, and those that are in the one it ends with.
_FIXED: Final = ("configuration", "params", "reference", "name")
_OUTCOME: Final = ("state", "measurements", "failure")

T = TypeVar("T")


class RecordsError(UserError, ValueError):
    """A study that exists already or does not, or a trial that cannot end like that."""


class UnreadableError(UserError):
    """What is stored of a study is nothing that this module, or Optuna, can have written."""


_NONSENSE: Final = (ValueError, TypeError, LookupError, AttributeError, AssertionError, OverflowError, RecursionError)


@contextmanager
def _stored() -> Iterator[None]:
    """Raise UnreadableError where something that is stored cannot be parsed within the context."""
    try:
        yield
    except (RecordsError, VersionError):
        raise
    except _NONSENSE as error:
        text = " ".join(str(error).split()) or "no message"
        raise UnreadableError(f"{type(error).__name__}: {text}") from error


class Persist(Protocol):
    """Run an operation of a storage, and repeat it where the connection was lost: see `search.storage.database`."""

    def __call__(self, operation: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        """Return the operation's value. `again` replaces it where it may have been done already."""
        ...

    def announce(self, say: Callable[[str], None]) -> None:
        """Send what a person should know while it waits to `say`."""
        ...


class Once:
    """Be a Persist for a storage that has no connection to lose."""

    def __call__(self, operation: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        return operation()

    def announce(self, say: Callable[[str], None]) -> None:
        pass


class Records:
    """Hold the trials of one study, durable in an Optuna storage. The driver is the one writer.

    Example::

        records = Records.create_study(storage, "demo", ("accuracy", "stored_parameters"))
        record = records.create(configuration, params)
        records.rung(record.number, epoch=1.0, score=0.62)
        records.close(record.number, State.COMPLETE, measurements)
    """

    def __init__(
        self, storage: BaseStorage, study_id: int, persist: Persist | None = None, *, writes: bool = True
    ) -> None:
        self._storage = storage
        self._study_id = study_id
        self.persist: Persist = persist or Once()
        with _stored():
            self._info: dict[str, Any] = dict(self.persist(lambda: storage.get_study_user_attrs(study_id)))
        self._resolved: Resolved | None = None  # parsed when it is first asked for
        self._records: list[TrialRecord] = []
        self._proposals: list[Proposal] = []
        self._stops: dict[int, float] = {}
        self.changes = 0  # to the trials, through this object
        with _stored():
            self.objectives: Objectives = by_names(*self._info[_OBJECTIVES])
            trials = self.persist(lambda: storage.get_all_trials(study_id))
            trials.sort(key=lambda trial: trial.number)
            for trial in trials:
                self._proposals.append(_proposal(trial))
                self._records.append(_record(trial))
                self._stops |= _stop(trial)
                self._require_agreement(trial)
        for trial in trials if writes else ():  # once all could be read
            if trial.state is TrialState.RUNNING and "outcome" in trial.user_attrs:
                self._set_state(trial.number, State(trial.user_attrs["outcome"]["state"]))

    @classmethod
    def create_study(
        cls, storage: BaseStorage, name: str, objectives: Sequence[str], persist: Persist | None = None
    ) -> Records:
        """Create a study in `storage`. Raises RecordsError where the name is taken.

        `objectives` are the names of the score, the cost, and a second cost if there is one.
        """
        directions = [StudyDirection[objective.direction.upper()] for objective in by_names(*objectives)]
        with quiet():
            if name in study_names(storage):
                raise RecordsError(f"the study {name!r} exists already")
            with suppress(KeyError):
                storage.delete_study(storage.get_study_id_from_name(name))
            study_id = storage.create_new_study(directions, name)
            storage.set_study_user_attr(study_id, _OBJECTIVES, list(objectives))
        return cls(storage, study_id, persist)

    @classmethod
    def in_memory(cls, objectives: Sequence[str] = ("accuracy", "stored_parameters")) -> Records:
        """Create a study that lives as long as this object: for tests and simulations."""
        return cls.create_study(InMemoryStorage(), "in-memory", objectives)

    def require_readable(self) -> None:
        """Raise UnreadableError where what is on record of the study itself cannot be parsed, once it has begun."""
        if RESOLVED in self._info:
            with _stored():
                _ = dict(self.info(_CONFIG, {})), self.resolved, self.replicates, self.summaries, self.spent

    def disconnect(self) -> None:
        """Close the database's connections; the next operation connects again."""
        if isinstance(self._storage, RDBStorage):
            self._storage.engine.dispose()

    def all(self) -> list[TrialRecord]:
        """Return every trial, by number."""
        return list(self._records)

    def get(self, number: int) -> TrialRecord:
        """Return one trial. Raises RecordsError where there is none of that number."""
        self._check(number)
        return self._records[number]

    def proposal(self, number: int) -> Proposal:
        """Return where the trial came from."""
        self._check(number)
        return self._proposals[number]

    def stopped_at(self, number: int) -> float | None:
        """Return the rung at which the rule stopped the trial, in epochs; None where it did not."""
        return self._stops.get(number)

    def info(self, key: str, default: Any = None) -> Any:
        """Return what `set_info` stored for the study."""
        return self._info.get(key, default)

    def set_info(self, key: str, value: Any) -> None:
        """Store a JSON value for the study."""
        self._info[key] = json.loads(json.dumps(value))
        self.persist(lambda: self._storage.set_study_user_attr(self._study_id, key, self._info[key]))

    @property
    def config(self) -> Mapping[str, Any]:
        """The study file as it was last run, in JSON. Raises RecordsError where it is not on record."""
        if _CONFIG not in self._info:
            raise RecordsError(
                "the study file is not on record, though the study began: put a copy of its database back"
            )
        return self._info[_CONFIG]  # type: ignore[no-any-return]

    @config.setter
    def config(self, config: Mapping[str, Any]) -> None:
        self.set_info(_CONFIG, config)

    @property
    def resolved(self) -> Resolved:
        """What the study fixed when it began."""
        if self._resolved is None:
            self._resolved = Resolved.from_dict(self._info[RESOLVED])
        return self._resolved

    @resolved.setter
    def resolved(self, resolved: Resolved) -> None:
        self.set_info(RESOLVED, resolved.to_dict())
        self._resolved = resolved

    @property
    def seconds(self) -> float:
        """The seconds that the study has been searching, over all its drivers."""
        return float(self._info.get(_SECONDS, 0.0))

    @seconds.setter
    def seconds(self, seconds: float) -> None:
        self.set_info(_SECONDS, seconds)

    @property
    def device_seconds(self) -> float:
        """The seconds that trials have held devices, summed over the devices."""
        return float(self._info.get(_DEVICE_SECONDS, 0.0))

    @device_seconds.setter
    def device_seconds(self, seconds: float) -> None:
        self.set_info(_DEVICE_SECONDS, seconds)

    @property
    def spent(self) -> Spent:
        """What the study has spent, as far as it is on record."""
        return Spent(hours=self.seconds / 3600, device_hours=self.device_seconds / 3600)

    @property
    def replicates(self) -> list[Replicate]:
        """The replicates that were started, in their order."""
        return [Replicate.from_dict(item) for item in self._info.get(_REPLICATES, ())]

    @replicates.setter
    def replicates(self, replicates: Sequence[Replicate]) -> None:
        self.set_info(_REPLICATES, [replicate.to_dict() for replicate in replicates])

    @property
    def summaries(self) -> dict[int, SeedSummary]:
        """The summary over seeds of each trial, by number, when replication last ended; empty before."""
        return {int(number): SeedSummary(**item) for number, item in self._info.get(_SUMMARIES, {}).items()}

    @summaries.setter
    def summaries(self, summaries: Mapping[int, SeedSummary]) -> None:
        self.set_info(_SUMMARIES, {str(number): asdict(item) for number, item in summaries.items()})

    def create(
        self,
        configuration: Configuration | None,
        params: Mapping[str, float | int | str] | None = None,
        proposal: Proposal | None = None,
        *,
        reference: str | None = None,
        name: str = "",
    ) -> TrialRecord:
        """Create a trial, RUNNING."""
        proposal = proposal or Proposal()
        record = TrialRecord(
            number=len(self._records),
            state=State.RUNNING,
            configuration=configuration,
            params=params or {},
            reference=reference,
            name=name,
        ).to_dict()
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(proposal.coordinates),
            distributions=dict(proposal.distributions),
            user_attrs={
                **{key: record[key] for key in _FIXED},
                "counts": dict(proposal.counts),
                "asides": [rejected.to_dict(proposal.distributions) for rejected in proposal.rejected],
                "token": uuid.uuid4().hex,
            },
        )
        trial_id = self.persist(
            lambda: self._storage.create_new_trial(self._study_id, trial), again=lambda: self._create_again(trial)
        )
        created = self.persist(lambda: self._storage.get_trial(trial_id))
        self._proposals.append(proposal)
        self._records.append(_record(created))
        self.changes += 1
        return self._records[-1]

    def rung(self, number: int, epoch: float, score: float, *, stop: bool = False, pause: bool = False) -> None:
        """Record the score that a running trial reached, and whether the rule stops it there, or has it wait.

        A rung that is on record stays as it is.
        """
        record = self.get(number)
        if record.state is not State.RUNNING:
            raise RecordsError(f"a rung is reported by a running trial; trial {number} is {record.state}")
        if epoch in record.rungs:
            return
        rungs = {**record.rungs, epoch: score}
        self._progress(number, rungs, stopped_at=epoch if stop else self.stopped_at(number), paused=pause)

    def promote(self, number: int) -> TrialRecord:
        """Set a trial that waits to RUNNING. Raises RecordsError for another one."""
        record = self.get(number)
        if record.state is not State.PAUSED:
            raise RecordsError(f"a paused trial is promoted; trial {number} is {record.state}")
        return self._progress(number, record.rungs, stopped_at=None, paused=False)

    def close(
        self,
        number: int,
        state: State,
        measurements: Measurements | None = None,
        failure: str | None = None,
    ) -> TrialRecord:
        """End a trial. One that has ended stays as it is.

        Raises RecordsError for a COMPLETE trial without a finite value of each objective.
        """
        record = self.get(number)
        if not record.state.open:
            return record
        if state.open:
            raise RecordsError(f"a trial ends COMPLETE, PRUNED or FAIL; received {state}")
        if state is State.COMPLETE:
            self._values(number, measurements)
        ended = replace(record, state=state, measurements=measurements, failure=failure).to_dict()
        self._write(number, "outcome", {key: ended[key] for key in _OUTCOME})
        self._read(number)
        return self._set_state(number, state)

    def _create_again(self, trial: FrozenTrial) -> int:
        """Create a trial, unless it is the study's last one already and only the answer was lost; return its id."""
        assert isinstance(self._storage, RDBStorage)
        with self._storage.engine.begin() as connection:  # after what the lost connection may still be doing there
            connection.exec_driver_sql(f"SELECT study_id FROM studies WHERE study_id = {self._study_id:d} FOR UPDATE")
        try:
            trial_id = self._id(len(self._records))
        except KeyError:
            return self._storage.create_new_trial(self._study_id, trial)
        if self._storage.get_trial_user_attrs(trial_id).get("token") != trial.user_attrs["token"]:
            raise RecordsError(
                f"trial {len(self._records)} of the study was created by another writer; a study has one"
            )
        return trial_id

    def _check(self, number: int) -> None:
        if not 0 <= number < len(self._records):
            raise RecordsError(f"the study has {len(self._records)} trials; received number {number}")

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _progress(
        self, number: int, rungs: Mapping[float, float], *, stopped_at: float | None, paused: bool
    ) -> TrialRecord:
        stored = replace(self._records[number], rungs=rungs).to_dict()["rungs"]
        self._write(number, "progress", {"rungs": stored, "stopped_at": stopped_at, "paused": paused})
        return self._read(number)

    def _write(self, number: int, key: str, value: Any) -> None:
        self.persist(lambda: self._storage.set_trial_user_attr(self._id(number), key, value))

    def _set_state(self, number: int, state: State) -> TrialRecord:
        values = self._values(number, self._records[number].measurements) if state is State.COMPLETE else None

        def set_state_again() -> None:
            with suppress(UpdateFinishedTrialError):  # it was set, and only the answer was lost
                set_state()

        def set_state() -> None:
            self._storage.set_trial_state_values(self._id(number), TrialState[state], values)

        self.persist(set_state, again=set_state_again)
        return self._read(number)

    def _read(self, number: int) -> TrialRecord:
        trial = self.persist(lambda: self._storage.get_trial(self._id(number)))
        self._stops |= _stop(trial)
        self._records[number] = _record(trial)
        self.changes += 1
        return self._records[number]

    def _require_agreement(self, trial: FrozenTrial) -> None:
        """Raise RecordsError where Optuna's columns of a trial that has ended say another thing than its record."""
        if not trial.state.is_finished() or "outcome" not in trial.user_attrs:
            return
        state = trial.user_attrs["outcome"]["state"]
        values = self._values(trial.number, self._records[trial.number].measurements) if state == "COMPLETE" else None
        if (trial.state.name, trial.values) != (state, values):
            raise RecordsError(
                f"the database says {trial.state.name} {trial.values} of trial {trial.number}, and its record {state} "
                f"{values}: one of them was changed. Put a copy of the database back, and resume"
            )

    def _values(self, number: int, measurements: Measurements | None) -> list[float]:
        values = [objective.value(measurements) if measurements else None for objective in self.objectives]
        free = self._records[number].configuration is None  # a baseline, which trains nothing; Optuna wants values
        filled = [0.0 if value is None and free and index else value for index, value in enumerate(values)]
        finite = [value for value in filled if value is not None and math.isfinite(value)]
        if len(finite) < len(values):
            names = " and ".join(objective.name for objective in self.objectives)
            raise RecordsError(f"a complete trial has a finite {names}; trial {number} has {values}")
        return finite


def study_names(storage: BaseStorage) -> list[str]:
    """Return the studies of a storage, oldest first, also those that are damaged.

    A study about which nothing is stored is not listed: its writer was killed while it created it.
    """
    if not isinstance(storage, RDBStorage):
        return [study.study_name for study in storage.get_all_studies() if study.user_attrs]
    with storage.engine.connect() as connection:  # Optuna's own list fails as a whole where one study is damaged
        rows = connection.exec_driver_sql(
            "SELECT study_name FROM studies WHERE study_id IN (SELECT study_id FROM study_user_attributes) "
            "ORDER BY study_id"
        )
        return [name for (name,) in rows]


def study_id_of(storage: BaseStorage, name: str) -> int:
    names = study_names(storage)
    if name not in names:
        raise RecordsError(f"there is no study {name!r}; there are: {', '.join(names) or 'none'}")
    return storage.get_study_id_from_name(name)


def _record(trial: FrozenTrial) -> TrialRecord:
    attributes = trial.user_attrs
    outcome, progress = attributes.get("outcome", {}), attributes.get("progress", {})
    waits = trial.state is TrialState.RUNNING and progress.get("paused")
    return TrialRecord.from_dict(
        {
            **{key: attributes[key] for key in _FIXED},
            "number": trial.number,
            "state": State.PAUSED if waits else trial.state.name,
            "rungs": progress.get("rungs", ()),
            "measurements": outcome.get("measurements"),
            "failure": outcome.get("failure"),
            "started": _seconds(trial.datetime_start),
            "ended": _seconds(trial.datetime_complete),
        }
    )


def _stop(trial: FrozenTrial) -> dict[int, float]:
    stopped_at = trial.user_attrs.get("progress", {}).get("stopped_at")
    return {} if stopped_at is None else {trial.number: stopped_at}


def _proposal(trial: FrozenTrial) -> Proposal:
    return Proposal(
        coordinates=trial.params,
        distributions=trial.distributions,
        counts=trial.user_attrs["counts"],
        rejected=[Rejected.from_dict(data, trial.distributions) for data in trial.user_attrs["asides"]],
    )


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
