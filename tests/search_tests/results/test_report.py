"""The page of a study, and the document that it shows; tests/browser_tests opens it in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import handmade
import pytest
import searched
from published import INFO, record
from pydantic import TypeAdapter
from typer.testing import CliRunner

from search.cli import app, main
from search.results.query import Study
from search.results.report import data, growth, space, words
from search.results.report.data import Document, ReportError, document, to_dict
from search.results.report.growth import attainment
from search.results.report.page import page, page_of, write_page
from search.results.report.space import matters
from search.results.report.watch import write_pages
from search.results.report.words import luck, standard_error, steps
from search.storage.errors import StoreError
from search.tracking.writer import MlflowTracker
from search.trials.record import SeedSummary

ROOM = Path(data.__file__).parent
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028<!--"


def content(*studies: Study) -> dict[str, Any]:
    """What a program reads: JSON, in which nothing is NaN."""
    found: dict[str, Any] = json.loads(json.dumps(to_dict(document(studies)), allow_nan=False))
    return found


class Scripts(HTMLParser):
    """The scripts of a page, as a browser finds them, and the addresses that it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.named: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script"
        self.found += [""] * self._inside
        self.named += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found[-1] += data


# --- the document ---


@pytest.fixture(scope="module")
def big() -> Study:
    return searched.study(400, seed=1, replicates=True)


@pytest.mark.parametrize("what", [handmade.study(), handmade.study([]), handmade.study(second_cost="latency_ms")])
def test_the_document_is_what_its_schema_says(what: Study) -> None:
    found, parser = content(what), TypeAdapter(Document)
    assert parser.dump_python(parser.validate_python(found), mode="json") == found
    assert found["format"] == 1


def test_every_key_is_on_the_page_that_documents_it() -> None:
    text = (ROOM / "README.md").read_text()
    classes = [
        value
        for room in (data, words, growth, space)
        for value in vars(room).values()
        if is_dataclass(value) and value.__module__ == room.__name__
    ]
    assert len(classes) > 8
    missing = [f"{one.__name__}.{each.name}" for one in classes for each in fields(one) if f"`{each.name}`" not in text]
    assert missing == []


def test_the_front_is_that_of_the_command(big: Study) -> None:
    [found] = content(big)["studies"]
    assert found["front"] == json.loads(json.dumps(big.front().to_rows()))
    eligible = {trial["number"] for trial in found["trials"] if trial["eligible"]}
    assert {row["trial"] for row in found["front"]} <= eligible
    over = [trial for trial in found["trials"] if trial["measured"].get("stored_percent", 0) > 5]
    assert over
    assert not [trial for trial in over if trial["eligible"]]


def test_the_answers() -> None:
    """handmade's best is trial 7, its best under 1 % (227,132 parameters) trial 6, and under 0.1 % (22,713) trial 2."""
    [found] = content(handmade.study())["studies"]
    assert [(a["question"], a["trial"]) for a in found["answers"]] == [
        ("best overall", 7),
        ("best under 1 % of the model's parameters", 6),
        ("best under 0.1 % of the model's parameters", 2),
    ]
    assert found["answers"][0]["score"] == pytest.approx(0.6955)
    assert found["answers"][0]["text"] == "384,000 parameters, 1.691 % of the model; prefix 8 + ffn parallel 8 x4"


def test_a_study_without_an_answer_says_why() -> None:
    [found] = content(handmade.study([]))["studies"]
    assert {answer["trial"] for answer in found["answers"]} == {None}
    assert "it has no trials yet" in found["answers"][0]["text"]
    assert found["steps"] == []


def test_only_what_has_an_adapter_is_offered_for_export() -> None:
    records = [
        handmade.trial(0, 0.6, 10),
        handmade.failed(1, "no"),
        handmade.trial(2, 0.5, 0, reference="majority", configuration=None),
        handmade.trial(3, 0.7, 20),
    ]
    what = handmade.study(records)
    rows = (*what.everything[:3], replace(what.everything[3], withdrawn="removed to stay within storage.max_gb"))
    [found] = content(replace(what, everything=rows))["studies"]
    assert [trial["adapter"] for trial in found["trials"]] == [True, False, False, False]
    assert not [step for step in found["steps"] if "export" in (step["command"] or "")]  # 3 is the best


def test_neighbours_have_no_order_where_there_are_two_costs() -> None:
    what = searched.study(60, objectives={**INFO["objectives"], "second_cost": "latency_ms"})  # type: ignore[dict-item]
    known = luck(what, what.front())
    assert (len(known.lines), list(known.unsettled)) == (1, [])


def test_a_curve_ends_with_the_score(big: Study) -> None:
    trial = next(trial for trial in big.trials if trial.score is not None)
    [found] = [each for each in content(big)["studies"][0]["trials"] if each["number"] == trial.number]
    assert [epochs for epochs, _ in found["curve"]] == [1, 3, 9]
    assert found["curve"][-1][1] == found["score"] == trial.score


def test_the_hypervolume_grows_as_the_trials_end(big: Study) -> None:
    """As the front of those that have ended would have it."""
    points = attainment(big)
    assert points[-1].hypervolume == pytest.approx(big.front().hypervolume, rel=1e-5)
    assert points[-1].epochs == pytest.approx(sum(trial.record.epochs for trial in big.trials), rel=1e-5)
    assert {trial.number for trial in big.front()} <= {point.trial for point in points}
    assert [point.hypervolume for point in points] == sorted(point.hypervolume for point in points)
    for point in points[:: max(1, len(points) // 8)]:
        if point.trial is not None:
            then = big.trial(point.trial).record.ended
            assert then is not None
            ended = [row for row in big.everything if (row.record.ended or math.inf) <= then]
            earlier = replace(big, everything=tuple(row for row in ended if not row.record.reference))
            # the reference point is the size of the model, which every complete trial knows
            assert point.hypervolume == pytest.approx(earlier.front().hypervolume, rel=1e-5)


def test_what_matters_is_compared_after_the_same_epochs(big: Study) -> None:
    everything, *bands = matters(big)
    assert (everything.band, everything.epochs) == ("all trials", 3.0)  # a third of 400: more than 50
    assert everything.trials > 100
    assert [band.band for band in bands] == ["under 0.1 %", "0.1 to 1 %", "1 % and more"]
    assert sum(everything.shares.values()) == pytest.approx(1.0, abs=1e-3)


def test_too_few_trials_say_nothing_of_dimensions() -> None:
    [matter] = matters(searched.study(30))
    assert matter.shares == {}
    assert matter.why.endswith("50 say something")
    assert not list(matters(handmade.study()))  # nothing was sampled


# --- words ---


def test_the_standard_error_is_the_binomial_one() -> None:
    assert standard_error(0.7, 2_100) == pytest.approx(0.01)


def test_neighbours_within_the_standard_error_are_named() -> None:
    what = searched.study(of=[handmade.trial(n, accuracy, 10**n) for n, accuracy in ((1, 0.60), (2, 0.605), (3, 0.70))])
    known = luck(what, what.front())
    assert known.by == "rows"
    assert "on 1,600 validation rows the standard error of accuracy is 0.0115 at 0.7000" in known.lines[0]
    assert "1 and 2" in known.lines[1]
    assert known.unsettled == [1, 2]


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (
            searched.study(12, objectives={"score": "loss", "cost": "stored_parameters"}),
            "standard error of loss is not",
        ),
        (handmade.study(), "the number of validation rows is not on record"),
    ],
)
def test_where_luck_is_not_known_that_is_said(what: Study, why: str) -> None:
    known = luck(what, what.front())
    assert (known.by, list(known.intervals)) == ("nothing", [])
    assert why in known.lines[0]


def test_seeds_say_what_is_settled() -> None:
    probabilities = {1: 0.99, 2: 0.5, 3: 0.01}
    what = searched.study(of=[handmade.trial(n, 0.6 + n / 100, 10**n) for n in probabilities])
    summaries = {
        n: SeedSummary(mean=0.6, spread=0.01, seeds=3, failed=0, probability=p, corrected=0.59)
        for n, p in probabilities.items()
    }
    rows = tuple(replace(row, facts={"believed": summaries[row.record.number]}) for row in what.everything)
    known = luck(replace(what, everything=rows), replace(what, everything=rows).front())
    assert known.lines[0].startswith("1 of 3 members are on the true front")
    assert known.lines[0].endswith("1 are open, and 1 owe their place to luck, as surely: 3.")
    assert known.unsettled == [2]
    assert [(one.center, one.half) for one in known.intervals] == [(0.6, 0.01)] * 3


@pytest.mark.parametrize(
    ("status", "replicates", "expected"),
    [
        ("FINISHED", False, ["--set replicates.per_trial=5", "budget.trials=60", "export tweets"]),
        ("FINISHED", True, ["--set replicates.extra=0.5", "budget.trials=60", "export tweets"]),
        ("KILLED", False, ["resume tweets", "--set replicates.per_trial=5", "budget.trials=60", "export tweets"]),
        ("RUNNING", False, ["report tweets --watch"]),
    ],
)
def test_what_to_run_next(status: str, replicates: bool, expected: list[str]) -> None:
    what = searched.study(30, status=status, replicates=replicates)
    found = list(steps(what, what.front(), luck(what, what.front()), 0.05))
    assert [want in (step.command or "") for step, want in zip(found, expected, strict=True)] == [True] * len(expected)


def test_a_front_below_the_majority_is_not_offered() -> None:
    baseline = handmade.trial(3, 0.9, 0, reference="majority", configuration=None)
    [found] = content(handmade.study([handmade.trial(0, 0.5, 10), baseline]))["studies"]
    assert not [step for step in found["steps"] if "export" in (step["command"] or "")]


@pytest.mark.parametrize(("gain", "more"), [(0.02, True), (0.005, False), (None, False)])
def test_more_trials_are_offered_where_the_front_still_grows(gain: float | None, more: bool) -> None:
    what = searched.study(30)
    offered = [step.command or "" for step in steps(what, what.front(), luck(what, what.front()), gain)]
    assert any("budget.trials=60" in command for command in offered) == more


# --- several studies ---


def test_studies_with_the_same_score_stand_side_by_side() -> None:
    found = content(searched.study(20, name="one"), searched.study(25, seed=1, name="other"))
    assert [len(study["trials"]) for study in found["studies"]] == [23, 28]


def test_others_are_refused() -> None:
    other = searched.study(9, name="other", objectives={"score": "loss", "cost": "stored_parameters"})
    with pytest.raises(ReportError, match="the same score; one has accuracy, other has loss: write a page for each"):
        document([searched.study(9, name="one"), other])
    with pytest.raises(ReportError, match="once; received one more than once"):
        document([searched.study(9, name="one")] * 2)


# --- the page ---


def test_a_page_holds_its_document_and_names_nothing_outside() -> None:
    found = content(handmade.study())
    scripts = Scripts(page(found))
    assert len(scripts.found) == 3
    assert json.loads(scripts.found[0]) == found
    assert all(name.startswith(("#", "data:")) for name in scripts.named)


def test_only_the_scripts_of_the_package_may_run_and_nothing_may_be_asked() -> None:
    text = page(content(handmade.study()))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    _, library, script = Scripts(text).found
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in (library, script)}
    assert set(rules["script-src"].split()) == hashes
    assert rules["default-src"] == "'none'"
    assert not {"connect-src", "frame-src", "font-src"} & set(rules)


def test_what_strangers_write_stays_text() -> None:
    named = handmade.trial(0, 0.6, 10, name=HOSTILE, failure=HOSTILE)
    found = content(handmade.study([named, handmade.failed(1, HOSTILE)]))
    text = page(found)
    scripts = Scripts(text)
    assert len(scripts.found) == 3
    assert json.loads(scripts.found[0])["studies"][0]["trials"][0]["name"] == HOSTILE
    assert "<img" not in text.replace((ROOM / "vendor" / "echarts.min.js").read_text(), "")
    assert "innerHTML" not in (ROOM / "page.js").read_text()


def test_the_library_is_the_one_that_was_published() -> None:
    text = (ROOM / "README.md").read_text()
    assert hashlib.sha256((ROOM / "vendor" / "echarts.min.js").read_bytes()).hexdigest() in text
    assert {file.name for file in (ROOM / "vendor").iterdir()} == {"echarts.min.js", "LICENSE", "LICENSE-d3", "NOTICE"}


def test_a_page_of_2000_trials_is_at_most_3_mb() -> None:
    """Written a hundred times smaller: what a trial takes, and what the rest does."""
    small, large = (len(page_of([searched.study(n, seed=2)]).encode()) for n in (60, 260))
    assert small + (large - small) / 200 * (2_000 - 60) < 3_000_000


def test_a_page_is_replaced_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "page.html"
    assert write_page([handmade.study()], file) == file
    before = file.read_text()
    write_page([handmade.study([])], file, every=30)
    assert 'data-reload="30"' in file.read_text()
    assert 'data-reload=""' in before
    assert [path.name for path in file.parent.iterdir()] == ["page.html"]


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=r"the page cannot be written to .*page\.html: .*\. --out names another"):
        write_page([handmade.study()], tmp_path / "file" / "page.html")


# --- the command, on a store ---


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, MlflowTracker]:
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    tracker = MlflowTracker.open(uri, "demo", folder / "artifacts", INFO)
    tracker.begin()
    for number, accuracy in enumerate((0.5, 0.6, 0.7)):
        tracker.publish(record(number, accuracy, 1_000 * (number + 1)))
    return uri, tracker


def test_the_command_prints_the_document_and_nothing_else(store: tuple[str, MlflowTracker]) -> None:
    done = CliRunner().invoke(app, ["report", "demo", "--format", "json", "--uri", store[0]])
    front = CliRunner().invoke(app, ["front", "demo", "--format", "json", "--uri", store[0]])
    assert json.loads(done.stdout)["studies"][0]["front"] == json.loads(front.stdout)


def test_the_command_writes_a_page_here(
    store: tuple[str, MlflowTracker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["report", "demo", "--uri", store[0]])
    assert done.stdout == f"page: {tmp_path}/demo.html\n"
    assert "<title>demo</title>" in (tmp_path / "demo.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "no study 'nothing'"),
        (["demo", "--out", "/dev/null/page.html"], "the page cannot be written to /dev/null/page.html"),
        (["demo", "demo"], "a study stands in a page once"),
    ],
)
def test_what_cannot_be_done_is_one_message(
    words: list[str], message: str, store: tuple[str, MlflowTracker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["petl-search", "report", *words, "--uri", store[0]])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_json_is_neither_a_file_nor_watched(store: tuple[str, MlflowTracker]) -> None:
    for option in (["--watch"], ["--out", "page.html"]):
        done = CliRunner().invoke(app, ["report", "demo", "--format", "json", "--uri", store[0], *option])
        assert done.exit_code == 2


def test_a_watched_page_follows_the_study_to_its_end(store: tuple[str, MlflowTracker], tmp_path: Path) -> None:
    """It loads itself again while the study runs, not afterwards; a store that is away for a while is waited for."""
    uri, tracker = store
    file, seen, said = tmp_path / "page.html", list[str](), list[str]()
    database = Path(uri.removeprefix("sqlite:///"))
    away = database.with_suffix(".away")

    def sleep(seconds: float) -> None:
        assert seconds == 7
        seen.append(file.read_text())
        if len(seen) == 1:
            tracker.publish(record(3, 0.8, 9_000))
        elif len(seen) == 2:
            database.rename(away)
        elif len(seen) == 3:
            away.rename(database)
            tracker.close()

    write_pages(["demo"], file, uri, every=7, say=said.append, sleep=sleep)
    assert ["best overall" in text and 'data-reload="7"' in text for text in seen] == [True] * 3
    assert [text.count('"eligible":true') for text in (*seen, file.read_text())] == [3, 4, 4, 4]
    assert 'data-reload=""' in file.read_text()
    assert any("the page stays as it was: no store at" in line for line in said)


def test_a_study_that_is_not_there_is_not_watched(store: tuple[str, MlflowTracker], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no study 'nothing'"):
        write_pages(["nothing"], tmp_path / "page.html", store[0], every=7)
    assert list(tmp_path.iterdir()) == []
