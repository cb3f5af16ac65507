"""What a page shows, as values: the document that `petl-search report NAME --format json` prints.

Numbers are finite or None in JSON, and every text is plain: whoever shows it escapes it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from petl.errors import UserError
from petl.head import PROBE
from search.results.choices import finite
from search.results.console import Failure, failures, state_text
from search.results.report.growth import Attained, attainment, late_gain
from search.results.report.numbers import curve, short
from search.results.report.space import DimensionData, Matter, dimensions, matters
from search.results.report.words import Answer, Luck, Step, answers, commands, luck, steps
from search.trials.formats import STATES, model_text
from search.trials.objectives import COSTS, Objective
from search.trials.record import State, epochs_trained

if TYPE_CHECKING:
    from search.results.query import Study, Trial

FORMAT: Final = 1  # by which a reader knows the keys; it grows when one of them changes its meaning

_COSTS: Final = ("stored_parameters", "stored_percent", "peak_memory_mb", "latency_ms", "seconds")


class ReportError(UserError):
    """Studies that cannot be compared in one page, or a page that cannot be written."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A score or a cost: a name of `petl.measurements.Measurements`, and how it is drawn."""

    name: str
    title: str
    higher_is_better: bool
    logarithmic: bool


@dataclass(frozen=True, kw_only=True)
class TrialData:
    """A trial or reference in any state.

    `eligible` says whether it may be on the front: complete, and within the study's limits; `adapter` whether one was
    published, to be exported and loaded. `measured` has the costs, by name. `curve` has the score after so many epochs,
    at each rung and at the end. `point` has its coordinates in the order of the study's dimensions, and is empty for a
    design that was not sampled.
    """

    number: int
    state: str
    name: str
    design: str
    reference: bool
    eligible: bool
    adapter: bool
    score: float | None
    test_score: float | None
    measured: Mapping[str, float]
    curve: Sequence[tuple[float, float | None]]
    point: Sequence[float | str | None]
    failure: str | None


@dataclass(frozen=True, kw_only=True)
class StudyData:
    """A study.

    `objectives` are the score, the cost, and the second cost where there is one; `costs` all that was measured.
    `front` has the rows of `petl-search front NAME --format json`. `commands` use a trial whose number stands for
    `{trial}`. `spent` and `budget` are by `hours`, `device_hours`, `money` and `epochs`, where they are known.
    """

    study: str
    status: str
    model: str
    task: str
    space: str
    objectives: Sequence[Measure]
    costs: Sequence[Measure]
    limits: Mapping[str, float]
    base_parameters: int
    states: Mapping[str, int]
    spent: Mapping[str, float]
    budget: Mapping[str, float]
    answers: Sequence[Answer]
    beaten: Sequence[str]
    luck: Luck
    steps: Sequence[Step]
    front: Sequence[Mapping[str, Any]]
    trials: Sequence[TrialData]
    attainment: Sequence[Attained]
    matters: Sequence[Matter]
    dimensions: Sequence[DimensionData]
    failures: Sequence[Failure]
    commands: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Document:
    """One study or several with the same score; `written` is in seconds since the epoch."""

    format: int
    written: float
    studies: Sequence[StudyData]


_PERCENT: Final = Measure(
    name="stored_percent", title="stored parameters (% of the model)", higher_is_better=False, logarithmic=True
)


def document(studies: Sequence[Study]) -> Document:
    """Return what a page shows of studies. Raises ReportError where they do not have the same score."""
    metrics = {study.name: study.objectives[0].name for study in studies}
    if len(set(metrics.values())) > 1:
        listed = ", ".join(f"{name} has {metric}" for name, metric in metrics.items())
        raise ReportError(f"studies side by side have the same score; {listed}: write a page for each")
    if twice := [name for name, times in Counter(study.name for study in studies).items() if times > 1]:
        raise ReportError(f"a study stands in a page once; received {twice[0]} more than once")
    return Document(format=FORMAT, written=round(time.time(), 3), studies=[_study(study) for study in studies])


def to_dict(report: Document) -> dict[str, Any]:
    """Return the document as JSON holds it: numbers that are none are null."""
    found: dict[str, Any] = finite(asdict(report))
    return found


def _study(study: Study) -> StudyData:
    info, front, own = study.summary.info, study.front(), list(dimensions(study.trials))
    eligible, names = {trial.number for trial in study.eligible()}, [dimension.name for dimension in own]
    attained, known = attainment(study), luck(study, front)
    return StudyData(
        study=study.name,
        status=study.summary.status.lower(),
        task=info.task.name,
        space=info.space.name,
        limits=dict(info.constraints),
        base_parameters=study.base_parameters,
        budget={name: limit for name, limit in asdict(info.budget).items() if limit is not None},
        objectives=[_measure(objective) for objective in study.objectives],
        costs=list(_costs(study)),
        spent=_spent(study),
        trials=[_trial(trial, trial.number in eligible, names) for trial in study.all_trials],
        states=_states(study),
        failures=failures(study),
        answers=answers(study, front),
        model=model_text(info.backbone.model),
        beaten=front.beaten,
        luck=known,
        steps=list(steps(study, front, known, late_gain(attained))),
        commands=commands(study),
        front=front.to_rows(),
        attainment=attained,
        matters=list(matters(study)),
        dimensions=own,
    )


def _measure(objective: Objective) -> Measure:
    return Measure(
        name=objective.name,
        title=objective.title or objective.name,
        higher_is_better=objective.higher_is_better,
        logarithmic=objective.logarithmic,
    )


def _costs(study: Study) -> Iterator[Measure]:
    """Yield the costs of the study, then others that a trial was measured by."""
    own = [objective.name for objective in study.objectives[1:]]
    measured = {name for trial in study.all_trials for name in trial.values}
    for name in dict.fromkeys((*own, *_COSTS)):
        if name in measured or name in own:
            yield _PERCENT if name == _PERCENT.name else _measure(COSTS[name])


def _trial(trial: Trial, eligible: bool, dimensions: Sequence[str]) -> TrialData:
    record, design = trial.record, trial.design_text
    costs = {*_COSTS, *(objective.name for objective in trial.objectives[1:])}
    return TrialData(
        number=trial.number,
        state=str(trial.state).lower(),
        name="" if trial.name == design else trial.name,
        design=design,
        reference=record.reference is not None,
        eligible=eligible,
        adapter=_has_adapter(trial),
        score=trial.score,
        test_score=trial.test_score,
        measured={name: value for name, value in trial.values.items() if name in costs and value is not None},
        curve=[(epochs, short(score)) for epochs, score in curve(trial)],
        point=[record.params.get(name) for name in dimensions] if record.params else [],
        failure=record.failure,
    )


def _has_adapter(trial: Trial) -> bool:
    """Return whether a trial can be exported: trained to its end and not withdrawn, or a probe whose head was kept."""
    if trial.state is not State.COMPLETE or trial.row.withdrawn:
        return False
    kept = bool(trial.measurements and trial.measurements.head_parameters)
    return trial.configuration is not None or (trial.name == PROBE and kept)


def _states(study: Study) -> dict[str, int]:
    counts = Counter(trial.state for trial in study.trials)
    return {state_text(state, study.summary.status): counts[state] for state in STATES if counts[state]}


def _spent(study: Study) -> dict[str, float]:
    """Return what was spent, in hours, device-hours, money where it has a price, and epochs."""
    spent = asdict(study.summary.spent) if study.summary.spent else {}
    if spent and (price := study.summary.info.budget.price_per_device_hour):
        spent["money"] = price * spent["device_hours"]
    return {**spent, "epochs": short(epochs_trained(trial.record for trial in study.trials))}
