"""The measurements that a study can search for: their direction, and what counts as bad."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from petl import measurements
from petl.measurements import Measurements
from search.trials.pareto import MAXIMIZE, MINIMIZE, SIGNS


@dataclass(frozen=True)
class Objective:
    """One row. `name` is a field of Measurements.

    `reference` is its side of the hypervolume's reference point, and what a trial that failed is
    given while nothing better is known; None stands for the size of the pretrained model. `known`:
    exact before training. `knee`: where it is spread over orders of magnitude, and differences below
    the knee hardly matter, a sampler is shown log(1 + value / knee): linear below, logarithmic above.
    """

    name: str
    direction: Literal["minimize", "maximize"]
    reference: float | None
    known: bool = False
    knee: float | None = None

    @property
    def logarithmic(self) -> bool:
        """Whether it is spread over orders of magnitude."""
        return self.knee is not None

    def value(self, measurements: Measurements) -> float | None:
        """What was measured, or None."""
        value = getattr(measurements, self.name)
        return None if value is None else float(value)

    @property
    def higher_is_better(self) -> bool:
        return self.direction == MAXIMIZE

    def loss(self, value: float) -> float:
        """Return the value as a loss, of which less is better: a score of which more is better changes its sign."""
        return SIGNS[self.direction] * value

    def of_loss(self, loss: float) -> float:
        """Return the value that has this loss."""
        return SIGNS[self.direction] * loss

    def seen(self, value: float) -> float:
        """The value as a sampler sees it."""
        return value if self.knee is None else math.log1p(value / self.knee)

    def worst(self, values: list[float]) -> float:
        """The worst of these, or the reference where there is none."""
        if values:
            return max(values, key=self.loss)
        return 0.0 if self.reference is None else self.reference


Objectives: TypeAlias = tuple[Objective, ...]  # the score, the cost, and a second cost where a study has one

_WORST: Final = {"loss": 10.0, "perplexity": math.exp(10.0)}  # a uniform guess among 22,026 labels or tokens
SCORES: Final[Mapping[str, Objective]] = {
    name: Objective(name, MAXIMIZE if higher else MINIMIZE, _WORST.get(name, 0.0))
    for name, higher in measurements.SCORES.items()
}

# Without a knee the step from none to the smallest design would weigh as much as from there to the largest,
# and a search by hypervolume would spend its trials on the learning rate of the bare head.
_PARAMETERS: Final = 1_000.0

COSTS: Final[Mapping[str, Objective]] = {
    objective.name: objective
    for objective in (
        Objective("stored_parameters", MINIMIZE, None, known=True, knee=_PARAMETERS),
        Objective("trained_parameters", MINIMIZE, None, known=True, knee=_PARAMETERS),
        Objective("paper_parameters", MINIMIZE, None, known=True, knee=_PARAMETERS),
        Objective("seconds", MINIMIZE, 86_400.0, knee=1.0),
        Objective("latency_ms", MINIMIZE, 1_000.0),
        Objective("peak_memory_mb", MINIMIZE, 81_920.0),
    )
}


def objectives(score: str, cost: str, second_cost: str | None = None) -> Objectives:
    """The objectives of a study. Raises ValueError, listing the names there are, or where both costs are one."""
    given = [("score", score, SCORES), ("cost", cost, COSTS)]
    if second_cost is not None:
        given.append(("second_cost", second_cost, COSTS))
    for role, name, table in given:
        if name not in table:
            raise ValueError(f"{role} is one of {', '.join(table)}; received {name!r}")
    if second_cost == cost:
        raise ValueError(f"second_cost is another one than cost; received {cost!r} for both")
    return tuple(table[name] for _, name, table in given)


def values(objectives: Objectives, measurements: Measurements | None) -> tuple[float, ...]:
    """Return what was measured of each objective; NaN for what was not."""
    measured = [row.value(measurements) if measurements else None for row in objectives]
    return tuple(math.nan if value is None else value for value in measured)


def ruling(objectives: Objectives) -> Objective:
    """The one cost that rung rules go by: the first that is known before training, else the study's first."""
    return next((cost for cost in objectives[1:] if cost.known), objectives[1])


def reference_point(objectives: Objectives, base_parameters: int) -> tuple[float, ...]:
    """The hypervolume's reference point: the worst score and costs that are still of interest."""
    return tuple(float(base_parameters) if row.reference is None else row.reference for row in objectives)
