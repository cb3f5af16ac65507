"""Which trials are on the front."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from petl.head import PROBE
from search.trials.objectives import Objectives, values
from search.trials.pareto import non_dominated
from search.trials.record import State, TrialRecord

_FOLLOWS: Final[Mapping[str, str]] = {  # what to make of it, by the reference
    "majority": "these have learned next to nothing: train longer, on more rows, or at another learning rate",
    "probe": "a linear classifier on the frozen model is the better choice as it is",
    "untuned": "training has harmed the model: take a smaller learning rate, or more rows",
}
_OTHERWISE: Final = "train that design in their place"
_NAMED: Final = 8


def candidates(records: Collection[TrialRecord]) -> list[TrialRecord]:
    """Return the complete trials. References stand beside the front.

    Only the linear probe is one of them in a study whose heads start from it: it is the design that changes nothing but
    the head, before the first step.
    """
    heads = {record.configuration.head.start for record in records if record.configuration and not record.reference}
    own = (None, PROBE) if PROBE in heads else (None,)
    return [record for record in records if record.state is State.COMPLETE and record.reference in own]


def front_of(records: Collection[TrialRecord], objectives: Objectives) -> list[TrialRecord]:
    """Return the non-dominated ones of a study's `candidates`, the cheapest first."""
    return non_dominated_of(candidates(records), objectives)


def non_dominated_of(complete: Sequence[TrialRecord], objectives: Objectives) -> list[TrialRecord]:
    """Return the records that no other dominates, the cheapest first; one with an objective not measured is none."""
    points = [values(objectives, record.measurements) for record in complete]
    mask = non_dominated(points, [objective.direction for objective in objectives])
    members = [(record, point) for record, point, on_front in zip(complete, points, mask, strict=True) if on_front]
    return [record for record, _ in sorted(members, key=lambda member: member[1][1:])]


def dominating(member: TrialRecord, references: Iterable[TrialRecord], objectives: Objectives) -> list[TrialRecord]:
    """Return the references that are at least as good as a member in every objective, and better in one.

    What was not measured of a baseline is no greater than of a design: it trains nothing that could cost.
    """
    own = _losses(member, objectives)
    compared = [(reference, _losses(reference, objectives)) for reference in references]
    return [
        reference
        for reference, losses in compared
        if all(a <= b for a, b in zip(losses, own, strict=True)) and losses != own
    ]


def beaten_lines(front: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each reference that dominates members of a front: which, and what follows.

    Both are rows as `search.results.query` has them, members with the names of references in `dominated_by`.
    """
    lines = []
    for reference in references:
        name = reference["name"]
        beaten = [str(row["trial"]) for row in front if name in row.get("dominated_by", ())]
        if beaten:
            which = ", ".join(beaten[:_NAMED]) + (" ..." if len(beaten) > _NAMED else "")
            lines.append(
                f"{name} ({reference['metric']} {reference['score']:.4f}) is at least as good as {len(beaten)} of "
                f"{len(front)} members, at no greater cost (trial {which}): {_FOLLOWS.get(name, _OTHERWISE)}"
            )
    return lines


def _losses(record: TrialRecord, objectives: Objectives) -> list[float]:
    baseline = record.configuration is None
    found = [objective.value(record.measurements) if record.measurements else None for objective in objectives]
    return [
        (-math.inf if baseline else math.nan) if value is None else objective.loss(value)
        for objective, value in zip(objectives, found, strict=True)
    ]
