"""The measurements that a study can search for: the tables of scores, costs, and counts known before training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from petl.measurements import MAXIMIZE, QUANTITIES, Measurements, Quantity
from search.trials.pareto import SIGNS


@dataclass(frozen=True, kw_only=True)
class Objective(Quantity):
    """A quantity by its `name`, which is a field of Measurements."""

    name: str

    @property
    def logarithmic(self) -> bool:
        """Whether values are spread over orders of magnitude."""
        return self.knee is not None

    def value(self, measurements: Measurements) -> float | None:
        """Return what was measured, or None."""
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
        """Return the value as a sampler sees it."""
        return value if self.knee is None else math.log1p(value / self.knee)

    def worst(self, values: list[float]) -> float:
        """Return the worst of the values, or the reference where there are none."""
        if values:
            return max(values, key=self.loss)
        return 0.0 if self.reference is None else self.reference


Objectives: TypeAlias = tuple[Objective, ...]  # the score, the cost, and a second cost where a study has one

_ROWS: Final = {name: Objective(name=name, **vars(quantity)) for name, quantity in QUANTITIES.items()}
SCORES: Final[Mapping[str, Objective]] = {name: row for name, row in _ROWS.items() if row.role == "score"}
COSTS: Final[Mapping[str, Objective]] = {name: row for name, row in _ROWS.items() if row.role == "cost"}
COUNTS: Final[Mapping[str, Objective]] = {name: row for name, row in _ROWS.items() if row.counted}  # may have limits


def objectives(score: str, cost: str, second_cost: str | None = None) -> Objectives:
    """Return the objectives of a study. Raises ValueError for an unknown name, listing the known, or one cost twice."""
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
    """Return the cost that rung rules go by: the first that is known before training, else the study's first."""
    return next((cost for cost in objectives[1:] if cost.counted), objectives[1])


def reference_point(objectives: Objectives, base_parameters: int) -> tuple[float, ...]:
    """Return the hypervolume's reference point: the worst score and costs that are still of interest."""
    return tuple(float(base_parameters) if row.reference is None else row.reference for row in objectives)
