"""Numbers of a trial as a page has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from search.results.query import Trial

_DIGITS: Final = 6  # of a measurement, which has less that is real


def curve(trial: Trial) -> list[tuple[float, float]]:
    """Return the score after so many epochs: at each rung, and at the end of training."""
    reached = dict(trial.record.rungs)
    if trial.score is not None and trial.measurements:
        reached[trial.measurements.epochs] = trial.score
    return sorted(reached.items())


def short(value: float) -> float:
    """Return a number without the digits that mean nothing; a count stays as it is."""
    return value if isinstance(value, int) else float(f"{value:.{_DIGITS}g}")
