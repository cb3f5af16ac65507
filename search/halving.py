"""Rung rules: which trials are worth their full budget. Pure decisions on recorded scores.

A rung is a number of epochs, fractions allowed. At each one below the full budget a trial reports
its score, and the rule says whether it goes on. Nothing is kept here: a decision depends on the
scores at that rung alone, so a search that is restarted decides as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from search.pareto import MAXIMIZE


class Rule(Protocol):
    """A rung rule."""

    @property
    def rungs(self) -> tuple[float, ...]:
        """The epochs at which it decides, ascending, all below the full budget."""
        ...

    def goes_on(self, score: float, others: Sequence[float], direction: str) -> bool:
        """Whether a trial with this score goes on, beside the `others` recorded at the same rung so far."""
        ...


@dataclass(frozen=True)
class Never:
    """Every trial gets its full budget."""

    @property
    def rungs(self) -> tuple[float, ...]:
        """None."""
        return ()

    def goes_on(self, score: float, others: Sequence[float], direction: str) -> bool:
        """Always, unless it has diverged."""
        return math.isfinite(score)


@dataclass(frozen=True)
class Asha:
    """Asynchronous successive halving, stopping type (Li et al., MLSys 2020), on the score alone.

    At the rungs first, first x eta, first x eta² ... a trial goes on if it is among the best 1/eta of
    all scores recorded there so far, itself included and at least one. Equal scores are equally good.

    Raises ValueError, naming the rule and the value.
    """

    epochs: float
    eta: float = 3.0
    first: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epochs) and self.epochs > 0):
            raise ValueError(f"epochs is positive; received {self.epochs}")
        if not (math.isfinite(self.eta) and self.eta > 1):
            raise ValueError(f"eta is greater than 1; received {self.eta}")
        if not 0 < self.first < math.inf:
            raise ValueError(f"first, the first rung in epochs, is positive; received {self.first}")

    @property
    def rungs(self) -> tuple[float, ...]:
        """The first rung and its multiples by eta."""
        levels: list[float] = []
        level = float(self.first)
        while level < self.epochs * (1 - 1e-9):  # 0.1 x 3 x 10 must not become a rung below 3
            levels.append(level)
            level *= self.eta
        return tuple(levels)

    def goes_on(self, score: float, others: Sequence[float], direction: str) -> bool:
        """Whether the score is among the best 1/eta. One that is not finite never is."""
        if not math.isfinite(score):
            return False
        peers = [other for other in others if math.isfinite(other)]
        better = sum(other > score if direction == MAXIMIZE else other < score for other in peers)
        return better < max(1, int((len(peers) + 1) / self.eta))


def _none(epochs: float, **options: Any) -> Rule:
    if options:
        raise ValueError(f"scheduler none takes no options; received {', '.join(options)}")
    return Never()


RULES: Final[Mapping[str, Callable[..., Rule]]] = {"none": _none, "asha": Asha}


def rule(name: str, epochs: float, **options: Any) -> Rule:
    """The rule of this name for trials of `epochs` epochs. Raises ValueError for what it does not take."""
    if name not in RULES:
        raise ValueError(f"a scheduler is one of {', '.join(RULES)}; received {name!r}")
    try:
        return RULES[name](epochs, **options)
    except TypeError as error:
        raise ValueError(f"scheduler {name}: {error}") from error
