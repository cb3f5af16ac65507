"""Who is scored on whole splits when a search is over, each once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import loop
import pytest

from petl.configuration import Configuration
from petl.design import Design
from petl.head import LINEAR_HEAD, PROBE
from petl.presets import parse
from search.storage.folder import SCORED, TrialFolder, read_json, write_json
from search.study.final_scores import eligible, share_scores, twins
from search.trials.record import SeedSummary, State
from search.trials.records import Records
from search.trials.report import TWIN, Report

SEARCH: Any = SimpleNamespace(designs={})  # of a study file, what is asked here
LIST: Any = SimpleNamespace(designs={"a": {}})


def complete(records: Records, accuracy: float, stored: int, reference: str | None = None, **changes: Any) -> int:
    """A trial that has ended with these, or a reference."""
    configuration = None if reference == PROBE else Configuration(parse("lora:rank=2"), **changes)
    number = records.create(configuration, reference=reference).number
    measured = loop.measured(Configuration(Design()), accuracy=accuracy, stored_parameters=stored)
    records.close(number, State.COMPLETE, measured)
    return number


def test_the_front_and_the_references_are_scored_each_once() -> None:
    """A probe that is on the front is one of both."""
    records = Records.in_memory()
    probe = complete(records, 0.7, 0, PROBE, head=LINEAR_HEAD)
    member = complete(records, 0.8, 100, head=LINEAR_HEAD)
    beaten = complete(records, 0.6, 100, head=LINEAR_HEAD)
    other = complete(records, 0.5, 900, "full", head=LINEAR_HEAD)
    records.close(records.create(Configuration(Design())).number, State.PRUNED)
    assert [record.number for record in eligible(SEARCH, records)] == [probe, member, other]
    assert [record.number for record in eligible(LIST, records)] == [probe, member, beaten, other]


def test_what_replicates_put_on_the_front_is_scored() -> None:
    records = Records.in_memory()
    lucky, sure, neither = (complete(records, score, 100) for score in (0.8, 0.79, 0.5))
    records.summaries = {
        number: SeedSummary(mean=0.7, spread=0.1, seeds=3, failed=0, probability=probability, corrected=0.7)
        for number, probability in ((lucky, 0.1), (sure, 0.99), (neither, 0.0))
    }
    assert [record.number for record in eligible(SEARCH, records)] == [lucky, sure]


@pytest.mark.parametrize("scored", [False, True])
def test_a_trial_that_was_given_its_result_is_given_the_scores(tmp_path: Path, scored: bool) -> None:
    records = Records.in_memory()
    reference, trial, _ = (complete(records, 0.8, 100, name) for name in ("lora", None, "full"))
    for number, facts in ((reference, {}), (trial, {TWIN: reference})):
        folder = TrialFolder(tmp_path, number)
        write_json(folder.begin("result") / "report.json", Report(facts=facts).to_dict())
        folder.commit("result")
    shown = eligible(SEARCH, records)
    assert twins(shown, shown, tmp_path) == {trial: reference}
    assert twins(shown, [record for record in shown if record.number != reference], tmp_path) == {}
    if scored:
        part = TrialFolder(tmp_path, reference).begin(SCORED)
        write_json(part / "scores.json", {"test": {"accuracy": 0.75}})
        (part / "predictions").mkdir()
        (part / "predictions" / "test.jsonl").write_text("{}\n")
        TrialFolder(tmp_path, reference).commit(SCORED)
    share_scores(trial, reference, tmp_path)
    given = TrialFolder(tmp_path, trial).scored()
    assert (given is not None) is scored
    if given:
        assert read_json(given.scores) == {"test": {"accuracy": 0.75}}
        assert given.predictions_of("test").read_text() == "{}\n"
