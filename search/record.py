"""TrialRecord: everything that is known of one trial. Records: the durable Optuna study that holds them.

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
import shlex
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from petl.configuration import Configuration
from petl.measurements import Measurements
from search.address import bare, masked, sqlite_file
from search.database import (
    ConnectionLostError,
    DatabaseError,
    Persistence,
    arguments,
    is_postgresql,
    notice_losses,
    reason,
)
from search.objectives import Objectives, objectives

_BUSY_SECONDS: Final = 60  # how long sqlite waits for another process's lock
_OBJECTIVES: Final = "objectives"


class State(StrEnum):
    """Optuna's words for the life of a trial, and PAUSED, which is RUNNING to Optuna."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"  # waits at a rung for its promotion, and needs no worker
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"  # stopped by the rung rule: never complete, never on the front
    FAIL = "FAIL"

    @property
    def open(self) -> bool:
        """Whether the trial may still be trained."""
        return self in (State.RUNNING, State.PAUSED)


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial of a study.

    `params` are the space's coordinates, empty for a design that the space does not contain.
    `reference` names a baseline that is shown beside the front and exempt from the study's limits;
    `majority` and `probe` have no configuration. `rungs` maps epochs to the score reached there.
    `started` and `ended` are seconds since the epoch.
    """

    number: int
    state: State
    configuration: Configuration | None = None
    params: Mapping[str, float | int | str] = field(default_factory=dict)
    reference: str | None = None
    name: str = ""  # of an enqueued design, as the user typed it
    rungs: Mapping[float, float] = field(default_factory=dict)
    measurements: Measurements | None = None
    failure: str | None = None
    started: float | None = None
    ended: float | None = None


@dataclass(frozen=True, kw_only=True)
class Aside:
    """A proposal that became no trial: its coordinates lie outside the limits, or mean what trial `twin` means.

    `counts` are the values known before training.
    """

    coordinates: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    counts: Mapping[str, float]
    twin: int | None = None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a trial came from, as the sampler must be told again after a restart.

    `coordinates` are the sampler's own (an index where TrialRecord.params shows the size), `asides`
    what it had proposed before on the way to this trial.
    """

    coordinates: Mapping[str, Any] = field(default_factory=dict)
    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    asides: Sequence[Aside] = ()


class RecordsError(ValueError):
    """A study that exists already or does not, or a trial that cannot end like that."""


class Records:
    """The trials of one study, durable in an Optuna storage. One writer: the driver.

    Example::

        records = Records.create_study("sqlite:///store.db", "demo", ("accuracy", "stored_parameters"))
        record = records.create(configuration, params)
        records.rung(record.number, epoch=1.0, score=0.62)
        records.close(record.number, State.COMPLETE, measurements)
    """

    def __init__(
        self, storage: BaseStorage, study_id: int, persistence: Persistence | None = None, *, writes: bool = True
    ) -> None:
        self._storage = storage
        self._study_id = study_id
        self.persist = persistence or Persistence("in memory")
        self._info: dict[str, Any] = dict(self.persist(lambda: storage.get_study_user_attrs(study_id)))
        self._records: list[TrialRecord] = []
        self._origins: list[Origin] = []
        self._stops: dict[int, float] = {}
        self.changes = 0  # to the trials, through this object
        self.objectives: Objectives = objectives(*self._info[_OBJECTIVES])
        trials = self.persist(lambda: storage.get_all_trials(study_id))
        for trial in sorted(trials, key=lambda trial: trial.number):
            self._origins.append(_origin(trial))
            self._records.append(_record(trial))
            self._stops |= _stop(trial)
            if writes and trial.state is TrialState.RUNNING and "outcome" in trial.user_attrs:
                self._tell(trial.number, State(trial.user_attrs["outcome"]["state"]))

    @classmethod
    def create_study(
        cls, url: str, name: str, objectives: Sequence[str], guard: Callable[[], None] | None = None
    ) -> Records:
        """A new study. Raises RecordsError where the name is taken.

        `objectives` are the names of the score, the cost, and a second cost if there is one.

        `guard` is called before every operation, and may refuse it: see `search.database.driving`.
        """
        return cls._created(_storage(url), name, objectives, _persistence(url, name, guard))

    @classmethod
    def open_study(
        cls, url: str, name: str, guard: Callable[[], None] | None = None, *, writes: bool = True
    ) -> Records:
        """An existing study; one that another process drives is only read, so nothing `writes`.

        Raises RecordsError where there is none of that name.
        """
        if not _is_there(url):
            raise RecordsError(f"there is no study {name!r}; there are: none")
        storage = _storage(url)
        with _answering(url):
            study_id = _study_id(storage, name)
        return cls(storage, study_id, _persistence(url, name, guard), writes=writes)

    @classmethod
    def in_memory(cls, objectives: Sequence[str] = ("accuracy", "stored_parameters")) -> Records:
        """A study that lives as long as this object: for tests and simulations."""
        return cls._created(InMemoryStorage(), "in-memory", objectives)

    @staticmethod
    def exists(url: str, name: str) -> bool:
        """Whether the storage has a study of that name."""
        return name in Records.names(url)

    @staticmethod
    def names(url: str) -> list[str]:
        """The studies of a storage, oldest first; none where it was never made."""
        if not _is_there(url):
            return []
        with _opened(url) as storage:
            return _names(storage)

    @staticmethod
    def info_of(url: str, name: str, key: str) -> Any:
        """What `set_info` kept for a study; None where there is no such study."""
        with _opened(url) as storage:
            found = [study for study in storage.get_all_studies() if study.study_name == name]
            return found[0].user_attrs.get(key) if found else None

    @staticmethod
    def begun(url: str, name: str) -> bool:
        """Whether a study is on record: one whose driver died before it had said what is run is not."""
        return _is_there(url) and Records.info_of(url, name, "resolved") is not None

    @staticmethod
    def delete(url: str, name: str) -> None:
        """Remove a study and all its trials. Raises RecordsError where there is none of that name."""
        with _opened(url) as storage:
            storage.delete_study(_study_id(storage, name))

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
            connection.execute(
                text("SELECT study_id FROM studies WHERE study_id = :id FOR UPDATE"), {"id": self._study_id}
            )
        try:
            trial_id = self._id(len(self._records))
        except KeyError:
            return self._storage.create_new_trial(self._study_id, trial)
        if self._storage.get_trial_user_attrs(trial_id).get("token") != trial.user_attrs["token"]:
            raise RecordsError(
                f"trial {len(self._records)} of the study was created by another writer; a study has one"
            )
        return trial_id

    @classmethod
    def _created(
        cls, storage: BaseStorage, name: str, names: Sequence[str], persistence: Persistence | None = None
    ) -> Records:
        directions = [StudyDirection[objective.direction.upper()] for objective in objectives(*names)]
        with quiet(), _answering(persistence.address if persistence else ""):
            if name in _names(storage):
                raise RecordsError(f"the study {name!r} exists already")
            with suppress(KeyError):
                storage.delete_study(storage.get_study_id_from_name(name))
            study_id = storage.create_new_study(directions, name)
            storage.set_study_user_attr(study_id, _OBJECTIVES, list(names))
        return cls(storage, study_id, persistence)

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


def _storage(url: str) -> RDBStorage:
    """Raises DatabaseError where no database answers."""
    options: dict[str, Any] = {"connect_args": {"timeout": _BUSY_SECONDS}}
    public = url
    if is_postgresql(url):
        public, options = arguments(url)
    with quiet(), _answering(url):
        storage = RDBStorage(public, engine_kwargs=options)
    if is_postgresql(url):
        notice_losses(storage.engine)
    return storage


@contextmanager
def _opened(url: str) -> Iterator[RDBStorage]:
    """A storage for a question or two."""
    storage = _storage(url)
    try:
        with _answering(url):
            yield storage
    finally:
        storage.engine.dispose()


@contextmanager
def _answering(url: str) -> Iterator[None]:
    """Raises DatabaseError where the database fails inside."""
    try:
        yield
    except (ConnectionLostError, SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        cause = getattr(cause, "orig", None) or cause  # without the statement
        raise DatabaseError(f"the database {masked(url)} does not do what it is asked: {reason(cause)}") from None


def _persistence(url: str, name: str, guard: Callable[[], None] | None) -> Persistence:
    where = f"PETL_SEARCH_DATABASE={shlex.quote(bare(url))} " if is_postgresql(url) else ""
    persistence = Persistence(masked(url), f"{where}petl-search resume {name}")
    if guard:
        persistence.guard = guard
    return persistence


def _names(storage: BaseStorage) -> list[str]:
    """A study without objectives is not listed: its writer was killed while it created it."""
    return [study.study_name for study in storage.get_all_studies() if _OBJECTIVES in study.user_attrs]


def _is_there(url: str) -> bool:
    """Whether there is such a storage: to open one of sqlite's is to make it."""
    file = sqlite_file(url)
    return file is None or file.exists()


def _study_id(storage: BaseStorage, name: str) -> int:
    names = _names(storage)
    if name not in names:
        raise RecordsError(f"there is no study {name!r}; there are: {', '.join(names) or 'none'}")
    return storage.get_study_id_from_name(name)


def _record(trial: FrozenTrial) -> TrialRecord:
    attributes = trial.user_attrs
    outcome, progress = attributes.get("outcome", {}), attributes.get("progress", {})
    state = State(trial.state.name)
    configuration, measurements = attributes["configuration"], outcome.get("measurements")
    return TrialRecord(
        number=trial.number,
        state=State.PAUSED if state is State.RUNNING and progress.get("paused") else state,
        configuration=Configuration.from_dict(configuration) if configuration else None,
        params=attributes["params"],
        reference=attributes["reference"],
        name=attributes["name"],
        rungs={at: float(score) for at, score in progress.get("rungs", ())},
        measurements=Measurements.from_dict(measurements) if measurements else None,
        failure=outcome.get("failure"),
        started=_seconds(trial.datetime_start),
        ended=_seconds(trial.datetime_complete),
    )


def _stop(trial: FrozenTrial) -> dict[int, float]:
    stopped_at = trial.user_attrs.get("progress", {}).get("stopped_at")
    return {} if stopped_at is None else {trial.number: stopped_at}


def _origin(trial: FrozenTrial) -> Origin:
    own = Origin(coordinates=trial.params, distributions=trial.distributions, counts=trial.user_attrs["counts"])
    return replace(own, asides=[_aside_from_dict(data, own) for data in trial.user_attrs["asides"]])


def _aside_to_dict(aside: Aside, origin: Origin) -> dict[str, Any]:
    """A space has fixed dimensions, so the trial's own distributions are nearly always those of the aside."""
    return {
        "coordinates": dict(aside.coordinates),
        "distributions": {
            name: distribution_to_json(distribution)
            for name, distribution in aside.distributions.items()
            if origin.distributions.get(name) != distribution
        },
        "counts": dict(aside.counts),
        "twin": aside.twin,
    }


def _aside_from_dict(data: Mapping[str, Any], origin: Origin) -> Aside:
    others = {name: json_to_distribution(text) for name, text in data["distributions"].items()}
    return Aside(
        coordinates=data["coordinates"],
        distributions={name: others.get(name) or origin.distributions[name] for name in data["coordinates"]},
        counts=data["counts"],
        twin=data["twin"],
    )


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
