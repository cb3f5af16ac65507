"""What a search, or the replicates after it, says to whoever drives it, and is asked by it.

Ray drives both in production, `search.optimizer.simulation` and plain loops in tests; none of them knows which of the
two it drives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from petl.configuration import Configuration
from petl.measurements import Measurements
from search.trials.report import Run

R = TypeVar("R", bound=Run, covariant=True)


class Decision(StrEnum):
    """What a report means for its run."""

    CONTINUE = "continue"
    PAUSE = "pause"  # the run waits for its promotion, or for more budget, and its worker is free
    STOP = "stop"


class Idle(StrEnum):
    """What there is to do when there is no run to hand out."""

    WAIT = "wait"
    DONE = "done"


DIVERGED: Final = "diverged"  # the failure of a run with a score that is no number
WAIT: Final = Idle.WAIT
DONE: Final = Idle.DONE


@dataclass(frozen=True)
class Start(Generic[R]):
    """Train this run, or give it the result of trial `twin`, which was trained in full and is the same."""

    record: R
    twin: int | None = None


@dataclass(frozen=True)
class Resume(Generic[R]):
    """Resume this run: it was running when the last driver ended, or it waited and goes on now. `twin` as in Start."""

    record: R
    twin: int | None = None


Step: TypeAlias = Start[R] | Resume[R] | Idle


class Source(Protocol[R]):
    """Says what is trained. Its runs go by their `key`.

    `note` says why it ended early, if it did.
    """

    note: str

    @property
    def done(self) -> bool:
        """Whether nothing runs and nothing is left to hand out."""
        ...

    def next(self, free_workers: int = 1) -> Step[R]:
        """Return what to do with a free worker. Every answer of Start or Resume takes one."""
        ...

    def get(self, key: Any, /) -> R:
        """Return a run as it is on record now."""
        ...

    def configuration(self, key: Any, /) -> Configuration | None:
        """Return what the run trains; None for a baseline, which has none."""
        ...

    def rungs(self, key: Any, /) -> Sequence[float]:
        """Return the epochs at which the run must report before it is resumed."""
        ...

    def report(self, key: Any, /, epoch: float, score: float, *, over: bool = False) -> Decision:
        """Record a score after `epoch` epochs, and return what it means. `over`: the run's measurements are there."""
        ...

    def finish(
        self,
        key: Any,
        /,
        measurements: Measurements | None = None,
        failure: str | None = None,
        *,
        stopped: bool = False,
    ) -> R:
        """End a run, and return it; one that has ended stays as it is."""
        ...

    def take_closed(self) -> Sequence[R]:
        """Return the runs that ended without a worker since the last call."""
        ...
