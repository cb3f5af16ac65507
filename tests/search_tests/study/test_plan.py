"""What is tried before a study begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import study

from search.config.loading import load_config
from search.study.plan import rehearse
from search.study.resolve import resolve


@pytest.mark.parametrize("unfinished", ["last", "extrapolated", "ignored"])
def test_a_study_that_chooses_its_scores_of_unfinished_trials_is_not_refused(tmp_path: Path, unfinished: str) -> None:
    """The rehearsal draws a random point, and the sampler that does so takes no such choice."""
    config = load_config(study(tmp_path, sampler={"name": "tpe", "unfinished": unfinished}))
    rehearse(config, resolve(config))
