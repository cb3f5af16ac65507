"""The note of a study in MLflow: where its links lead."""

from __future__ import annotations

import pytest

from search.tracking.note import links


@pytest.mark.parametrize(("metric", "ascending"), [("accuracy", "false"), ("loss", "true")])
def test_runs_are_shown_with_the_best_first(metric: str, ascending: str) -> None:
    shown = links("7", "run", metric)
    assert shown.count(f"orderByKey=metrics.%60{metric}%60&orderByAsc={ascending}") == shown.count("orderByKey") > 0
