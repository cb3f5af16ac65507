"""The MLflow runs of a study: listed and written."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType

from search.tracking.client import _PAGE
from search.tracking.schema import KIND, REFERENCE_KIND, REPLICATE_KIND, SEED, STUDY_KIND, TRIAL, TRIAL_KIND
from search.trials.record import Replicate


def parent_run(client: MlflowClient, experiment_id: str) -> Run | None:
    runs = client.search_runs([experiment_id], f"tags.{KIND} = '{STUDY_KIND}'", order_by=["attributes.start_time"])
    return runs[0] if runs else None


def trial_runs(client: MlflowClient, experiment_id: str) -> list[Run]:
    runs = pages(lambda **page: client.search_runs([experiment_id], run_view_type=ViewType.ACTIVE_ONLY, **page))
    numbered = re.compile(r"[0-9]{1,9}")
    return [
        run
        for run in runs
        if run.data.tags.get(KIND) in (TRIAL_KIND, REFERENCE_KIND) and numbered.fullmatch(run.data.tags.get(TRIAL, ""))
    ]


def replicate_runs(client: MlflowClient, experiment_id: str, of: Replicate | None = None) -> list[Run]:
    """Return the runs of all replicates, or of one."""
    which = f" and tags.{TRIAL} = '{of.number}' and tags.{SEED} = '{of.seed}'" if of else ""
    runs = pages(lambda **page: client.search_runs([experiment_id], f"tags.{KIND} = '{REPLICATE_KIND}'{which}", **page))
    numbered = re.compile(r"[0-9]{1,10}")
    return [run for run in runs if all(numbered.fullmatch(run.data.tags.get(name, "")) for name in (TRIAL, SEED))]


def one_run_a_trial(client: MlflowClient, experiment_id: str) -> list[Run]:
    """Return one run a trial. A request that was given up and sent again may have made two.

    The one with the most tags stays, the others go to MLflow's trash.
    """
    kept: dict[str, Run] = {}
    for run in sorted(trial_runs(client, experiment_id), key=lambda run: (-len(run.data.tags), run.info.run_id)):
        if kept.setdefault(run.data.tags[TRIAL], run) is not run:
            client.delete_run(run.info.run_id)
    return list(kept.values())


def pages(search: Any) -> Iterator[Any]:
    token = None
    while True:
        with _uncollected():
            page = search(max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pause the garbage collector within the context.

    A page of an embedded store is some fifty thousand objects, all alive: the collector would go through them, and
    through all that is imported, again and again, for more than half of the time.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def log(
    client: MlflowClient,
    run_id: str,
    *,
    params: Mapping[str, str] | None = None,
    metrics: Sequence[Metric] = (),
    tags: Mapping[str, str] | None = None,
) -> None:
    client.log_batch(
        run_id,
        metrics=metrics,
        params=[Param(name, value) for name, value in (params or {}).items()],
        tags=[RunTag(name, value) for name, value in (tags or {}).items()],
    )


def milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)
