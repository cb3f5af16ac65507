"""What a study may spend, and what it has spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from search.trials.formats import amount_text

if TYPE_CHECKING:
    from search.trials.records import Records


KEPT_EVERY: Final = 60.0  # seconds after which the time that a study has taken is on record again


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When to stop.

    `trials` counts what was sampled and enqueued, whatever became of it; references are free. After `hours` on the
    search's clock, or when trials have held `devices` each for `device_hours` together, or for what `money` buys at
    `price` an hour of one, nothing starts, and what runs is left at its next report, for a resume with more of
    it. At most `concurrent` trials run at once.
    Raises ValueError, naming the rule and the value.
    """

    trials: int
    hours: float = math.inf
    device_hours: float = math.inf
    money: float = math.inf
    price: float = 0.0
    devices: float = 1.0
    concurrent: int = 1

    def __post_init__(self) -> None:
        for name in ("trials", "hours", "device_hours", "money", "price", "devices", "concurrent"):
            least = 1 if name == "concurrent" else 0
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is at least {least}; received {getattr(self, name)}")


class Meter:
    """The time that a study has taken, over all drivers of its records. Reading it writes nothing and never raises.

    `clock` tells seconds, from whatever moment. What has passed since the time was last on record, a minute at most,
    is lost with a driver that is killed.
    """

    def __init__(self, budget: Budget, records: Records, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget, self._records, self._clock = budget, records, clock
        self._running = 0  # trials that hold devices
        self._seconds = records.seconds
        self._device_seconds = records.device_seconds
        self._ticked = self._kept = clock()

    @property
    def hours(self) -> float:
        """What the search has taken."""
        return (self._seconds + self._clock() - self._ticked) / 3600

    @property
    def device_hours(self) -> float:
        """What the trials have held devices for."""
        since = self._clock() - self._ticked
        return (self._device_seconds + self._running * self._budget.devices * since) / 3600

    def spent(self) -> str:
        """Return which hard limit is reached, in words; "" for none."""
        if self.hours >= self._budget.hours:
            return f"{amount_text(self._budget.hours)} hours"
        device_hours = self.device_hours
        if device_hours >= self._budget.device_hours:
            return f"{amount_text(self._budget.device_hours)} device-hours"
        if self._budget.price * device_hours >= self._budget.money:
            return f"{amount_text(self._budget.money)} of money"
        return ""

    def runs(self, trials: int) -> None:
        """Count so many trials as holding devices from now on."""
        self._advance()
        self._running = trials

    def tick(self) -> None:
        """Put the time on record if a minute has passed. To be called whenever something happens."""
        if self._advance() - self._kept >= KEPT_EVERY:
            self.keep()

    def keep(self) -> None:
        """Put the time on record."""
        self._kept = self._advance()
        self._records.seconds, self._records.device_seconds = self._seconds, self._device_seconds

    def _advance(self) -> float:
        """Count the time until now, and return the clock's."""
        now = self._clock()
        self._seconds += now - self._ticked
        self._device_seconds += self._running * self._budget.devices * (now - self._ticked)
        self._ticked = now
        return now
