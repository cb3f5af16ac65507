"""What a resume may change."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import study

from search.config.loading import load_config
from search.config.resuming import refusal


@pytest.mark.parametrize(
    "overrides",
    [
        ["budget.trials=99", "budget.hours=2"],
        ["replicates.per_trial=5"],
        ["resources.concurrent=7"],
        ["tracking.uri=sqlite:///elsewhere.db", "tracking.patience=5"],
        ["storage.max_gb=3", "storage.database=sqlite:///moved.db"],
    ],
)
def test_what_may_change(tmp_path: Path, overrides: list[str]) -> None:
    content = study(tmp_path)
    assert refusal(load_config(content, overrides), load_config(content)) == ""


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("seed=9", "a resume may change budget, replicates, resources, tracking, storage; received another seed. "),
        ("sampler.name=tpe", "received another sampler. Start another study for that"),
        ("budget.epochs=9", "budget.epochs decides what a score means, so it stays; start another study for other"),
        ("resources.workers_per_trial=2", "resources.workers_per_trial decides what a score means"),
        ("storage.path=/elsewhere", "where a resume finds them; received storage.path /elsewhere"),
    ],
)
def test_what_stays(tmp_path: Path, override: str, reason: str) -> None:
    content = study(tmp_path)
    assert reason in refusal(load_config(content, [override]), load_config(content))
