"""The journal and its delivery: times, refusals and patience, without a store and without waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from search.tracking import outbox
from search.tracking.entries import Begin, Close
from search.tracking.outbox import Delivery, Journal


class Clock:
    """Time that passes only where somebody sleeps; `at` calls what happens at a moment."""

    def __init__(self) -> None:
        self.now = 0.0
        self.wall: Iterator[float] = iter(())
        self.events: dict[float, Callable[[], None]] = {}

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return next(self.wall)

    def sleep(self, seconds: float) -> None:
        self.now += 1.0
        self.events.pop(self.now, lambda: None)()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(outbox, "time", clock)
    return clock


def test_lines_are_in_the_order_of_their_times_whatever_the_clock_says(tmp_path: Path, clock: Clock) -> None:
    """MLflow takes the value with the latest time for the last one."""
    clock.wall = iter([100.0, 100.0, 40.0, 200.0, 10.0])
    journal, lines = Journal(tmp_path, print), []
    for _ in range(4):
        journal.append(Begin(), Close("FINISHED"))
    journal.close()
    reopened = Journal(tmp_path, print)
    reopened.append(Begin())
    while line := reopened.first():
        lines.append(line.at)
        reopened.delivered()
    assert len(lines) == 9
    assert all(later - earlier >= 0.0009 for earlier, later in pairwise(lines))
    assert lines[6] == 200.0  # a clock that has gone on is believed


class Refusing:
    """A tracker that has no such run, once."""

    def __init__(self, times: int) -> None:
        self.times, self.calls = times, 0

    def begin(self) -> None:
        self.calls += 1
        if self.calls <= self.times:
            raise LookupError("no such run")


def deliver(tmp_path: Path, first: Refusing, later: Refusing) -> tuple[Delivery, list[bool]]:
    journal = Journal(tmp_path, print)
    delivery = Delivery(journal, lambda: [later], tmp_path, lambda text: None, [first])  # type: ignore[list-item]
    journal.append(Begin())
    line = journal.first()
    assert line is not None
    return delivery, [delivery._arrived(line) for _ in range(2)]


def test_a_refusal_by_an_older_tracker_is_asked_of_a_fresh_one(tmp_path: Path) -> None:
    old, fresh = Refusing(9), Refusing(0)
    delivery, arrived = deliver(tmp_path, old, fresh)
    assert (arrived, old.calls, fresh.calls, delivery.left_out) == ([False, True], 1, 1, 0)


def test_what_a_fresh_tracker_refuses_is_left_out(tmp_path: Path) -> None:
    old, fresh = Refusing(9), Refusing(9)
    delivery, arrived = deliver(tmp_path, old, fresh)
    assert (arrived, fresh.calls, delivery.left_out) == ([False, True], 1, 1)


def drained(tmp_path: Path, clock: Clock, events: dict[float, Callable[[Delivery], None]]) -> float:
    """When `drain` gives up, of a patience of 10 seconds."""
    clock.wall = iter([0.0])
    delivery = Delivery(Journal(tmp_path, print), list, tmp_path, lambda text: None)
    delivery.send(Begin())
    delivery._thread = type("Alive", (), {"is_alive": lambda self: True})()  # type: ignore[assignment]
    clock.events = {at: lambda happens=happens: happens(delivery) for at, happens in events.items()}  # type: ignore[misc]
    clock.events[100.0] = lambda: pytest.fail("it waits for ever")
    assert not delivery.drain(patience=10.0)
    return clock.now


def failing(delivery: Delivery) -> None:
    delivery._failed(OSError("away"))


def back(delivery: Delivery) -> None:
    delivery._failures = 0


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ({1.0: failing}, 11.0),
        ({50.0: failing}, 60.0),  # patience begins where MLflow went away
        ({5.0: failing, 12.0: back, 30.0: failing}, 40.0),
    ],
)
def test_patience_is_counted_from_where_mlflow_went_away(
    tmp_path: Path, clock: Clock, events: dict[float, Any], end: float
) -> None:
    assert drained(tmp_path, clock, events) == end


def test_patience_is_no_longer_ago_than_the_question(tmp_path: Path, clock: Clock) -> None:
    clock.now = 70.0
    assert drained(tmp_path, clock, {71.0: lambda delivery: setattr(delivery, "_failures", 1)}) == 80.0
