"""A trial trained with several seeds: each such training, and what they say together.

What makes them is `search.race`; how it is found, `search.replicates`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petl.measurements import Measurements


@dataclass(frozen=True, kw_only=True)
class Replicate:
    """Trial `number` trained once more, with another `seed`: over once it has measurements, or a failure.

    `started` and `ended` are seconds since the epoch.
    """

    number: int
    seed: int
    measurements: Measurements | None = None
    failure: str | None = None
    started: float = field(default_factory=time.time)
    ended: float | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more is to come of it."""
        return self.ended is not None

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; `from_dict` reads it back."""
        return asdict(self) | {"measurements": self.measurements.to_dict() if self.measurements else None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Replicate:
        """The inverse of `to_dict`."""
        measured = data["measurements"]
        return cls(**{**data, "measurements": Measurements.from_dict(measured) if measured else None})


@dataclass(frozen=True, kw_only=True)
class Believed:
    """What is known of a trial's score over all its seeds, its own among them.

    `mean` and `spread`, the standard deviation (0 for one seed), are of the `seeds` that were trained to the end;
    `failed` ones were not. `probability` is that of being on the true front, which is the one of means over all seeds;
    `corrected` is the expected mean over all seeds, without the luck for which a trial was picked.
    """

    mean: float
    spread: float
    seeds: int
    failed: int
    probability: float
    corrected: float


def credible(probability: Sequence[float], most_false: float = 0.05) -> NDArray[np.bool_]:
    """As many as can be said to be on the true front with at most this expected share of false ones among them."""
    chances = np.asarray(probability, dtype=np.float64)
    order = np.argsort(-chances, kind="stable")
    shares = np.cumsum(1 - chances[order]) / np.arange(1, len(order) + 1)
    named = np.zeros(len(order), dtype=np.bool_)
    named[order[: int((shares <= most_false).sum())]] = True  # the shares ascend
    return named


def named(beliefs: Mapping[int, Believed], most_false: float = 0.05) -> set[int]:
    """As many as can be said to be on the true front with at most this expected share of false ones."""
    mask = credible([item.probability for item in beliefs.values()], most_false)
    return {number for number, is_named in zip(beliefs, mask, strict=True) if is_named}
