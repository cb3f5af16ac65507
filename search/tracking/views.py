"""Saved views of a study's runs: MLflow's page lists them by name, and each answers a question with table and charts.

The page keeps a view as a tag of the experiment, an envelope with the view's name and the page's own state. It never
changes one: what a person saves is another tag, and what a person deletes is gone. So an envelope has a checksum of
ours, and the tag WRITTEN names the views that were written once: a view that has another checksum, or that is named
there and gone, is as somebody wants it, and stays so.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from mlflow import MlflowClient

from search.tracking.schema import KIND, METHOD, ON_FRONT, POINT, REFERENCE_KIND, REPLICATE_KIND, STATE, TRIAL_KIND
from search.trials.objectives import Objective, Objectives

VIEW: Final = "mlflow.sharedViewState."  # begins the tags; the view's id follows
WRITTEN: Final = "petl_search.views"  # JSON: `ids` of the views, `dimensions` of the space in their charts
FRONT: Final = "front"

_DEFLATED: Final = "deflate;"  # begins a state that is compressed; so is all of them, for older servers' short tags
_BELIEVED: Final = tuple(f"believed_{name}" for name in ("mean", "spread", "seeds", "probability", "corrected"))
_CREATED, _DURATION = "runDateAndNestInfo", "duration"  # columns that are always there
_WIDTHS: Final = {"attributes.`Run Name`": 250, _CREATED: 130, "tags.`design`": 400, "tags.`failure`": 400}  # pixels


@dataclass(frozen=True)
class View:
    """Runs in a table: which, by what they are sorted, with which columns, and perhaps in groups by a tag.

    The page loads a hundred runs, and its charts show no others. Sorted by a date it folds trials into their parent.
    """

    name: str
    filter: str
    order: str
    ascending: bool
    columns: Sequence[str]
    group: str | None = None


def views(searched: Objectives) -> dict[str, View]:
    """Return the views of a study with these objectives by their ids, in the order in which the page lists them."""
    score, *costs = searched
    best = (_metric(score.name), not score.higher_is_better)
    sizes = dict.fromkeys([*(cost.name for cost in costs), "stored_parameters", "stored_percent"])
    metrics = [_metric(name) for name in (score.name, *sizes, f"test_{score.name}", *_BELIEVED)]
    columns = [*metrics, _tag("design"), _metric("epochs"), _metric("seconds")]
    trial = f"tags.{KIND} = '{TRIAL_KIND}'"
    full = f"attributes.status = 'FINISHED' and {trial}"
    front_first = (_tag(ON_FRONT), False)
    return {
        FRONT: View("Front", f"tags.{ON_FRONT} = 'true'", _metric(costs[0].name), True, columns),
        "trained": View("Trained in full", full, *front_first, [_tag(ON_FRONT), *columns]),
        "percent": View("Under 1 %", f"metrics.stored_percent <= 1 and {full}", *front_first, columns),
        "methods": View("By method", full, *best, [metrics[0], *map(_metric, sizes), _tag("design")], METHOD),
        "references": View("References", f"tags.{KIND} = '{REFERENCE_KIND}'", *best, columns),
        "failed": View("Failed", f"tags.{STATE} = 'FAIL'", _tag("failure"), True, [_tag("failure"), *columns]),
        "replicates": View("Replicates", f"tags.{KIND} = '{REPLICATE_KIND}'", *best, columns),
        "all": View("All trials", trial, *best, [_tag(STATE), *columns]),
    }


def address(experiment_id: str, view: str, *, charts: bool = False) -> str:
    """Return the address of a view's table, or of its charts, below that of the pages.

    A filter in the address would keep the page from reading the view.
    """
    shown = {"compareRunsMode": "CHART"} if charts else {}
    options = {"viewStateShareKey": view, "workflowType": "machine_learning", **shown}
    return f"#/experiments/{experiment_id}/runs?{urlencode(options)}"


def run_page(experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page. Without the option MLflow 3 shows its pages for language models."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


class Views:
    """Write a study's views into its experiment."""

    def __init__(self, client: MlflowClient, experiment_id: str, searched: Objectives) -> None:
        self._client, self._experiment_id, self._searched = client, experiment_id, searched
        self._dimensions: frozenset[str] | None = None  # those of every point; None before the first

    def meet(self, point: Collection[str]) -> None:
        """Write the views again where a trial's point in the space has other dimensions than those before."""
        if point and (self._dimensions is None or not self._dimensions <= frozenset(point)):
            self._dimensions = frozenset(point) & (self._dimensions or frozenset(point))
            self.write()

    def write(self) -> None:
        """Write the views that are missing, or that show something else by now, and leave what people changed."""
        tags = self._client.get_experiment(self._experiment_id).tags
        written = _written(tags)
        if self._dimensions is None and written["dimensions"]:
            self._dimensions = frozenset(written["dimensions"])
        now, wanted = round(time.time() * 1000), views(self._searched)
        for place, (id_, view) in enumerate(wanted.items()):
            state = json.dumps(_state(view, self._searched, sorted(self._dimensions or ())), separators=(",", ":"))
            if (there := tags.get(VIEW + id_)) is not None:
                created = _replaceable(there, view.name, state)
            else:
                created = None if id_ in written["ids"] else now - place  # the page lists the latest first
            if created is not None:
                envelope = _envelope(view.name, state, created, now)
                self._client.set_experiment_tag(self._experiment_id, VIEW + id_, envelope)
        known = {"ids": sorted({*written["ids"], *wanted}), "dimensions": sorted(self._dimensions or ())}
        if known != written:  # last: a view that was not written yet is not taken for a deleted one
            self._client.set_experiment_tag(self._experiment_id, WRITTEN, json.dumps(known))


def _written(tags: Mapping[str, str]) -> dict[str, list[str]]:
    try:
        known = json.loads(tags.get(WRITTEN, "{}"))
        return {name: sorted(map(str, known.get(name, ()))) for name in ("ids", "dimensions")}
    except (ValueError, TypeError, AttributeError):
        return {"ids": [], "dimensions": []}


def _envelope(name: str, state: str, created: int, updated: int) -> str:
    """Return a view as the page keeps it, with our checksum; times are in milliseconds."""
    packed = _DEFLATED + base64.b64encode(zlib.compress(state.encode(), 9)).decode()
    times = {"createdAt": created, "updatedAt": updated}
    return json.dumps({"name": name, **times, "state": packed, "checksum": _checksum(name, packed)})


def _replaceable(text: str, name: str, state: str) -> int | None:
    """Return when a view was created that shows something else by now, None for one that stays as it is."""
    try:
        there = json.loads(text)
        if there["checksum"] != _checksum(there["name"], there["state"]):
            return None
        shown = zlib.decompress(base64.b64decode(there["state"].removeprefix(_DEFLATED))).decode()
        return None if (there["name"], shown) == (name, state) else int(there["createdAt"])
    except (ValueError, TypeError, KeyError, AttributeError, zlib.error):
        return None


def _checksum(name: str, packed: str) -> str:
    return hashlib.sha256(f"{name}\n{packed}".encode()).hexdigest()[:16]


def _state(view: View, searched: Objectives, dimensions: Sequence[str]) -> dict[str, Any]:
    """Return the page's state that shows a view; what is not stated has the page's defaults."""
    score = searched[0]
    order = ["attributes.`Run Name`", _CREATED, *view.columns, _DURATION]
    group = view.group and {
        "aggregateFunction": "max" if score.higher_is_better else "min",
        "groupByKeys": [{"mode": "tag", "groupByData": view.group}],
    }
    return {
        "searchFilter": view.filter,
        "orderByKey": view.order,
        "orderByAsc": view.ascending,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(view.columns),
        "columnOrder": order,
        "columnWidths": {column: _WIDTHS.get(column, _width(column)) for column in order},
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": group,
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "compareRunSections": [
            _section("scores", "Scores", columns=2),
            _section("space", "Space", columns=1),
            _section("metrics", "Model metrics", display=False, isGenerated=True),  # the page's own, folded
        ],
        "compareRunCharts": [
            *(chart for cost in searched[1:] for chart in _against(score, cost)),
            _line("curves", score.name, "epoch"),
            _scatter("test", score.name, f"test_{score.name}"),
            _parallel(dimensions, [searched[1].name, score.name]),
        ],
    }


def _section(id_: str, name: str, **more: Any) -> dict[str, Any]:
    return {"uuid": id_, "name": name, "display": True, "isReordered": False, "deleted": False, **more}


def _chart(id_: str, kind: str, section: str, **settings: Any) -> dict[str, Any]:
    common = {"runsCountToCompare": 100, "metricSectionId": section, "deleted": False, "isGenerated": False}
    return {"uuid": id_, "type": kind, **common, **settings}


def _against(score: Objective, cost: Objective) -> list[dict[str, Any]]:
    """Return charts of the score against a cost; where that has orders of magnitude, one on a logarithmic axis, too.

    Of the page's charts only those of curves have such an axis, upward: there a run is a curve of one point.
    """
    charts = [_scatter(f"score-{cost.name}", cost.name, score.name)]
    return charts + ([_line(f"log-{cost.name}", cost.name, score.name, scale="log")] if cost.logarithmic else [])


def _scatter(id_: str, x: str, y: str) -> dict[str, Any]:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return _chart(id_, "SCATTER", "scores", **axes)


def _line(id_: str, metric: str, over: str, scale: str = "linear") -> dict[str, Any]:
    """Return a chart of a metric over another one: a point for each step at which a run has both."""
    x = {"xAxisKey": "metric", "selectedXAxisMetricKey": over, "xAxisScaleType": "linear", "useGlobalXaxisKey": False}
    y = {"metricKey": metric, "selectedMetricKeys": [metric], "yAxisKey": "metric", "yAxisExpressions": []}
    form = {"scaleType": scale, "range": {}, "lineSmoothness": 0, "useGlobalLineSmoothing": False}
    return _chart(id_, "LINE", "scores", displayPoints=True, ignoreOutliers=False, **x, **y, **form)


def _parallel(dimensions: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """Return a chart of parallel coordinates, with the last metric as colour. It shows runs that have all of them."""
    axes = {"selectedParams": [POINT + name for name in dimensions], "selectedMetrics": list(metrics)}
    return _chart("space", "PARALLEL", "space", showAllRuns=False, **axes)


def _width(column: str) -> int:
    """Return a width, in pixels, at which a column's heading is whole."""
    return max(90, 22 + 7 * len(column.partition("`")[2]))


def _metric(name: str) -> str:
    return f"metrics.`{name}`"


def _tag(name: str) -> str:
    return f"tags.`{name}`"
