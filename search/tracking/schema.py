"""Translate between dataclasses and the tags and metrics of MLflow; what strangers may have written is checked here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Final

from mlflow.entities import Experiment, Run
from pydantic import Field, TypeAdapter, ValidationError

from petl.errors import faults
from petl.measurements import SCORES, SHARES, Measurements
from petl.untrusted import parse, printable
from search.storage.errors import StoreError
from search.storage.locations import is_study_name
from search.trials.naming import method
from search.trials.objectives import objectives
from search.trials.record import SeedSummary, Spent, State, TrialRecord
from search.trials.report import TWIN
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


@dataclass(frozen=True)
class Data:
    """How many rows each split has; `sample` is the part of the validation split that a search uses, if not all."""

    rows: Mapping[str, _Amount] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StudyInfo:
    """The sections of a study file that readers look at, and what it resolved to; other settings are ignored."""

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
    resolved: Data = Data()

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


# Tags of runs. The parent has INFO, DISK and SPENT; a trial's run has TRIAL, and SEED where it is a replicate's.
KIND: Final = "kind"
STUDY_KIND, TRIAL_KIND, REFERENCE_KIND, REPLICATE_KIND = "study", "trial", "reference", "replicate"
STUDY: Final = "study"
INFO: Final = "info"
DISK: Final = "disk"
SPENT: Final = "spent"
TRIAL: Final = "trial"
SEED: Final = "seed"
STATE: Final = "state"
RECORD: Final = "record"
COUNTS: Final = "counts"
ON_FRONT: Final = "on_front"
METHOD: Final = "method"  # the parts of the design, whatever their sizes
COLOUR: Final = "mlflow.runColor"  # of a run in tables and charts; MLflow chooses where there is none
GREY: Final = "#d3d8de"  # of trials that are not on the front
POINT: Final = "x."  # begins the parameters that are the trial's point in the space
WITHDRAWN: Final = "withdrawn"  # why a trial has no adapter any more
STUDY_TAG: Final = "petl_search.study"  # on the experiment
ADAPTER: Final = "adapter"  # the artifact folder of a trial's adapter directory
_TAG_LENGTH: Final = 5_000  # MLflow takes 8,000 characters, some of its older servers 5,000
# What is read of a run is bounded, and is what this module can have written: a reader may not know who else writes
# into the store.
_MOST_TAGS: Final = 2_000  # of one text: ten million characters, some hundred thousand labels
_RECORD: Final = TypeAdapter(TrialRecord)
_MEASUREMENTS: Final = TypeAdapter(Measurements)
_NUMBERS: Final = TypeAdapter(dict[str, float])
_DISK_USE: Final = TypeAdapter(DiskUse)
_AMOUNTS: Final = TypeAdapter(dict[str, _Amount])
_INFO: Final = TypeAdapter(StudyInfo)
_NONSENSE: Final = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something that is published of a trial beside its record: written, parsed and shown by this one declaration.

    A run has it as the tag `name`, in JSON, and its numbers as the metrics that `metrics` returns for that JSON.
    Readers take it for a value of the type `type`, of which `columns` are in rows, front.json and front.csv, and which
    tables show as `text` below `heading`, where there is one. `of` derives it from a trial's record, None for nothing;
    without it a fact is told by `Publisher`, or by a worker in the `facts` of its report.
    """

    name: str
    type: Any
    metrics: Callable[[Any], Mapping[str, float]] = lambda value: {}
    columns: Callable[[Any], Mapping[str, Any]] = lambda value: {}
    heading: str = ""
    text: Callable[[Any], str] = str
    of: Callable[[TrialRecord], Any] | None = None


FACTS: Final[Mapping[str, Fact]] = {
    fact.name: fact
    for fact in (
        Fact(
            name="final",  # scores on whole splits, of the trials that were scored when their study ended
            type=dict[str, dict[str, float]],
            metrics=lambda scores: {f"{split}_{name}": v for split, own in scores.items() for name, v in own.items()},
        ),
        Fact(
            name="believed",  # a SeedSummary, where the study had replicates
            type=SeedSummary,
            metrics=lambda summary: {f"believed_{name}": value for name, value in summary.items()},
            columns=lambda summary: {f"believed_{name}": value for name, value in asdict(summary).items()},
        ),
        Fact(
            name=TWIN,
            type=Annotated[int, Field(ge=0)],
            columns=lambda number: {TWIN: number},
            heading="same\nas trial",
        ),
    )
}
_PARSERS: Final = {name: TypeAdapter(fact.type) for name, fact in FACTS.items()}


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
    """A TrialRecord, and what MLflow has beside it.

    `counts` are the measurements known before training, by name; `facts` are by the names of FACTS, in their types.
    `withdrawn` says why its adapter was removed, if it was.
    """

    record: TrialRecord
    run_id: str
    counts: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    on_front: bool = False
    withdrawn: str = ""

    @property
    def validation(self) -> Mapping[str, float]:
        """The scores on the whole validation split, where the trial was scored on it."""
        return self._final("validation")

    @property
    def test(self) -> Mapping[str, float]:
        """The scores on the test split, where the trial was scored on it."""
        return self._final("test")

    @property
    def seed_summary(self) -> SeedSummary | None:
        """The score over all seeds, None where the study had no replicates."""
        summary: SeedSummary | None = self.facts.get("believed")
        return summary

    @property
    def twin(self) -> int | None:
        """The trial of the same configuration whose result this one was given; None for one that was trained."""
        number: int | None = self.facts.get(TWIN)
        return number

    @property
    def columns(self) -> dict[str, Any]:
        """JSON-ready values of the facts, by the names of their columns."""
        return {
            column: value
            for name, fact in FACTS.items()
            if name in self.facts
            for column, value in fact.columns(self.facts[name]).items()
        }

    def _final(self, split: str) -> Mapping[str, float]:
        scores: Mapping[str, float] = self.facts.get("final", {}).get(split, {})
        return scores


def _record(data: Mapping[str, Any]) -> TrialRecord:
    """Parse a record. Raises one of _NONSENSE for what `TrialRecord.to_dict` cannot have written."""
    record = TrialRecord.from_dict(data)
    measured = record.measurements and _MEASUREMENTS.validate_python(record.measurements.to_dict())
    return _RECORD.validate_python({**vars(record), "measurements": measured})


def readable_tags(record: TrialRecord) -> dict[str, str]:
    tags = {STATE: str(record.state)}
    if record.configuration:
        design = record.configuration.design
        tags |= {"design": design.describe()[:_TAG_LENGTH], "design_key": design.key, METHOD: method(design)[:500]}
    for name, value in (("reference", record.reference), ("name", record.name), ("failure", record.failure)):
        if value:
            tags[name] = value[:500]
    return tags


def trial_row(run: Run) -> TrialRow:
    """Return what a trial's run holds. Raises StoreError where its tags are not as this module writes them."""
    with _sense(run):
        row = TrialRow(
            record=_record(_parsed(run, RECORD)),
            run_id=run.info.run_id,
            counts=_NUMBERS.validate_python(_parsed(run, COUNTS)),
            facts={
                name: parser.validate_python(value)
                for name, parser in _PARSERS.items()
                if (value := _value(run, name)) is not None
            },
            on_front=run.data.tags.get(ON_FRONT) == "true",
            withdrawn=printable(run.data.tags.get(WITHDRAWN, "")),
        )
        _require_sense(row)
    return row


def study_summary(experiment: Experiment, parent: Run) -> StudySummary:
    """Return what a study's parent run holds. Raises StoreError where it is not as this module writes it."""
    with _sense(parent):
        name = experiment.tags[STUDY_TAG]
        if name != experiment.name or not is_study_name(name):
            raise ValueError(f"a study has the name of its experiment; received {printable(name)!r}")
        info = StudyInfo.from_dict(upgraded(_parsed(parent, INFO)))
        disk = _DISK_USE.validate_python(data) if (data := _parsed(parent, DISK)) else None
        spent = Spent(**_AMOUNTS.validate_python(data)) if (data := _parsed(parent, SPENT)) else None
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
    """Raise StoreError, naming the run, where its content makes no sense: anybody may have written it."""
    try:
        yield
    except _NONSENSE as error:
        reason = "; ".join(faults(error)[:3]) if isinstance(error, ValidationError) else error
        text = " ".join(f"{type(error).__name__}: {reason}".split())
        raise StoreError(printable(f"run {run.info.run_id} makes no sense ({text[:300]})")) from None


def _value(run: Run, name: str) -> Any:
    """Return the JSON value in a run's tags `name`, `name.1` ..., None where there are none. Raises ValueError."""
    text = joined(run.data.tags, name)
    return None if text is None else parse(text)


def _parsed(run: Run, name: str) -> dict[str, Any]:
    """Return the JSON object in a run's tags `name`, `name.1` ..., an empty one without them. Raises ValueError."""
    data = parse(joined(run.data.tags, name) or "{}")
    if not isinstance(data, dict):
        raise ValueError(f"{name} is no object")
    return data


def _require_sense(row: TrialRow) -> None:
    """Raise ValueError for numbers that no trial can have."""
    record, measured = row.record, row.record.measurements.to_dict() if row.record.measurements else {}
    final = [item for scores in row.facts.get("final", {}).values() for item in scores.items()]
    for name, value in (("number", record.number), *row.counts.items(), *measured.items(), *final):
        share, score = name in SHARES, name in SCORES
        # the scores of a trial that diverged are no numbers, its loss is infinite
        if not (math.isnan(value) or -1 <= value <= 1 if share else score or 0 <= value <= _MOST):
            raise ValueError(f"{name} is {'a share' if share else f'from 0 to {_MOST:g}'}; received {value:g}")
    if row.seed_summary:
        for name, value in asdict(row.seed_summary).items():
            if not (0 <= value <= (1 if name == "probability" else _MOST) or name in ("mean", "corrected")):
                raise ValueError(f"{name} of a summary over seeds is at least 0; received {value:g}")
    for at in (record.started, record.ended, *record.rungs):
        if at is not None and not 0 <= at <= _MOST:
            raise ValueError(f"times and epochs are from 0 to {_MOST:g}; received {at:g}")


def split_text(name: str, text: str) -> dict[str, str]:
    """Return a JSON text as tags `name`, `name.1`, `name.2` ... Raises StoreError for what no reader would take."""
    if len(text) > _MOST_TAGS * _TAG_LENGTH:
        raise StoreError(
            f"MLflow is given no {name} of {len(text):,} characters, of which readers take "
            f"{_MOST_TAGS * _TAG_LENGTH:,}: a study has fewer labels or shorter ones, fewer designs in its list"
        )
    pieces = [text[at : at + _TAG_LENGTH] for at in range(0, len(text), _TAG_LENGTH)]
    return {(f"{name}.{i}" if i else name): piece for i, piece in enumerate(pieces)}


def joined(tags: Mapping[str, str], name: str) -> str | None:
    if name not in tags:
        return None
    pieces = [tags[name]]
    while (more := tags.get(f"{name}.{len(pieces)}")) is not None and len(pieces) < _MOST_TAGS:
        pieces.append(more)
    text = "".join(pieces)
    with suppress(ValueError, RecursionError):  # its reader says what is wrong
        text = text[: json.JSONDecoder().raw_decode(text)[1]]  # without the tail of an older, longer text
    return text
