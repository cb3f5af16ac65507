"""What a person sees during a run: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import time
from dataclasses import replace

import pytest
from rich.console import Console

from petl.configuration import Configuration
from petl.measurements import Measurements
from petl.presets import parse
from search.results.live import Display, _left
from search.trials.record import Replicate, State, TrialRecord
from search.trials.report import Report

LORA = TrialRecord(number=1, state=State.RUNNING, configuration=Configuration(parse("lora:rank=8")), started=0.0)
DONE = replace(
    LORA,
    number=2,
    state=State.COMPLETE,
    ended=60.0,
    measurements=Measurements(accuracy=0.8125, stored_parameters=73728, stored_percent=0.325),
)
FAILED = replace(LORA, number=3, state=State.FAIL, failure="out of memory: 9 GB", ended=60.0)
STOPPED = replace(LORA, number=4, state=State.PRUNED, ended=60.0)
MAJORITY = TrialRecord(number=0, state=State.COMPLETE, reference="majority", started=0.0, ended=1.0)
RECORDS = [MAJORITY, LORA, DONE, FAILED, STOPPED]


def shown(terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    display = Display("demo", 24, 2, ["accuracy", "stored_parameters"], lambda: RECORDS, lambda: [DONE], console)
    with display.showing():
        for record in RECORDS:
            display.started(record)
        display.reported(LORA, Report(validations=[{"epoch": 1.0, "scores": {"accuracy": 0.75}}]))
        for record in (DONE, FAILED, STOPPED):
            display.ended(record)
        display.restarted(LORA)
    return out.getvalue()


def test_what_was_said_before_a_pause_is_not_said_again() -> None:
    """A worker that goes on tells all validations; a new one is news, also of the same score."""
    out = io.StringIO()
    display = Display("demo", 24, 2, ["accuracy", "stored_parameters"], lambda: RECORDS, lambda: [], Console(file=out))
    validations = [{"epoch": 1.0, "scores": {"accuracy": 0.75}}]
    display.reported(LORA, Report(validations=validations))
    display.reported(LORA, Report(validations=validations))
    display.reported(LORA, Report(validations=[*validations, {"epoch": 2.0, "scores": {"accuracy": 0.75}}]))
    assert out.getvalue().count("0.7500 after 1") == out.getvalue().count("0.7500 after 2") == 1


def test_plain_lines_without_a_terminal() -> None:
    text = shown(terminal=False)
    assert "trial 1 (lora query,value 8 x2) accuracy 0.7500 after 1 epochs" in text
    assert "trial 2 (lora query,value 8 x2) complete: accuracy 0.8125, 73,728 parameters" in text
    assert "failed: out of memory: 9 GB" in text
    assert "3/24" in text
    assert "\x1b" not in text


def test_live_table_on_a_terminal() -> None:
    text = shown(terminal=True)
    for part in ("3/24 trials", "2 complete", "1 running", "1 stopped early", "1 failed", "elapsed", "left"):
        assert part in text
    for part in ("front so far", "0.8125", "73,728", "accuracy 0.7500 after 1 epochs", "out of memory: 9 GB"):
        assert part in text


def test_expected_time_is_the_pace_of_what_is_over() -> None:
    """Three trials took 60 s each. Two run, half done on average; 24 - 5 wait; two at once."""
    records = [DONE, FAILED, STOPPED, LORA, replace(LORA, number=5)]
    assert _left(records, 24, 2) == 60 * (19 + 1) / 2
    assert _left(records[:2], 24, 2) is None


def test_expected_time_of_a_halving_is_the_pace_of_its_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten of forty epochs were there before; ten more took 60 s."""
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    records = [replace(LORA, rungs={10.0: 0.5}), replace(MAJORITY, rungs={5.0: 0.5})]
    out = io.StringIO()
    display = Display(
        "demo",
        24,
        2,
        ["loss", "stored_parameters"],
        lambda: records,
        lambda: [],
        Console(file=out, width=120),
        epochs=40,
    )
    now[0] += 60
    records[0] = replace(LORA, state=State.PAUSED, rungs={10.0: 0.5, 20.0: 0.6})
    display.paused(records[0])
    assert out.getvalue() == (
        "[0:01:00, about 0:02:00 left] 0/24  trial 1 (lora query,value 8 x2) waits for its promotion\n"
    )
    display.paused(replace(records[0], state=State.RUNNING))
    assert out.getvalue().endswith("is left for a resume: the budget is spent\n")


def test_what_a_worker_says_is_shown_while_it_trains_and_while_it_scores() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    told = {1: "test text 32/200"}.get
    display = Display(
        "demo",
        24,
        2,
        ["loss", "stored_parameters"],
        lambda: RECORDS,
        lambda: [],
        console,
        lambda number: told(number) or "",
    )
    with display.showing():
        pass
    assert "test text 32/200" in out.getvalue()
    out.truncate(0)
    with display.scoring([1, 2]) as done:
        done(2)
    assert "scoring: 1/2 done" in out.getvalue()
    assert "test text 32/200" in out.getvalue()


def test_scored_trials_are_lines_without_a_terminal() -> None:
    out = io.StringIO()
    display = Display(
        "demo", 24, 2, ["loss", "stored_parameters"], lambda: RECORDS, lambda: [], Console(file=out, width=120)
    )
    with display.scoring([1, 2]) as done:
        done(2)
        done(1)
    assert "trial 2 is scored (1/2)" in out.getvalue()
    assert "trial 1 is scored (2/2)" in out.getvalue()


def test_replicates_are_shown_as_trials_are() -> None:
    out = io.StringIO()
    display = Display("demo", 24, 2, ["accuracy", "stored_parameters"], lambda: RECORDS, lambda: [], Console(file=out))
    run = Replicate(number=2, seed=7)
    display.started(run)
    display.restarted(run)
    display.paused(run)
    display.ended(replace(run, measurements=Measurements(accuracy=0.75, stored_parameters=1_000), ended=1.0))
    display.ended(replace(run, failure="diverged", ended=1.0))
    assert [line.partition("trial 2 with seed 7 ")[2] for line in out.getvalue().splitlines() if "]" in line] == [
        "trains again",
        "is left for a resume: the budget is spent",
        "complete: accuracy 0.7500, 1,000 parameters",
        "failed: diverged",
    ]
    assert "the worker process of trial 2 with seed 7 died" in out.getvalue()
