"""Markdown on a study's pages in MLflow: the front as a table, and filters for the runs page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, urlencode

from search.tracking.schema import KIND, ON_FRONT, REFERENCE_KIND, REPLICATE_KIND, STATE, TRIAL_KIND
from search.trials.formats import amount_text, heading, spread_text
from search.trials.front import beaten_lines
from search.trials.objectives import SCORES

LIMIT: Final = 7_500  # characters; MLflow keeps a note in a tag of at most 8,000

_MARKUP: Final = re.compile(r"[&<>|\[\]`*\\]")

Row = Mapping[str, Any]


def links(experiment_id: str, run_id: str, metric: str) -> str:
    """Return one line for the experiment's page: links to the study's own run and to views of the runs."""
    views = " · ".join(f"[{what}]({_view(experiment_id, text, metric)})" for what, text in _filters(run_id).items())
    return f"[Front and references as tables]({_page(experiment_id, run_id)}). Runs: {views}"


def note(
    front: Sequence[Row],
    references: Sequence[Row],
    experiment_id: str,
    run_id: str,
    metric: str,
    costs: Sequence[str],
) -> str:
    """Return the note of a study's parent run: front, references, filters. A front that is too long is cut.

    `metric` is the study's score. Those of its `costs` that have no column yet are the last ones.
    """
    own = [cost for cost in costs if heading(cost)]
    replicated = any("believed_mean" in row for row in front)
    beliefs = ["mean ± spread (seeds)", "on the true front"] if replicated else []
    columns = ["trial", "design", metric, "test", *beliefs, "parameters", "%", "seconds", *map(heading, own)]
    top = [f"| {' | '.join(columns)} |", "|--:|---|" + "--:|" * (len(columns) - 2)]
    lines = [_line(row, experiment_id, own, replicated) for row in front]
    filters = ["| show | filter |", "|---|---|"]
    for what, text in _filters(run_id).items():
        filters.append(f"| [{what}]({_view(experiment_id, text, metric)}) | ``{text}`` |")

    def cut(shown: int) -> str:
        parts = ["### Front", *top, *lines[:shown]]
        parts += [f"\n**{_plain(line)}**" for line in beaten_lines(front, references)]
        if shown < len(lines):
            parts.append(f"\n{len(lines) - shown} more are in the artifact front.csv.")
        if references:
            parts += ["\n### References", *top, *(_line(row, experiment_id, own, replicated) for row in references)]
        return "\n".join([*parts, "\n### Filters for the runs page", *filters])

    return next(text for shown in range(len(lines), -1, -1) if len(text := cut(shown)) <= LIMIT or not shown)


def _filters(run_id: str) -> dict[str, str]:
    """Return filters for the search box above the runs, since MLflow's charts load a hundred runs."""
    return {
        "the front": f"tags.{ON_FRONT} = 'true'",
        "references": f"tags.{KIND} = '{REFERENCE_KIND}'",
        "fully trained": f"attributes.status = 'FINISHED' and tags.{KIND} = '{TRIAL_KIND}'",
        "under 1 %": f"metrics.stored_percent <= 1 and tags.{KIND} = '{TRIAL_KIND}'",
        "failed": f"tags.{STATE} = 'FAIL'",
        "replicates": f"tags.{KIND} = '{REPLICATE_KIND}'",
        "all": f"tags.`mlflow.parentRunId` = '{run_id}'",
    }


def _view(experiment_id: str, filter_: str, metric: str) -> str:
    """Return the runs page with a filter, the best first: sorted by date it would fold the trials into their parent."""
    ascending = str(not SCORES[metric].higher_is_better).lower()
    options = {"searchFilter": filter_, "orderByKey": f"metrics.`{metric}`", "orderByAsc": ascending}
    return f"{_page(experiment_id)}&{urlencode(options, quote_via=quote)}"


def _page(experiment_id: str, run_id: str = "") -> str:
    """Return a run's page, or that of all runs. Without the option MLflow 3 shows its pages for language models."""
    run = f"/{run_id}" if run_id else ""
    return f"#/experiments/{experiment_id}/runs{run}?workflowType=machine_learning"


def _line(row: Row, experiment_id: str, costs: Sequence[str], replicated: bool) -> str:
    test = "" if row["test_score"] is None else f"{row['test_score']:.4f}"
    return (
        f"| [{row['trial']}]({_page(experiment_id, row['run_id'])}) | {_plain(row['name'])} "
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
