"""MLflow's own pages on a study, in a real browser: what `petl-search ui` opens, and what the views show there."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import chromium
import pytest
from mlflow import MlflowClient
from published import BASE, INFO
from servers import free_port
from typer.testing import CliRunner

from petl.configuration import Configuration
from petl.measurements import Measurements
from search import cli
from search.results.query import load_study
from search.tracking.schema import GREY
from search.tracking.views import address
from search.tracking.writer import MlflowTracker
from search.trials.record import SeedSummary, State, TrialRecord
from spaces.unified import build

chromium.needed()

STUDY, TRIALS, FAILED = "reviews", 130, 4  # more than the hundred runs that the page loads
NAMES = "Front", "Trained in full", "Under 1 %", "By method", "References", "Failed", "Replicates", "All trials"
RUNGS = (1, 3, 9)  # epochs
TABLE = "[role=gridcell][col-id='tags.`design`']"
CELLS = """() => {
  const rows = {};
  for (const cell of document.querySelectorAll('[role=gridcell][col-id]')) {
    const row = rows[cell.closest('[role=row]').getAttribute('row-index')] ??= {};
    row[cell.getAttribute('col-id').replace(/.*`(.*)`/, '$1')] = cell.innerText.trim();
  }
  return Object.values(rows);
}"""


@dataclass(frozen=True)
class Pages:
    """What `petl-search ui` serves: the address that it printed, and the one that it opened."""

    home: Path
    port: int
    printed: str
    opened: str

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.home}/mlflow.db"

    def at(self, page: str) -> str:
        return f"http://127.0.0.1:{self.port}/{page}"


def publish(home: Path) -> None:
    """A study with points of the unified space, whose scores grow with the logarithm of the size."""
    draw = random.Random(0)
    tracker = MlflowTracker.open(f"sqlite:///{home}/mlflow.db", STUDY, home / "artifacts", {**INFO, "study": STUDY})
    for number in range(TRIALS):
        parts = {"prefix.length": 0, "ffn.size": 0, "low_rank.attention": 0}
        size = 2 ** draw.randrange(9)
        part = draw.choice(sorted(parts))
        point = {**parts, part: size, "ffn.insertion": "parallel", "learning_rate": 10 ** draw.uniform(-4, -2)}
        stored = size * {"prefix.length": 1_500, "ffn.size": 1_700, "low_rank.attention": 2_900}[part]
        score = 0.95 - 0.2 / (1 + size.bit_length()) + draw.gauss(0, 0.01)
        failed = number < FAILED
        measured = Measurements(
            accuracy=score,
            stored_parameters=stored,
            stored_percent=100 * stored / BASE,
            base_parameters=BASE,
            epochs=RUNGS[-1],
            steps=10 * RUNGS[-1],
            seconds=60.0,
        )
        record = TrialRecord(
            number=number,
            state=State.FAIL if failed else State.COMPLETE,
            configuration=Configuration(build(point, 12)),
            params=point,
            measurements=None if failed else measured,
            failure="diverged: the loss is no number" if failed else None,
        )
        tracker.ensure(record)
        if not failed:
            points = [{"step": 10 * e, "epoch": e, "accuracy": score - 0.1 / e} for e in RUNGS[:-1]]
            tracker.progress(number, [*points, {"step": measured.steps, "epoch": RUNGS[-1], "accuracy": score}])
        tracker.publish(record)
    full = Measurements(accuracy=0.96, stored_parameters=BASE, stored_percent=100.0, base_parameters=BASE)
    tracker.publish(TrialRecord(number=TRIALS, state=State.COMPLETE, reference="full", measurements=full))
    members = load_study(STUDY, f"sqlite:///{home}/mlflow.db").front().trials
    for member in members:
        mean = member.score - 0.004
        belief = SeedSummary(mean=mean, spread=0.002, seeds=3, failed=0, probability=0.7, corrected=mean)
        tracker.facts(member.number, {"believed": asdict(belief), "final": {"test": {"accuracy": member.score - 0.01}}})
    study = load_study(STUDY, f"sqlite:///{home}/mlflow.db")
    tracker.front(study.front().to_rows(), study.reference_rows())
    tracker.close()


@pytest.fixture(scope="module")
def pages(home: Path) -> Iterator[Pages]:
    """`petl-search ui` at a terminal, with a browser that notes what it is to open."""
    publish(home)
    port, opened = free_port(), home / "opened"
    browser = home / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    ours, terminal = pty.openpty()
    command = [sys.executable, "-m", "search.cli", "ui", STUDY, "--port", str(port)]
    log = (home / "ui.log").open("wb")
    environment = {**os.environ, "BROWSER": f"{browser} %s"}
    process = subprocess.Popen(command, stdout=terminal, stderr=log, env=environment, start_new_session=True)
    said: list[bytes] = []
    threading.Thread(target=lambda: said.extend(iter(partial(os.read, ours, 1_000), b"")), daemon=True).start()
    try:
        deadline = time.monotonic() + 300
        while not opened.exists() or not opened.read_text():
            assert process.poll() is None, (home / "ui.log").read_text()
            assert time.monotonic() < deadline, (home / "ui.log").read_text()
            time.sleep(0.2)
        printed, then = b"".join(said).decode().splitlines()[:2]
        assert then == "opens in some seconds; Ctrl-C ends it"
        yield Pages(home, port, printed, opened.read_text().strip())
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium.chromium() as started:
        yield started


@pytest.fixture
def page(browser: Any, pages: Pages) -> Iterator[Any]:
    """A tab of somebody who was there before: at the first visit MLflow opens its assistant over half of the page."""
    context = browser.new_context(viewport={"width": 3_000, "height": 1_600})
    context.set_default_timeout(180_000)  # milliseconds; ten seconds on a machine that has nothing else to do
    shown = context.new_page()
    shown.goto(pages.at("#/experiments"))
    shown.evaluate("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
    yield shown
    context.close()


def view(page: Any, pages: Pages, name: str, *, charts: bool = False) -> Any:
    page.goto("about:blank")
    page.goto(pages.at(address("1", name, charts=charts)))
    return page


def front_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(CliRunner().invoke(cli.app, ["front", STUDY, "--format", "json"]).stdout)
    return rows


def test_the_front_is_opened_and_shows_what_the_command_says(page: Any, pages: Pages) -> None:
    assert pages.printed == pages.opened == pages.at(address("1", "front"))
    page.goto("about:blank")
    page.goto(pages.opened)
    rows = front_rows()
    assert len(rows) > 3
    page.locator(TABLE).nth(len(rows) - 1).wait_for()
    shown = page.evaluate(CELLS)
    assert [int(row["Run Name"].split("\n")[-1].split()[0]) for row in shown] == [row["trial"] for row in rows]
    columns = {
        "accuracy": "score",
        "stored_parameters": "stored_parameters",
        "stored_percent": "stored_percent",
        "test_accuracy": "test_score",
        "believed_mean": "believed_mean",
        "believed_spread": "believed_spread",
    }
    for column, name in columns.items():
        assert [float(row[column]) for row in shown] == [row[name] for row in rows], column
    assert [row["design"] for row in shown] == [row["design"] for row in rows]
    sizes = [float(row["stored_parameters"]) for row in shown]
    assert sizes == sorted(sizes)


def test_the_views_are_in_the_menu_and_in_the_note(page: Any, pages: Pages) -> None:
    view(page, pages, "front").get_by_test_id("saved-views-trigger").click()
    names = page.locator("[data-testid^=saved-views-item-]")
    names.first.wait_for()
    assert tuple(names.all_inner_texts()) == NAMES
    view(page, pages, "front")
    with page.context.expect_page() as tab:
        page.get_by_role("link", name="By method").click()
    tab.value.get_by_text("Group: ffn").first.wait_for()
    assert tab.value.get_by_test_id("saved-views-trigger").inner_text() == "By method"


def test_the_charts_mark_the_front_among_the_runs_that_are_loaded(page: Any, pages: Pages) -> None:
    view(page, pages, "trained", charts=True)
    page.locator(".js-plotly-plot").nth(3).wait_for()
    page.locator(".parcoords text.label").first.wait_for()
    traces = page.evaluate("() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => plot.data)")
    scatter, logarithmic, curves, test = traces[:4]
    rows = front_rows()
    [points] = scatter
    assert len(points["x"]) == 100  # of the 126
    marked = {
        (x, y)
        for x, y, colour in zip(points["x"], points["y"], points["marker"]["color"], strict=True)
        if colour != GREY
    }
    assert marked == {(row["stored_parameters"], row["score"]) for row in rows}
    assert {len(line["x"]) for line in logarithmic} == {1}
    assert {tuple(line["x"]) for line in curves} == {RUNGS}
    assert len(test[0]["x"]) == len(rows)
    assert page.locator(".parcoords text.label").count() == 5 + 2  # the space's dimensions, the cost and the score
    assert page.get_by_text("Model metrics").count() == 1


def test_failures_and_references(page: Any, pages: Pages) -> None:
    view(page, pages, "failed").locator(TABLE).nth(FAILED - 1).wait_for()
    assert [row["failure"] for row in page.evaluate(CELLS)] == ["diverged: the loss is no number"] * FAILED
    view(page, pages, "references").get_by_text("full (reference)").wait_for()


def test_what_a_person_does_to_the_views_stays(page: Any, pages: Pages) -> None:
    view(page, pages, "all").wait_for_selector(TABLE)
    page.get_by_test_id("saved-views-trigger").click()
    page.get_by_test_id("saved-views-delete-replicates").click()
    page.get_by_role("dialog").get_by_role("button", name=re.compile("delete", re.I)).click()
    page.get_by_test_id("saved-views-trigger").click()
    page.get_by_test_id("saved-views-save-current").click()
    page.get_by_test_id("save-view-name-input").fill("Mine")
    page.get_by_test_id("save-view-save-button").click()
    page.get_by_test_id("share-link-input").wait_for()

    def stored() -> dict[str, str]:
        tags: dict[str, str] = MlflowClient(pages.uri).get_experiment("1").tags
        return {name: text for name, text in tags.items() if name.startswith("mlflow.sharedViewState.")}

    before = stored()
    assert sorted(json.loads(text)["name"] for text in before.values()) == sorted({*NAMES, "Mine"} - {"Replicates"})
    MlflowTracker.open(pages.uri, STUDY, pages.home / "artifacts", {**INFO, "study": STUDY}).front([], [])
    assert stored() == before


def test_of_a_server_the_command_says_where_the_front_is(pages: Pages) -> None:
    said = CliRunner().invoke(cli.app, ["ui", STUDY, "--uri", f"http://127.0.0.1:{pages.port}"])
    assert said.stdout.splitlines() == [pages.printed]
