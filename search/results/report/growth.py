"""How the front of a study grew with what was spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from search.results.query import ParetoFront
from search.results.report.numbers import short
from search.trials.front import non_dominated_of

if TYPE_CHECKING:
    from search.results.query import Study, Trial

_HOUR: Final = 3600
_LATE: Final = 0.75  # of the epochs: the last quarter says whether more would help


@dataclass(frozen=True, kw_only=True)
class Attained:
    """The hypervolume of the front once trials had trained so many `epochs`, and `hours` after the first began."""

    epochs: float
    hours: float
    hypervolume: float
    trial: int | None


def attainment(study: Study) -> list[Attained]:
    """Return how the hypervolume of the front grew: a point where it did, and one at the end.

    A trial's epochs are spent when it ends. Trials that have not ended are left out.
    """
    ended = sorted((t for t in study.trials if t.record.ended is not None), key=lambda trial: trial.record.ended or 0.0)
    eligible = {trial.number for trial in study.eligible()}
    begun = min((trial.record.started or trial.record.ended or 0.0 for trial in ended), default=0.0)
    members: dict[int, Trial] = {t.number: t for t in study.eligible() if t.record.reference}  # a probe, from the start
    points: list[Attained] = []
    epochs = volume = 0.0
    for trial in ended:
        epochs += trial.record.epochs
        changed = trial.number in eligible and _joins(trial, members, study)
        if changed:
            volume = ParetoFront(tuple(members.values()), study.objectives, study.base_parameters).hypervolume
        if changed or trial is ended[-1]:
            hours = ((trial.record.ended or begun) - begun) / _HOUR
            number = trial.number if changed else None
            points.append(Attained(epochs=short(epochs), hours=short(hours), hypervolume=short(volume), trial=number))
    return points


def late_gain(attained: Sequence[Attained]) -> float | None:
    """Return the share of the hypervolume that came with the last quarter of the epochs, None where there is none."""
    if not attained or not attained[-1].hypervolume:
        return None
    early = [point.hypervolume for point in attained if point.epochs <= _LATE * attained[-1].epochs]
    return 1 - (early[-1] if early else 0.0) / attained[-1].hypervolume


def _joins(trial: Trial, members: dict[int, Trial], study: Study) -> bool:
    """Put a trial among the members of a front, those that it beats out of it; return whether it became one."""
    among = {**members, trial.number: trial}
    left = {record.number for record in non_dominated_of([each.record for each in among.values()], study.objectives)}
    if trial.number in left:
        members.clear()
        members.update({number: each for number, each in among.items() if number in left})
    return trial.number in left
