"""A space as numbers: the coordinates of a trial as a point of the unit cube."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search.trials.pareto import Floats

_CATEGORIES: Final = 16  # of a dimension that are looked at in one go: each costs a call of the space

_Number: TypeAlias = IntDistribution | FloatDistribution


class Encoding:
    """Coordinates as rows of numbers: from 0 to 1 in each dimension, its index for a category.

    `absent` has the last coordinate that means 0 of dimensions in which several do: to a row they are one. `draw`
    alone knows that they are many.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution], absent: Mapping[str, int] | None = None) -> None:
        self.distributions: dict[str, CategoricalDistribution | _Number] = dict(sorted(distributions.items()))  # type: ignore[arg-type]
        self._many: dict[str, tuple[IntDistribution, IntDistribution]] = {}  # what is drawn from, and what rows hold
        for name, last in (absent or {}).items():
            if isinstance(whole := self.distributions.get(name), IntDistribution):
                self.distributions[name] = held = IntDistribution(last, whole.high)
                self._many[name] = (whole, held)

    def rows(self, points: Sequence[Mapping[str, Any]]) -> Floats:
        """Return n x dimensions; the middle of a dimension that a point does not have."""
        table = np.where(self._categorical, 0.0, np.full((len(points), len(self.distributions)), 0.5))
        for column, (name, distribution) in enumerate(self.distributions.items()):
            holding = [row for row, point in enumerate(points) if name in point]
            values = [points[row][name] for row in holding]
            if isinstance(distribution, CategoricalDistribution):
                table[holding, column] = [distribution.choices.index(value) for value in values]
            else:
                table[holding, column] = _positions(distribution, np.array(values, dtype=np.float64))
        return table

    def point(self, row: Floats) -> dict[str, Any]:
        """Return the coordinates of a row, each the nearest that its dimension has."""
        point: dict[str, Any] = {}
        for position, (name, distribution) in zip(row, self.distributions.items(), strict=True):
            if isinstance(distribution, CategoricalDistribution):
                point[name] = distribution.choices[int(position)]
            else:
                value = float(_values(distribution, position))
                point[name] = round(value) if isinstance(distribution, IntDistribution) else value
        return point

    def draw(self, random: np.random.Generator, count: int) -> Floats:
        """Return rows anywhere."""
        table = random.uniform(size=(count, len(self.distributions))) * self._ends
        columns = list(self.distributions)
        for name, (whole, held) in self._many.items():
            column = columns.index(name)
            table[:, column] = _positions(held, _values(whole, table[:, column]))
        return self._snapped(table)

    def near(self, random: np.random.Generator, rows: Floats, count: int) -> Floats:
        """Return rows beside these: about two dimensions move, by a fifth of their length on average."""
        table = rows[random.integers(len(rows), size=count)]
        moved = random.uniform(size=table.shape) < min(1.0, 2 / table.shape[1])
        moved[np.arange(count), random.integers(table.shape[1], size=count)] = True
        step = np.clip(table + random.normal(scale=0.2, size=table.shape), 0.0, 1.0)
        category = random.uniform(size=table.shape) * self._ends
        return self._snapped(np.where(moved, np.where(self._categorical, category, step), table))

    def along(self, row: Floats, column: int) -> Floats:
        """Return rows that differ from this one in one dimension: at its ends and its thirds, or at its categories.

        Of many categories those are taken that are spread evenly over the list.
        """
        distribution = list(self.distributions.values())[column]
        categories = isinstance(distribution, CategoricalDistribution)
        few = min(_CATEGORIES, int(self._ends[column]))
        places = np.linspace(0.0, self._ends[column] - 1, few).round() if categories else np.linspace(0.0, 1.0, 4)
        table = np.repeat(row[None], len(places), axis=0)
        table[:, column] = places
        return self._snapped(table)

    def features(self, rows: Floats) -> Floats:
        """Return what the model sees: a category as one of several columns, so that all differ alike."""
        columns = []
        for column, distribution in enumerate(self.distributions.values()):
            if isinstance(distribution, CategoricalDistribution):
                columns.append(np.eye(len(distribution.choices))[rows[:, column].astype(int)] / math.sqrt(2))
            else:
                columns.append(rows[:, [column]])
        return np.hstack(columns)

    @cached_property
    def _categorical(self) -> NDArray[np.bool_]:
        return np.array([isinstance(each, CategoricalDistribution) for each in self.distributions.values()])

    @cached_property
    def _ends(self) -> Floats:
        """The upper end of each dimension's numbers; that of a category is not reached."""
        return np.array(
            [
                len(each.choices) if isinstance(each, CategoricalDistribution) else 1.0
                for each in self.distributions.values()
            ]
        )

    def _snapped(self, table: Floats) -> Floats:
        for column, distribution in enumerate(self.distributions.values()):
            if isinstance(distribution, CategoricalDistribution):
                table[:, column] = np.minimum(np.floor(table[:, column]), len(distribution.choices) - 1)
            elif distribution.step:
                table[:, column] = _positions(distribution, _values(distribution, table[:, column]))
        return table


def _positions(distribution: _Number, values: Floats) -> Floats:
    low, high, values = (_scaled(distribution, each) for each in (distribution.low, distribution.high, values))
    # coordinates below the lowest are others that mean the same
    return np.maximum((values - low) / (high - low), 0.0) if high > low else np.full(values.shape, 0.5)


def _values(distribution: _Number, positions: Floats) -> Floats:
    low, high = (_scaled(distribution, each) for each in (distribution.low, distribution.high))
    values = low + positions * (high - low)
    values = np.exp(values) if distribution.log else values
    if distribution.step:
        values = distribution.low + np.round((values - distribution.low) / distribution.step) * distribution.step
    return np.clip(values, distribution.low, distribution.high)


def _scaled(distribution: _Number, values: Any) -> Floats:
    values = np.asarray(values, dtype=np.float64)
    return np.asarray(np.log(values)) if distribution.log else values
