"""What a study may spend, and what it has spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from search.trials.naming import cost_text

if TYPE_CHECKING:
    from search.trials.records import Records


KEPT_EVERY: Final = 60.0  # seconds after which the time that a study has taken is on record again


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When to stop.

    `trials` counts what was sampled and enqueued, whatever became of it; references are free. After `hours` on the
    search's clock, or when trials have held `devices` each for `device_hours` together, or for what `money` buys at
    `price` an hour of one, nothing starts, and what runs is left at its next report, for a search with more to go on
    with. At most `concurrent` trials run at once.
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
    """The time that a study has taken, over all searches of its records.

    `clock` tells the seconds that the study has run. What trials held since it was last on record, a minute at most,
    is lost with a driver that is killed.
    """

    def __init__(self, budget: Budget, records: Records, clock: Callable[[], float] | None = None) -> None:
        began = time.monotonic()
        self._budget, self._records = budget, records
        self._clock = clock or (lambda: time.monotonic() - began)
        self._running = 0
        self._device_seconds = records.device_seconds
        self._ticked = self._kept = self._clock()

    def runs(self, trials: int) -> None:
        """So many trials hold devices from now on."""
        self.tick()
        self._running = trials

    def keep(self) -> None:
        """Puts it on record."""
        self._kept = self._clock()
        self._records.device_seconds = self.device_hours * 3600

    @property
    def device_hours(self) -> float:
        """What the trials have held devices for."""
        self.tick()
        return self._device_seconds / 3600

    @property
    def spent(self) -> str:
        """Which hard limit is reached, in words; "" for none."""
        if self._clock() >= self._budget.hours * 3600:
            return f"{cost_text(self._budget.hours)} hours"
        if self.device_hours >= self._budget.device_hours:
            return f"{cost_text(self._budget.device_hours)} device-hours"
        if self._budget.price * self.device_hours >= self._budget.money:
            return f"{cost_text(self._budget.money)} of money"
        return ""

    def tick(self) -> None:
        """To be called whenever something happens, so that time is on record even where nothing ends."""
        now = self._clock()
        self._device_seconds += self._running * self._budget.devices * (now - self._ticked)
        self._ticked = now
        if now - self._kept >= KEPT_EVERY:
            self.keep()
