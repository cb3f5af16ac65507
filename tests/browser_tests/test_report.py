"""The page of a study in a real browser: Debian's chromium, driven by playwright."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import handmade
import pytest
import searched
from chromium import chromium, needed

from search.results.query import Study
from search.results.report.data import document, to_dict
from search.results.report.page import page

needed()

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


class Opened:
    """A page in the browser: what it asked for, and what it complained of."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.view = browser.new_context(**options).new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.view.on("request", lambda request: self.requests.append(request.url))
        self.view.on("console", lambda message: self.complaints.append(message.text))
        self.view.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.view.goto(file.as_uri())
        self.view.wait_for_selector("body[data-ready]", state="attached")

    def text(self, selector: str) -> str:
        text: str = self.view.locator(selector).inner_text()
        return text

    def cells(self, selector: str) -> list[list[str]]:
        rows: list[list[str]] = self.view.eval_on_selector_all(
            selector, "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
        )
        return rows


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def content(*studies: Study) -> dict[str, Any]:
    return to_dict(document(studies))


def written(folder: Path, *studies: Study) -> Path:
    file = folder / "page.html"
    file.write_text(page(content(*studies)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def study() -> Study:
    return searched.study(120, seed=3, replicates=True)


@pytest.fixture
def opened(browser: Any, study: Study, tmp_path: Path) -> Iterator[Opened]:
    found = Opened(browser, written(tmp_path, study), **DESKTOP)
    yield found
    found.view.context.close()


def test_what_is_shown_is_the_front(opened: Opened, study: Study) -> None:
    """As `petl-search front --format json` prints it."""
    rows = json.loads(json.dumps(study.front().to_rows()))
    shown = opened.cells("tr[data-member]")
    heads = opened.cells("#front-tables thead tr")[0]
    named = [dict(zip(heads, cells, strict=True)) for cells in shown]
    assert [int(row["trial"]) for row in named] == [row["trial"] for row in rows]
    assert [row["design"] for row in named] == [row["design"] for row in rows]
    assert [row["accuracy"] for row in named] == [f"{row['score']:.4f}" for row in rows]
    assert [row["parameters"] for row in named] == [f"{row['stored_parameters']:,}" for row in rows]
    assert [row["on the true front"] for row in named] == [f"{100 * row['believed_probability']:.0f} %" for row in rows]
    assert [row["±"] for row in named] == [f"{row['believed_spread']:.4f}" for row in rows]


def test_the_points_in_the_picture_are_the_front_too(opened: Opened, study: Study) -> None:
    drawn = opened.view.evaluate(
        """() => echarts.getInstanceByDom(document.getElementById("front-chart")).getOption().series
            .filter(one => one.type === "scatter" && one.name === "front").flatMap(one => one.data)
            .map(item => [item.trial, Math.round(10 ** item.value[0]), item.value[1]])"""
    )
    members = {trial.number: trial for trial in study.front()}
    assert [number for number, _, _ in drawn] == list(members)
    assert [score for _, _, score in drawn] == [trial.score for trial in members.values()]
    assert all(size == members[n].cost for n, size, _ in drawn if members[n].cost)


def test_nothing_is_asked_and_nothing_complains(opened: Opened) -> None:
    assert [url.partition(":")[0] for url in opened.requests] == ["file"]
    assert opened.complaints == []
    assert opened.view.evaluate("fetch('https://example.org').then(() => 'asked', () => 'refused')") == "refused"


def test_the_answers_are_those_of_python(opened: Opened, study: Study) -> None:
    cards = opened.view.locator(".card").all_inner_texts()
    for card, limit in zip(cards, (None, "1%", "0.1%"), strict=True):
        best = study.front(max_parameters=limit).best()
        assert f"trial {best.number}:" in card
        assert f"{best.score:.4f}" in card


@pytest.mark.parametrize("limit", [0, 20_000, 300_000, 2_000_000])
def test_the_best_under_a_limit_is_that_of_the_command(opened: Opened, study: Study, limit: int) -> None:
    opened.view.locator("#limit-number").fill(str(limit))
    best = study.front(max_parameters=limit).best()
    assert opened.text("#limit-answer").startswith(f"trial {best.number}, accuracy {best.score:.4f}")


def test_the_slider_moves_by_keys_and_names_its_value(opened: Opened, study: Study) -> None:
    slider = opened.view.locator("#limit-range")
    slider.focus()
    slider.press("Home")
    assert opened.view.locator("#limit-number").input_value() == "0"
    sizes = [0.0]
    for _ in range(5):
        for _ in range(20):
            slider.press("ArrowRight")
        sizes.append(float(opened.view.locator("#limit-number").input_value()))
    assert sizes == sorted(set(sizes))
    best = study.front(max_parameters=int(sizes[-1])).best()
    assert opened.text("#limit-answer").startswith(f"trial {best.number},")
    assert slider.get_attribute("aria-valuetext").endswith("stored parameters")


@pytest.mark.parametrize("cost", ["stored_percent", "peak_memory_mb", "latency_ms"])
def test_other_limits(opened: Opened, study: Study, cost: str) -> None:
    opened.view.locator("#limit-cost").select_option(cost)
    values = sorted(getattr(trial.measurements, cost) for trial in study.eligible())
    limit = values[len(values) // 2]
    opened.view.locator("#limit-number").fill(repr(limit))
    under = [trial for trial in study.eligible() if getattr(trial.measurements, cost) <= limit]
    best = max(under, key=lambda trial: trial.score or 0.0)
    assert opened.text("#limit-answer").startswith(f"trial {best.number},")


def test_a_trial_is_reached_by_keys_alone(opened: Opened, study: Study) -> None:
    members = [trial.number for trial in study.front()]
    view = opened.view
    for _ in range(40):
        view.keyboard.press("Tab")
        if view.evaluate("document.activeElement.id") == "front-chart":
            break
    else:
        pytest.fail("the picture is not reached by the tab key")
    view.keyboard.press("ArrowRight")
    assert opened.text("#trial-title").startswith(f"trial {members[0]}, on the front")
    view.keyboard.press("ArrowRight")
    assert opened.text("#trial-title").startswith(f"trial {members[1]},")
    view.keyboard.press("Escape")
    assert not view.locator("#trial").is_visible()


def test_a_click_shows_a_trial_with_its_commands(opened: Opened, study: Study) -> None:
    member = study.front()[-1]
    x, y = opened.view.evaluate(
        """number => {
            const chart = echarts.getInstanceByDom(document.getElementById("front-chart"));
            const all = chart.getOption().series.filter(one => one.type === "scatter").flatMap(one => one.data);
            return chart.convertToPixel("grid", all.find(item => item.trial === number).value);
        }""",
        member.number,
    )
    opened.view.locator("#front-chart").click(position={"x": x, "y": y})
    assert member.design_text in opened.text("#trial")
    commands = opened.view.locator("#trial-commands code").all_inner_texts()
    assert [re.sub(r"^.*petl-search |^.*search\.cli ", "", command).split(" --uri")[0] for command in commands] == [
        f"show tweets {member.number}",
        f"export tweets {member.number} my-adapter",
        f"import search; model = search.load_study('tweets', 'sqlite:///nowhere.db').trial({member.number}).load_model()",
    ]
    for epochs, score in member.record.rungs.items():
        assert f"{epochs:g}: {score:.4f}" in opened.text("#trial-curve")


def test_part_of_the_space_is_kept(opened: Opened, study: Study) -> None:
    view = opened.view
    view.locator("#space-axis").select_option(label="ffn.size")
    view.locator("#space-from").select_option(label="0")
    view.locator("#space-to").select_option(label="0")
    view.locator("#space-keep").click()
    sampled = [trial for trial in study.trials if trial.record.rungs]
    without = [trial for trial in sampled if trial.record.params["ffn.size"] == 0]
    assert opened.text("#space-kept").startswith(f"{len(without)} of {len(sampled)} trials are kept")
    view.locator("#all-details summary").click()
    view.locator("#all-table tbody").wait_for()
    assert len(opened.cells("#all-table tbody tr")) == len(without)
    view.locator("#space-clear").click()
    assert opened.text("#space-kept").startswith(f"{len(sampled)} of {len(sampled)} trials")


def test_part_of_the_space_is_kept_by_the_mouse(opened: Opened, study: Study) -> None:
    """The lower part of the first axis, which is that of the dimension that the first option names."""
    view = opened.view
    name = view.locator("#space-axis option").first.inner_text()
    values = sorted({trial.record.params[name] for trial in study.trials})
    middle = len(values) // 2
    view.locator("#space-chart").scroll_into_view_if_needed()
    view.wait_for_selector("#space-chart canvas")
    pixels = view.evaluate(
        """() => {
            const box = document.getElementById("space-chart").getBoundingClientRect();
            const chart = echarts.getInstanceByDom(document.getElementById("space-chart"));
            const area = chart.getModel().getComponent("parallel").coordinateSystem.getRect();
            return [box.x + area.x, box.y + area.y, area.height];
        }"""
    )
    x, top, height = pixels
    view.mouse.move(x, top + height - 1)
    view.mouse.down()
    view.mouse.move(x, top + 0.75 * height)
    view.mouse.move(x, top + height * (1 - (middle + 0.6) / len(values)))  # a little above the value's place
    view.mouse.up()
    sampled = [trial for trial in study.trials if trial.record.rungs]
    low = [trial for trial in sampled if trial.record.params[name] <= values[middle]]
    view.wait_for_function("document.getElementById('space-kept').innerText.includes('kept')")
    assert opened.text("#space-kept").startswith(f"{len(low)} of {len(sampled)} trials are kept")


def test_all_trials_are_sorted_by_any_column(opened: Opened, study: Study) -> None:
    opened.view.locator("#all-details summary").click()
    opened.view.locator("#all-table th button", has_text="last accuracy").click()
    rows = opened.cells("#all-table tbody tr")
    scores = [float(cells[3]) for cells in rows if cells[3]]
    assert len(rows) == len(study.all_trials)
    assert scores == sorted(scores, reverse=True)


def test_every_control_has_a_name(opened: Opened) -> None:
    unnamed = opened.view.eval_on_selector_all(
        "button, input, select, [role=img], [role=group], [role=region]",
        """all => all.filter(one => !(one.getAttribute("aria-label") || one.textContent.trim()
            || [...(one.labels ?? [])].some(label => label.textContent.trim()))).map(one => one.outerHTML)""",
    )
    assert unnamed == []


@pytest.mark.parametrize("what", [(), ("trial",)])
def test_a_phone_scrolls_in_one_direction(browser: Any, study: Study, tmp_path: Path, what: tuple[str, ...]) -> None:
    opened = Opened(browser, written(tmp_path, study), **PHONE)
    if what:
        opened.view.locator("tr[data-member] button").first.click()
    assert opened.view.evaluate("document.documentElement.scrollWidth") == 390
    opened.view.context.close()


def test_strangers_write_text(browser: Any, tmp_path: Path) -> None:
    """A name, a failure and a reference; shown wherever they may be."""
    records = [
        handmade.trial(0, 0.6, 10, name=HOSTILE),
        handmade.failed(1, HOSTILE),
        handmade.trial(2, 0.7, 99, reference=HOSTILE),
    ]
    opened = Opened(browser, written(tmp_path, handmade.study(records)), **DESKTOP)
    opened.view.locator("tr[data-member] button").first.click()
    opened.view.locator("#all-details summary").click()
    opened.view.locator("#front-chart").hover()
    assert opened.view.title() == "demo"
    assert opened.view.locator("img").count() == 0
    assert opened.view.locator("script").count() == 3
    assert HOSTILE in opened.text("#trial-design")
    assert opened.complaints == []
    opened.view.context.close()


@pytest.mark.parametrize("records", [[], [handmade.failed(0, None)], handmade.RECORDS])
@pytest.mark.parametrize("objectives", [{}, {"score": "loss"}, {"cost": "latency_ms"}, {"second_cost": "latency_ms"}])
def test_every_study_is_shown(browser: Any, tmp_path: Path, records: Any, objectives: dict[str, str]) -> None:
    study = handmade.study(records, **objectives)
    opened = Opened(browser, written(tmp_path, study), **DESKTOP)
    assert [int(cells[0]) for cells in opened.cells("tr[data-member]")] == [trial.number for trial in study.front()]
    assert opened.complaints == []
    opened.view.context.close()


def test_studies_stand_side_by_side(browser: Any, study: Study, tmp_path: Path) -> None:
    other = searched.study(60, seed=9, name="other")
    opened = Opened(browser, written(tmp_path, study, other), **DESKTOP)
    captions = opened.view.locator("#front-tables caption").all_inner_texts()
    assert captions == ["Front of tweets", "References of tweets", "Front of other", "References of other"]
    opened.view.locator("#limit-number").fill("300000")
    answers = opened.view.locator("#limit-answer p").all_inner_texts()
    for one, answer in zip((study, other), answers, strict=True):
        assert answer.startswith(f"{one.name}: trial {one.front(max_parameters=300_000).best().number},")
    opened.view.context.close()


def test_dark_and_printed(browser: Any, study: Study, tmp_path: Path) -> None:
    opened = Opened(browser, written(tmp_path, study), color_scheme="dark", **DESKTOP)
    background = "getComputedStyle(document.body).backgroundColor"
    assert opened.view.evaluate(background) == "rgb(18, 23, 29)"
    opened.view.emulate_media(media="print")
    assert opened.view.evaluate(background) == "rgb(255, 255, 255)"
    assert not opened.view.locator("#limit").is_visible()
    assert opened.view.locator("#front-tables").is_visible()
    opened.view.set_viewport_size({"width": 794, "height": 1123})  # A4
    assert opened.view.evaluate("document.documentElement.scrollWidth") == 794
    assert opened.view.pdf().startswith(b"%PDF")
    opened.view.context.close()


def test_a_page_that_loads_itself_again_keeps_what_was_chosen(browser: Any, study: Study, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page(content(study), every=1), encoding="utf-8")
    opened = Opened(browser, file, **DESKTOP)
    opened.view.locator("tr[data-member] button").last.click()
    chosen = opened.text("#trial-title")
    file.write_text(page(content(study)), encoding="utf-8")  # the study ended
    opened.view.wait_for_selector('body[data-reload=""][data-ready]', state="attached", timeout=20_000)
    assert opened.text("#trial-title") == chosen
    opened.view.context.close()


def test_inside_another_page_it_is_the_same(browser: Any, study: Study, tmp_path: Path) -> None:
    """As MLflow shows an artifact: in a frame that may run scripts and nothing else."""
    text, file = page(content(study)), tmp_path / "frame.html"
    file.write_text(f'<iframe sandbox="allow-scripts" srcdoc="{html.escape(text)}"></iframe>', encoding="utf-8")
    view = browser.new_page(**DESKTOP)
    complaints: list[str] = []
    view.on("console", lambda message: complaints.append(message.text))
    view.goto(file.as_uri())
    frame = view.frames[1]
    frame.wait_for_selector("body[data-ready]", state="attached")
    frame.locator("tr[data-member] button").last.click()
    frame.locator("nav a", has_text="Space").click()
    assert frame.evaluate("document.activeElement.id") == "space"
    assert frame.locator("#trial-title").inner_text().startswith(f"trial {study.front()[-1].number}, on the front")
    assert complaints == []
    view.close()


def test_2000_trials_fit_and_load(browser: Any, tmp_path: Path) -> None:
    """In 3 MB, and in less than 2 seconds of the processor from the file to the drawn page."""
    file = written(tmp_path, searched.study(2_000, seed=1))
    assert file.stat().st_size < 3_000_000
    context = browser.new_context(**DESKTOP)
    view = context.new_page()
    protocol = context.new_cdp_session(view)
    protocol.send("Performance.enable", {"timeDomain": "threadTicks"})
    view.goto(file.as_uri())
    view.wait_for_selector("body[data-ready]", state="attached")
    metrics = {one["name"]: one["value"] for one in protocol.send("Performance.getMetrics")["metrics"]}
    assert 0 < metrics["TaskDuration"] < 2
    context.close()
