"""The time that a study has taken: what is read of it is not written, and what is on record survives a driver."""

from __future__ import annotations

import pytest

from search.optimizer.budget import KEPT_EVERY, Budget, Meter
from search.trials.records import Records


class AwayError(Exception):
    pass


def away(*_: object) -> None:
    raise AwayError


def test_reading_it_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database may be away: a sentence on what was spent is no place to learn it."""
    records, now = Records.in_memory(), [0.0]
    meter = Meter(Budget(trials=1, hours=1.0, devices=2.0), records, lambda: now[0])
    meter.runs(3)
    monkeypatch.setattr(records, "persist", away)
    now[0] = 10 * KEPT_EVERY
    assert meter.hours == pytest.approx(1 / 6)
    assert meter.device_hours == pytest.approx(2.0 * 3 / 6)
    assert meter.spent() == ""
    now[0] = 3_601.0
    assert meter.spent() == "1 hours"
    with pytest.raises(AwayError):
        meter.tick()


def test_a_tick_puts_it_on_record_once_a_minute() -> None:
    records, now = Records.in_memory(), [100.0]
    meter = Meter(Budget(trials=1), records, lambda: now[0])
    now[0] += KEPT_EVERY - 1
    meter.tick()
    assert records.seconds == 0.0
    now[0] += 1
    meter.tick()
    assert records.seconds == pytest.approx(KEPT_EVERY)


def test_another_driver_counts_from_what_is_on_record() -> None:
    records, now = Records.in_memory(), [0.0]
    meter = Meter(Budget(trials=1), records, lambda: now[0])
    meter.runs(1)
    now[0] = 1_800.0
    meter.keep()
    later = Meter(Budget(trials=1), records, lambda: now[0])
    now[0] = 3_600.0
    assert later.hours == pytest.approx(1.0)
    assert later.device_hours == pytest.approx(0.5)  # nothing runs yet
