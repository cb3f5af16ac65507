"""A study that is a list, with every real component: what it trains, tests and shows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import studies
from rich.console import Console

from search.results.lists import print_against
from search.results.query import Study
from search.study.places import StudyError
from search.study.run import resume, run
from search.trials.record import State

DESIGNS: dict[str, Any] = {
    "prefix, l = 32": "prefix:length=2",
    "LoRA (attn), r = 16": {"design": "lora:rank=2", "training": {"learning_rate": 3e-3}},
    "BitFit": {"design": "bitfit", "seeds": [5]},
}


def content(folder: Path, **sections: Any) -> dict[str, Any]:
    """A list of three designs, two of them with two seeds, for 12 steps."""
    whole = studies.study(folder, study="listed", designs=DESIGNS, seeds=[5, 6], budget={"steps": 12}, **sections)
    return {name: section for name, section in whole.items() if name not in ("space", "references", "constraints")}


@pytest.fixture(scope="module")
def finished(home: Path) -> Study:
    sections = {"paper": {"table": "2", "task": "sst2"}, "references": []}
    return run(content(home / "inputs", **sections), console=Console(quiet=True))


def test_exactly_the_designs_are_trained_in_order(finished: Study) -> None:
    trained = [(trial.name, trial.configuration.seed) for trial in finished.trials if trial.configuration]
    assert trained == [
        ("prefix, l = 32", 5), ("LoRA (attn), r = 16", 5), ("BitFit", 5),
        ("prefix, l = 32", 6), ("LoRA (attn), r = 16", 6),
    ]  # fmt: skip
    assert {trial.state for trial in finished.trials} == {State.COMPLETE}
    assert finished.references == ()


def test_steps_are_the_budget(finished: Study) -> None:
    for trial in finished.trials:
        assert trial.measurements is not None
        assert trial.measurements.steps == 12
        assert trial.measurements.epochs == pytest.approx(12 / 8)  # 120 rows are 8 batches of 16


def test_every_trial_of_a_list_is_tested(finished: Study) -> None:
    assert all(trial.test_score is not None for trial in finished.trials)


def test_a_finished_list_resumes_to_itself(finished: Study) -> None:
    again = resume("listed", overrides=["budget.hours=1"], console=Console(quiet=True))
    assert [trial.run_id for trial in again.trials] == [trial.run_id for trial in finished.trials]
    with pytest.raises(StudyError, match=r"budget\.steps decides"):
        resume("listed", overrides=["budget.steps=9"])


def test_it_is_shown_beside_the_paper(finished: Study) -> None:
    out = Console(width=200, file=io.StringIO())
    print_against(finished, out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    (scores,) = (line for line in text.splitlines() if "94.0 ±0.1" in line)
    assert scores.split()[:5] == ["prefix,", "l", "=", "32", "2"]  # two seeds
    assert "copied by the paper from earlier work" in text


def test_two_rows_that_train_the_same_are_refused(home: Path, tmp_path: Path) -> None:
    designs = {"one": "lora:rank=2", "another": "lora:rank=2,layers=0,1"}
    with pytest.raises(StudyError, match="received 'one' and 'another'"):
        run({**content(tmp_path), "study": "twins", "designs": designs})
