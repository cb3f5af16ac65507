"""The dimensions of a space as data: what may be suggested, by name.

A space has the same dimensions at every point, so that every sampler can model it. Sizes are
ordinal: an index into an ascending list that begins with 0, where 0 means that the part is absent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from petl.design import Insertion
from petl.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

    from petl.backbones.model import Backbone

SIZES: Final = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
LENGTHS: Final = (0, 1, 2, 4, 8, 16, 32, 64)
SCALES: Final = (1.0, 2.0, 4.0)
LEARNING_RATE: Final = (1e-4, 1e-2)
INSERTIONS: Final = (str(Insertion.SEQUENTIAL), str(Insertion.PARALLEL))
FFN_INSERTIONS: Final = (*INSERTIONS, str(Insertion.AFTER_RESIDUAL))

_Name = TypeVar("_Name", bound=str)


class SpaceError(UserError, ValueError):
    """A space that does not exist, or limits that leave nothing of it."""


class PointError(SpaceError):
    """A point that a space does not have: the space, the design or the model refuses it. Another one may be there."""

    def __init__(self, why: str, coordinates: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> None:
        super().__init__(f"the space does not have {dict(coordinates)}: {why}")
        self.coordinates, self.distributions = coordinates, distributions


class BrokenSpaceError(UserError, RuntimeError):
    """A space that fails at a point, which is another thing than not having it."""


@dataclass(frozen=True)
class Ordinal:
    """One of `values`, which have an order. The coordinate is the index; a repeated value is so much the likelier."""

    values: tuple[Any, ...]

    @property
    def first(self) -> Any:
        """Return the lowest value: 0 for a size."""
        return self.values[0]

    def suggest(self, trial: BaseTrial, name: str) -> Any:
        """Return the value at the index that the trial suggests; the value is kept as a user attribute of that name."""
        value = self.values[trial.suggest_int(name, 0, len(self.values) - 1)]
        trial.set_user_attr(name, value)  # records show the size itself, not its index
        return value

    def coordinate(self, value: Any) -> int:
        """Return the index of a value, of several the last. Raises ValueError where the dimension does not have it."""
        return len(self.values) - 1 - self.values[::-1].index(value)


@dataclass(frozen=True)
class Choice:
    """One of `values`, which have no order. The coordinate is the value as a string."""

    values: tuple[str, ...]

    @property
    def first(self) -> str:
        return self.values[0]

    def suggest(self, trial: BaseTrial, name: str) -> str:
        return str(trial.suggest_categorical(name, self.values))

    def coordinate(self, value: Any) -> str:
        """Return the value itself. Raises ValueError where the dimension does not have it."""
        return self.values[self.values.index(str(value))]


@dataclass(frozen=True)
class LogUniform:
    """A positive number between two bounds, uniform in its logarithm."""

    low: float
    high: float

    @property
    def first(self) -> float:
        return self.low

    def suggest(self, trial: BaseTrial, name: str) -> float:
        return float(trial.suggest_float(name, self.low, self.high, log=True))

    def coordinate(self, value: Any) -> float:
        """Return the number itself. Raises ValueError outside the bounds."""
        if not self.low <= value <= self.high:
            raise ValueError(f"{value} lies outside [{self.low}, {self.high}]")
        return float(value)


Dimension: TypeAlias = Ordinal | Choice | LogUniform
Dimensions: TypeAlias = Mapping[str, Dimension]

SWITCH: Final = Ordinal((0, 1))  # absent, present


def suggest(trial: BaseTrial, dimensions: Dimensions) -> dict[str, Any]:
    """Return the value of every dimension at the trial's point."""
    return {name: dimension.suggest(trial, name) for name, dimension in dimensions.items()}


def locate(dimensions: Dimensions, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the coordinates of these values, or None where the dimensions do not hold them.

    A dimension without a value gets its `first`: 0 for a size.
    """
    if not set(values) <= set(dimensions):
        return None
    try:
        return {name: dimension.coordinate(values.get(name, dimension.first)) for name, dimension in dimensions.items()}
    except ValueError:
        return None


def of_sizes(name: str, values: Sequence[int], max_size: int | None = None) -> Ordinal:
    """Return the sizes that a part may have, 0 always among them; those above `max_size` are dropped.

    Raises SpaceError where a size is no integer of at least 0, or where only 0 is left.
    """
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise SpaceError(f"{name} lists integers of at least 0; received {value!r}")
    if max_size is not None and max_size < 1:
        raise SpaceError(f"max_size is at least 1; received {max_size}")
    kept = sorted({0, *(value for value in values if max_size is None or value <= max_size)})
    if len(kept) < 2:
        limit = "" if max_size is None else f" up to max_size {max_size}"
        raise SpaceError(f"{name} lists at least one size above 0{limit}; received {list(values)}")
    return Ordinal(tuple(kept))


def sparse(sizes: Ordinal, parts: float | None, of: int) -> Ordinal:
    """Return the sizes with so many coordinates for 0 that of `of` parts a random point has `parts` on average.

    0 keeps the one coordinate that it has where `parts` is None, or more than sizes without a preference give. Raises
    SpaceError unless `parts` is positive.
    """
    if parts is None:
        return sizes
    if isinstance(parts, bool) or not isinstance(parts, int | float) or not 0 < parts < math.inf:
        raise SpaceError(f"parts is a positive number, or null for sizes without a preference; received {parts!r}")
    present = sizes.values[1:]
    absent = max(1, round(len(present) * (of / parts - 1)))
    return Ordinal((0,) * absent + present)


def of_scales(values: Sequence[float]) -> Ordinal:
    """Return the scales s that a part may have, ascending. Raises SpaceError unless all are positive."""
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        raise SpaceError(f"scales lists positive numbers; received {list(values)}")
    return Ordinal(tuple(sorted({float(value) for value in values})))


def of_first_layers(backbone: Backbone, values: Sequence[int] | None) -> Ordinal:
    """Return the first adapted layer: any layer of the stack, or one of `values`.

    Raises SpaceError where the stack does not have the layer.
    """
    layers = range(backbone.depth)
    chosen = layers if values is None else values
    if not chosen or not all(value in layers for value in chosen):
        raise SpaceError(f"first_layers lists layers from 0 to {backbone.depth - 1}; received {list(chosen)}")
    return Ordinal(tuple(sorted(set(chosen))))


def of_bounds(name: str, bounds: Sequence[float]) -> LogUniform:
    """Return the numbers between two bounds. Raises SpaceError unless they are two ascending positive numbers."""
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] < math.inf:
        raise SpaceError(f"{name} is [low, high] with 0 < low <= high; received {list(bounds)}")
    return LogUniform(float(bounds[0]), float(bounds[1]))


def chosen(name: str, values: Iterable[_Name], allowed: Sequence[_Name]) -> tuple[_Name, ...]:
    """Return `values` in the order of `allowed`. Raises SpaceError where one is unknown, or none is given."""
    if isinstance(values, str):
        raise SpaceError(f"{name} is a list; received {values!r}")
    given = list(values)
    unknown = [value for value in given if value not in allowed]
    if unknown or not given:
        received = ", ".join(map(repr, unknown)) or "none"
        raise SpaceError(f"{name} lists some of {', '.join(allowed)}; received {received}")
    return tuple(value for value in allowed if value in given)
