"""Records: the durable Optuna study that holds what is known of all trials.

Everything of a trial is a user attribute and in place before its state is told, because Optuna takes
no attributes afterwards. A trial is created with all its attributes in one transaction, and what it
ends with is written as one attribute before the state: at whatever moment the writer is killed, the
study is whole, and `open_study` tells the states that were left untold.

On PostgreSQL every operation is repeated where the connection was lost in the middle of it, and has
happened once in the end: attributes are set to the same value again, a state that is told already is
left, and a trial is found again by its token.
"""

from __future__ import annotations

import json
import logging
import math
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Protocol, TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from petl.configuration import Configuration
from petl.measurements import Measurements
from search.trials.objectives import Objectives
from search.trials.objectives import objectives as by_names
from search.trials.record import (
    Believed,
    Origin,
    Replicate,
    State,
    TrialRecord,
    _aside_to_dict,
    _origin,
    _record,
    _stop,
)
from search.trials.resolved import Resolved

# The study's user attributes.
_OBJECTIVES: Final = "objectives"
_CONFIG: Final = "config"
RESOLVED: Final = "resolved"  # the last one that `run` writes: a study without it has not begun

T = TypeVar("T")


class RecordsError(ValueError):
    """A study that exists already or does not, or a trial that cannot end like that."""


class Persist(Protocol):
    """Runs an operation of a storage, and repeats it where the connection was lost: `search.storage.database`."""

    def __call__(self, operation: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        """Return the operation's value. `again` replaces it where it may have been done already."""
        ...

    def announce(self, say: Callable[[str], None]) -> None:
        """Send what a person should know while it waits to `say`."""
        ...


class Once:
    """A Persist for a storage that has no connection to lose."""

    def __call__(self, operation: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        """Return the operation's value."""
        return operation()

    def announce(self, say: Callable[[str], None]) -> None:
        pass


class Records:
    """The trials of one study, durable in an Optuna storage. One writer: the driver.

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
        self._info: dict[str, Any] = dict(self.persist(lambda: storage.get_study_user_attrs(study_id)))
        self._resolved: Resolved | None = None  # parsed when it is first asked for
        self._records: list[TrialRecord] = []
        self._origins: list[Origin] = []
        self._stops: dict[int, float] = {}
        self.changes = 0  # to the trials, through this object
        self.objectives: Objectives = by_names(*self._info[_OBJECTIVES])
        trials = self.persist(lambda: storage.get_all_trials(study_id))
        for trial in sorted(trials, key=lambda trial: trial.number):
            self._origins.append(_origin(trial))
            self._records.append(_record(trial))
            self._stops |= _stop(trial)
            if writes and trial.state is TrialState.RUNNING and "outcome" in trial.user_attrs:
                self._tell(trial.number, State(trial.user_attrs["outcome"]["state"]))

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
        """A study that lives as long as this object: for tests and simulations."""
        return cls.create_study(InMemoryStorage(), "in-memory", objectives)

    def disconnect(self) -> None:
        """Lets go of the database's connections; whatever is done next connects again."""
        if isinstance(self._storage, RDBStorage):
            self._storage.engine.dispose()

    def all(self) -> list[TrialRecord]:
        """Every trial, by number."""
        return list(self._records)

    def get(self, number: int) -> TrialRecord:
        """One trial. Raises RecordsError where there is none of that number."""
        self._check(number)
        return self._records[number]

    def origin(self, number: int) -> Origin:
        """Where the trial came from."""
        self._check(number)
        return self._origins[number]

    def stopped_at(self, number: int) -> float | None:
        """The rung at which the rule stopped the trial, in epochs."""
        return self._stops.get(number)

    def info(self, key: str, default: Any = None) -> Any:
        """What `set_info` kept for the study."""
        return self._info.get(key, default)

    def set_info(self, key: str, value: Any) -> None:
        """Keep a JSON value for the study, such as what was resolved once."""
        self._info[key] = json.loads(json.dumps(value))
        self.persist(lambda: self._storage.set_study_user_attr(self._study_id, key, self._info[key]))

    @property
    def config(self) -> Mapping[str, Any]:
        """The study file as it was last run, in JSON."""
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

    def create(
        self,
        configuration: Configuration | None,
        params: Mapping[str, float | int | str] | None = None,
        origin: Origin | None = None,
        *,
        reference: str | None = None,
        name: str = "",
    ) -> TrialRecord:
        """A new trial, RUNNING."""
        origin = origin or Origin()
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(origin.coordinates),
            distributions=dict(origin.distributions),
            user_attrs={
                "configuration": configuration.to_dict() if configuration else None,
                "params": dict(params or {}),
                "reference": reference,
                "name": name,
                "counts": dict(origin.counts),
                "asides": [_aside_to_dict(aside, origin) for aside in origin.asides],
                "token": uuid.uuid4().hex,
            },
        )
        trial_id = self.persist(
            lambda: self._storage.create_new_trial(self._study_id, trial), again=lambda: self._create_again(trial)
        )
        created = self.persist(lambda: self._storage.get_trial(trial_id))
        self._origins.append(origin)
        self._records.append(_record(created))
        self.changes += 1
        return self._records[-1]

    def rung(self, number: int, epoch: float, score: float, *, stop: bool = False, pause: bool = False) -> None:
        """Keep the score that a running trial reached, and whether the rule stops it there, or has it wait.

        A rung that is known already stays as it is.
        """
        record = self.get(number)
        if record.state is not State.RUNNING:
            raise RecordsError(f"a rung is reported by a running trial; trial {number} is {record.state}")
        if epoch in record.rungs:
            return
        rungs = {**record.rungs, epoch: score}
        self._write(
            number,
            "progress",
            {
                "rungs": list(rungs.items()),
                "stopped_at": epoch if stop else self.stopped_at(number),
                "paused": pause,
            },
        )
        self._read(number)

    def promote(self, number: int) -> TrialRecord:
        """A trial that waits is RUNNING again. Raises RecordsError for another one."""
        record = self.get(number)
        if record.state is not State.PAUSED:
            raise RecordsError(f"a paused trial is promoted; trial {number} is {record.state}")
        self._write(number, "progress", {"rungs": list(record.rungs.items()), "stopped_at": None, "paused": False})
        return self._read(number)

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
        outcome = {
            "state": str(state),
            "measurements": measurements.to_dict() if measurements else None,
            "failure": failure,
        }
        self._write(number, "outcome", outcome)
        self._read(number)
        return self._tell(number, state)

    def _create_again(self, trial: FrozenTrial) -> int:
        """The id of a trial that may be there already, as the study's next one, with only the answer lost."""
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

    def _write(self, number: int, key: str, value: Any) -> None:
        self.persist(lambda: self._storage.set_trial_user_attr(self._id(number), key, value))

    def _tell(self, number: int, state: State) -> TrialRecord:
        values = self._values(number, self._records[number].measurements) if state is State.COMPLETE else None

        def tell_again() -> None:
            with suppress(UpdateFinishedTrialError):  # told, and only the answer was lost
                tell()

        def tell() -> None:
            self._storage.set_trial_state_values(self._id(number), TrialState[state], values)

        self.persist(tell, again=tell_again)
        return self._read(number)

    def _read(self, number: int) -> TrialRecord:
        trial = self.persist(lambda: self._storage.get_trial(self._id(number)))
        self._stops |= _stop(trial)
        self._records[number] = _record(trial)
        self.changes += 1
        return self._records[number]

    def _values(self, number: int, measurements: Measurements | None) -> list[float]:
        values = [objective.value(measurements) if measurements else None for objective in self.objectives]
        free = self._records[number].configuration is None  # a baseline, which trains nothing; Optuna wants values
        told = [0.0 if value is None and free and index else value for index, value in enumerate(values)]
        finite = [value for value in told if value is not None and math.isfinite(value)]
        if len(finite) < len(values):
            names = " and ".join(objective.name for objective in self.objectives)
            raise RecordsError(f"a complete trial has a finite {names}; trial {number} has {values}")
        return finite


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines and warnings of Optuna's inside; what the caller had set is restored."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"optuna(\..*)?")
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def study_names(storage: BaseStorage) -> list[str]:
    """Return the studies of a storage, oldest first.

    A study without objectives is not listed: its writer was killed while it created it.
    """
    return [study.study_name for study in storage.get_all_studies() if _OBJECTIVES in study.user_attrs]


def study_id_of(storage: BaseStorage, name: str) -> int:
    names = study_names(storage)
    if name not in names:
        raise RecordsError(f"there is no study {name!r}; there are: {', '.join(names) or 'none'}")
    return storage.get_study_id_from_name(name)


SECONDS: Final = "seconds"  # on record: those that the search has run
_DEVICE_SECONDS: Final = "device_seconds"


def spent(records: Records) -> dict[str, float]:
    """What a study has spent, as it is on record: `hours` of searching, and `device_hours` that its trials held."""
    return {
        "hours": float(records.info(SECONDS, 0.0)) / 3600,
        "device_hours": float(records.info(_DEVICE_SECONDS, 0.0)) / 3600,
    }


_REPLICATES: Final = "replicates"
_BELIEVED: Final = "believed"


def replicates(records: Records) -> list[Replicate]:
    """All that were begun, in their order."""
    return [Replicate.from_dict(item) for item in records.info(_REPLICATES, ())]


def believed(records: Records) -> dict[int, Believed]:
    """What was believed of each trial when the last race ended; empty where there was none."""
    return {int(number): Believed(**item) for number, item in records.info(_BELIEVED, {}).items()}
