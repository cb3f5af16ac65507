"""The space of a study as its trials have it: the dimensions, and which of them matter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from search.optimizer.importance import FEWEST, importance
from search.results.report.numbers import curve, short

if TYPE_CHECKING:
    from search.results.query import Study, Trial
    from search.trials.objectives import Objective
    from search.trials.record import TrialRecord

_BANDS: Final[Mapping[str, tuple[float, float]]] = {  # of stored parameters, in percent of the model
    "under 0.1 %": (0.0, 0.1),
    "0.1 to 1 %": (0.1, 1.0),
    "1 % and more": (1.0, math.inf),
}
_VALUES: Final = 20  # of a dimension, up to which they are listed
_ORDERS: Final = 10.0  # of the largest to the smallest number from which a range is drawn in its logarithm


@dataclass(frozen=True, kw_only=True)
class Matter:
    """The importance of dimensions among the trials of a budget `band`, by their scores after `epochs` epochs.

    `shares` are by dimension; empty, with `why`, where too few trials say anything.
    """

    band: str
    trials: int
    epochs: float | None
    shares: Mapping[str, float]
    why: str


@dataclass(frozen=True, kw_only=True)
class DimensionData:
    """A dimension of the space, as the trials have it: its `values` in order, None where they are a range."""

    name: str
    values: Sequence[float | str] | None
    low: float | None
    high: float | None
    logarithmic: bool


def dimensions(trials: Iterable[Trial]) -> Iterator[DimensionData]:
    """Yield the dimensions of the space, as far as trials have shown them."""
    found: dict[str, set[Any]] = {}
    for trial in trials:
        for name, value in trial.record.params.items():
            found.setdefault(name, set()).add(value)
    for name, values in found.items():
        numbers = sorted(value for value in values if not isinstance(value, str))
        words = sorted(value for value in values if isinstance(value, str))
        if words or len(numbers) <= _VALUES:
            yield DimensionData(name=name, values=[*numbers, *words], low=None, high=None, logarithmic=False)
        else:
            low, high = numbers[0], numbers[-1]
            logarithmic = low > 0 and high / low >= _ORDERS
            yield DimensionData(name=name, values=None, low=low, high=high, logarithmic=logarithmic)


def matters(study: Study) -> Iterator[Matter]:
    """Yield the importance of the dimensions, among all trials and within bands of stored parameters.

    A band that has all trials or none is left out, and so are all where all trials together are too few.
    """
    score, sampled = study.objectives[0], [trial for trial in study.trials if trial.record.params]
    if not sampled:
        return
    yield (everything := _matter("all trials", sampled, score))
    if everything.shares:
        for band, (low, high) in _BANDS.items():
            inside = [trial for trial in sampled if low <= trial.values.get("stored_percent", 0.0) < high]
            if 0 < len(inside) < len(sampled):
                yield _matter(band, inside, score)


def _matter(band: str, trials: Sequence[Trial], score: Objective) -> Matter:
    """Return the importance among trials, by their scores after the longest training that enough of them reached."""
    reached: dict[float, list[tuple[TrialRecord, float]]] = {}
    for trial in trials:
        for epochs, value in curve(trial):
            if math.isfinite(value):
                reached.setdefault(epochs, []).append((trial.record, score.loss(value)))
    enough = [epochs for epochs, own in reached.items() if len(own) >= FEWEST]
    if not enough:
        most = max(map(len, reached.values()), default=0)
        why = f"{most} trials have a score after the same number of epochs; {FEWEST} say something"
        return Matter(band=band, trials=most, epochs=None, shares={}, why=why)
    longest = max(enough)
    shares = importance([record.params for record, _ in reached[longest]], [loss for _, loss in reached[longest]])
    known = {name: short(share) for name, share in shares.items()}
    return Matter(band=band, trials=len(reached[longest]), epochs=longest, shares=known, why="")
