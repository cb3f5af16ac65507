"""A record in the terms of MLflow: tags and metrics to dataclasses, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Final

from mlflow.entities import Experiment, Run
from pydantic import Field, TypeAdapter, ValidationError

from petl.errors import faults
from petl.measurements import SCORES, SHARES, Measurements
from petl.untrusted import parse, printable
from search.storage.locations import STUDY_NAME, StoreError
from search.trials.objectives import objectives
from search.trials.record import SeedSummary, Spent, State, TrialRecord
from search.trials.upgrade import upgraded

STATUS: Final[Mapping[State, str]] = {
    State.RUNNING: "RUNNING",
    State.PAUSED: "SCHEDULED",
    State.COMPLETE: "FINISHED",
    State.PRUNED: "KILLED",
    State.FAIL: "FAILED",
}


_MOST: Final = 1e18  # of counts, seconds, bytes
_Amount = Annotated[float, Field(ge=0, le=_MOST)]


@dataclass(frozen=True)
class ObjectiveNames:
    score: str
    cost: str
    second_cost: str | None = None


@dataclass(frozen=True)
class Model:
    model: str = ""


@dataclass(frozen=True)
class Named:
    name: str = ""


@dataclass(frozen=True)
class ListedDesign:
    """A row of a list of designs, with seeds of its own where it has some."""

    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class PaperTable:
    table: str
    task: str


@dataclass(frozen=True)
class BudgetLimits:
    """What a study may spend; None for no limit."""

    hours: _Amount | None = None
    device_hours: _Amount | None = None
    money: _Amount | None = None
    price_per_device_hour: _Amount | None = None


@dataclass(frozen=True, kw_only=True)
class StudyInfo:
    """The sections of a study file that readers look at; their other settings are ignored."""

    objectives: ObjectiveNames
    constraints: Mapping[str, _Amount] = field(default_factory=dict)  # upper limits by the names of Measurements
    backbone: Model = Model()
    task: Named = Named()
    space: Named = Named()
    designs: Mapping[str, ListedDesign] = field(default_factory=dict)  # of a list, by the names of its rows
    seeds: tuple[int, ...] = ()
    seed: int = 0
    paper: PaperTable | None = None
    budget: BudgetLimits = BudgetLimits()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StudyInfo:
        """Parse a study file as JSON holds it. Raises ValueError where a field is not what a study file may have."""
        info = _INFO.validate_python(data)
        objectives(**vars(info.objectives))
        if unknown := set(info.constraints) - {each.name for each in fields(Measurements)}:
            raise ValueError(f"a constraint names a measurement; received {', '.join(sorted(unknown))}")
        return info


@dataclass(frozen=True)
class DiskUse:
    """Bytes that a study uses, and their limit, None for none."""

    used: Annotated[int, Field(ge=0)]
    limit: Annotated[int, Field(ge=0)] | None = None


ADAPTER: Final = "adapter"  # the artifact folder of a trial's adapter directory
_WITHDRAWN: Final = "withdrawn"  # the tag that says why a trial has no adapter any more
_DISK: Final = "disk"  # the parent's tags
_SPENT: Final = "spent"
_FINAL: Final = "final"  # the tag of a trial's scores on whole splits
_BELIEVED: Final = "believed"  # that of what all its seeds say
_STUDY_TAG: Final = "petl_search.study"  # on the experiment
_TAG_LENGTH: Final = 5_000  # MLflow takes 8,000 characters, some of its older servers 5,000
# What is read of a run is bounded, and is what this module can have written: whoever reads a study may not know who
# else writes into its store.
_MOST_TAGS: Final = 200  # of one text: a million characters, a list of some thousand designs
_RECORD: Final = TypeAdapter(TrialRecord)
_MEASUREMENTS: Final = TypeAdapter(Measurements)
_NUMBERS: Final = TypeAdapter(dict[str, float])
_BELIEFS: Final = TypeAdapter(SeedSummary)
_DISK_USE: Final = TypeAdapter(DiskUse)
_AMOUNTS: Final = TypeAdapter(dict[str, _Amount])
_INFO: Final = TypeAdapter(StudyInfo)
_NONSENSE: Final = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """A study as its experiment and parent run have it.

    `status` is MLflow's word for the parent run; `started` is seconds since the epoch. `disk` and `spent` are as they
    were last published, None before.
    """

    name: str
    experiment_id: str
    run_id: str
    status: str
    started: float
    info: StudyInfo
    disk: DiskUse | None = None
    spent: Spent | None = None


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
    believed: SeedSummary | None = None
    on_front: bool = False
    withdrawn: str = ""


def _record(data: Mapping[str, Any]) -> TrialRecord:
    """Raises one of _NONSENSE for what `TrialRecord.to_dict` cannot have written."""
    record = TrialRecord.from_dict(data)
    measured = record.measurements and _MEASUREMENTS.validate_python(record.measurements.to_dict())
    return _RECORD.validate_python({**vars(record), "measurements": measured})


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
        row = TrialRow(
            record=_record(_parsed(run, "record")),
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
        name = experiment.tags[_STUDY_TAG]
        if name != experiment.name or not STUDY_NAME.fullmatch(name):
            raise ValueError(f"a study has the name of its experiment; received {printable(name)!r}")
        info = StudyInfo.from_dict(upgraded(_parsed(parent, "info")))
        disk = _DISK_USE.validate_python(data) if (data := _parsed(parent, _DISK)) else None
        spent = Spent(**_AMOUNTS.validate_python(data)) if (data := _parsed(parent, _SPENT)) else None
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
        reason = "; ".join(faults(error)[:3]) if isinstance(error, ValidationError) else error
        text = " ".join(f"{type(error).__name__}: {reason}".split())
        raise StoreError(printable(f"run {run.info.run_id} makes no sense ({text[:300]})")) from None


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
