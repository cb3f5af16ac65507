"""What is tried before a study begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import study

from petl.design import DesignError
from search.config.loading import load_config
from search.study.plan import rehearse
from search.study.resolve import resolve


@pytest.mark.parametrize("unfinished", ["last", "extrapolated", "ignored"])
def test_a_study_that_chooses_its_scores_of_unfinished_trials_is_not_refused(tmp_path: Path, unfinished: str) -> None:
    """The rehearsal draws a random point, and the sampler that does so takes no such choice."""
    config = load_config(study(tmp_path, sampler={"name": "tpe", "unfinished": unfinished}))
    rehearse(config, resolve(config))


@pytest.mark.parametrize(
    ("section", "design", "said"),
    [
        ("enqueue", "prompt:length=9,positions=shifted", "at most 40 together on .*; received 9 and 32"),
        ("references", "prompt:length=9,positions=shifted", "at most 40 together on .*; received 9 and 32"),
        ("references", "prompt:length=40", "shorter than the model's 40 positions; received length 40"),
        ("references", "lora:rank=100000", "received rank 100,000"),
    ],
)
def test_a_design_that_the_model_cannot_have_is_refused_before_anything_starts(
    tmp_path: Path, section: str, design: str, said: str
) -> None:
    space = {"name": "unified", "methods": ["prompt"]} if section == "enqueue" else {"name": "unified"}
    file = study(tmp_path, **{section: [design], "space": space})
    file["task"] |= {"max_length": 32}
    config = load_config(file)
    with pytest.raises(DesignError, match=said):
        rehearse(config, resolve(config))


def test_a_design_that_fits_is_not_refused(tmp_path: Path) -> None:
    file = study(tmp_path, references=["prompt:length=8,positions=shifted"])
    file["task"] |= {"max_length": 32}
    config = load_config(file)
    rehearse(config, resolve(config))
