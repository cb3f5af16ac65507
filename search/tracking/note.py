"""Markdown on a study's pages in MLflow: the front as a table, and links to views of the runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from search.tracking.views import address, run_page, views
from search.trials.formats import amount_text, heading, spread_text
from search.trials.front import beaten_lines
from search.trials.objectives import Objectives

LIMIT: Final = 7_500  # characters; MLflow keeps a note in a tag of at most 8,000

_MARKUP: Final = re.compile(r"[&<>|\[\]`*\\]")

Row = Mapping[str, Any]


def links(experiment_id: str, run_id: str, searched: Objectives) -> str:
    """Return one line for the experiment's page: links to the study's own run, to views of the runs, and to charts."""
    shown = " · ".join(f"[{view.name}]({address(experiment_id, id_)})" for id_, view in views(searched).items())
    charts = f"[charts]({address(experiment_id, 'trained', charts=True)})"
    return f"[Front and references as tables]({run_page(experiment_id, run_id)}). Runs: {shown}, or as {charts}"


def note(
    front: Sequence[Row],
    references: Sequence[Row],
    experiment_id: str,
    searched: Objectives,
) -> str:
    """Return the note of a study's parent run: front, references, views. A front that is too long is cut.

    Those costs of the study that have no column yet are the last ones.
    """
    metric, *costs = (objective.name for objective in searched)
    own = [cost for cost in costs if heading(cost)]
    replicated = any("believed_mean" in row for row in front)
    beliefs = ["mean ± spread (seeds)", "on the true front"] if replicated else []
    columns = ["trial", "design", metric, "test", *beliefs, "parameters", "%", "seconds", *map(heading, own)]
    top = [f"| {' | '.join(columns)} |", "|--:|---|" + "--:|" * (len(columns) - 2)]
    lines = [_line(row, experiment_id, own, replicated) for row in front]
    shown = ["| view | | filter |", "|---|---|---|"]
    for id_, view in views(searched).items():
        table, charts = address(experiment_id, id_), address(experiment_id, id_, charts=True)
        shown.append(f"| [{view.name}]({table}) | [charts]({charts}) | ``{view.filter}`` |")

    def cut(most: int) -> str:
        parts = ["### Front", *top, *lines[:most]]
        parts += [f"\n**{_plain(line)}**" for line in beaten_lines(front, references)]
        if most < len(lines):
            parts.append(f"\n{len(lines) - most} more are in the artifact front.csv.")
        if references:
            parts += ["\n### References", *top, *(_line(row, experiment_id, own, replicated) for row in references)]
        return "\n".join([*parts, "\n### Views of the runs", *shown])

    return next(text for most in range(len(lines), -1, -1) if len(text := cut(most)) <= LIMIT or not most)


def _line(row: Row, experiment_id: str, costs: Sequence[str], replicated: bool) -> str:
    test = "" if row["test_score"] is None else f"{row['test_score']:.4f}"
    return (
        f"| [{row['trial']}]({run_page(experiment_id, row['run_id'])}) | {_plain(row['name'])} "
        f"| {row['score']:.4f} | {test} |{_beliefs(row) if replicated else ''} "
        f"{row['stored_parameters']:,} | {row['stored_percent']:.3f} | {row['seconds']:.0f} |"
    ) + "".join(f" {amount_text(row.get(cost))} |" for cost in costs)


def _beliefs(row: Row) -> str:
    if "believed_mean" not in row:
        return " | |"
    seeds = row["believed_seeds"]
    mean = f"{spread_text(row['believed_mean'], row['believed_spread'] if seeds > 1 else None)} ({seeds})"
    return f" {mean} | {100 * row['believed_probability']:.0f} % |"


def _plain(text: str) -> str:
    """Return a name on one line, in which nothing is Markdown or HTML."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", " ".join(text.split()))
