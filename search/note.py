"""Markdown on a study's pages in MLflow: the front as a table, and filters for the runs page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

LIMIT: Final = 7_500  # characters; MLflow keeps a note in a tag of at most 8,000

Row = Mapping[str, Any]


def filters(experiment_id: str, run_id: str) -> str:
    """What to paste into the search box above the runs, and links that do it.

    MLflow's charts load a hundred runs: with a filter these are the ones that matter. `run_id` is the
    study's parent run.
    """
    lines = ["| show | filter |", "|---|---|"]
    for what, text in (
        ("the front", "tags.on_front = 'true'"),
        ("references", "tags.kind = 'reference'"),
        ("fully trained trials", "attributes.status = 'FINISHED' and tags.kind = 'trial'"),
        ("trials under 1 %", "metrics.stored_percent <= 1 and tags.kind = 'trial'"),
        ("failed trials", "tags.state = 'FAIL'"),
        ("all trials and references", f"tags.`mlflow.parentRunId` = '{run_id}'"),
    ):
        link = f"#/experiments/{experiment_id}/runs?searchFilter={quote(text, safe='')}"
        lines.append(f"| [{what}]({link}) | ``{text}`` |")
    return "\n".join(lines)


def note(front: Sequence[Row], references: Sequence[Row], experiment_id: str, run_id: str) -> str:
    """The note of a study's parent run: front, references, filters. A front too long for it is cut."""
    metric = next((row["metric"] for row in (*front, *references)), "score")
    heading = [f"| trial | design | {metric} | test | parameters | % | seconds |", "|--:|---|--:|--:|--:|--:|--:|"]
    lines = [_line(row, experiment_id) for row in front]

    def text(shown: int) -> str:
        parts = ["### Front", *heading, *lines[:shown]]
        if shown < len(lines):
            parts.append(f"\n{len(lines) - shown} more are in the artifact front.csv.")
        if references:
            parts += ["\n### References", *heading, *(_line(row, experiment_id) for row in references)]
        return "\n".join([*parts, "\n### Filters for the runs page", filters(experiment_id, run_id)])

    return next(cut for shown in range(len(lines), -1, -1) if len(cut := text(shown)) <= LIMIT or not shown)


def _line(row: Row, experiment_id: str) -> str:
    test = "" if row["test_score"] is None else f"{row['test_score']:.4f}"
    return (
        f"| [{row['trial']}](#/experiments/{experiment_id}/runs/{row['run_id']}) | {row['name']} "
        f"| {row['score']:.4f} | {test} | {row['stored_parameters']:,} | {row['stored_percent']:.3f} "
        f"| {row['seconds']:.0f} |"
    )
