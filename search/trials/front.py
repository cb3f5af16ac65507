"""Which trials are on the front."""

from __future__ import annotations

from collections.abc import Iterable

from search.trials.objectives import Objectives, values
from search.trials.pareto import non_dominated
from search.trials.record import State, TrialRecord


def front_of(records: Iterable[TrialRecord], objectives: Objectives) -> list[TrialRecord]:
    """Return the non-dominated complete trials, the cheapest first.

    References stand beside the front, and a trial of which an objective was not measured is never on it.
    """
    complete = [record for record in records if record.state is State.COMPLETE and not record.reference]
    points = [values(objectives, record.measurements) for record in complete]
    mask = non_dominated(points, [objective.direction for objective in objectives])
    members = [(record, point) for record, point, on_front in zip(complete, points, mask, strict=True) if on_front]
    return [record for record, _ in sorted(members, key=lambda member: member[1][1:])]
