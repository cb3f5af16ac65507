"""Lists of designs beside the paper's tables: on studies made by hand, without a store."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from petl.configuration import Configuration
from petl.measurements import Measurements
from petl.paper.results import FINDINGS, PAPER_TASKS, RESULTS, TABLES, percent, results
from petl.presets import parse
from search.results import tables
from search.results.lists import DesignTable, compare, print_against, print_list
from search.results.query import Study
from search.storage.errors import StoreError
from search.tracking.schema import StudyInfo, StudySummary, TrialRow
from search.trials.record import State, TrialRecord

BASE = 406_291_456
SCALED, PLAIN = "scaled parallel adapter, r = 512, s = 4", "parallel adapter (ffn), r = 512"
TRAINED = "scaled parallel adapter, r = 512, trained s"
DESIGNS = {SCALED: "scaled_parallel:size=512", PLAIN: "parallel:size=512", TRAINED: "scaled_parallel:trained=true"}


def trial(number: int, name: str, seed: int, rouge2: float, loss: float, **changes: Any) -> TrialRow:
    measured = Measurements(
        rouge2=0.01, loss=9.0, base_parameters=BASE, stored_parameters=25_202_688, trained_parameters=25_202_688,
        paper_parameters=25_165_824,
    )  # fmt: skip
    values = {
        "number": number,
        "name": name,
        "state": State.COMPLETE,
        "configuration": Configuration(parse(DESIGNS[name]), seed=seed),
        "measurements": measured,
    }
    test = {"rouge1": 0.4, "rouge2": rouge2, "rougeL": 0.35, "loss": loss}
    whole = {"rouge2": rouge2, "loss": loss}
    facts = {"final": {"test": test, "validation": whole}}
    return TrialRow(record=TrialRecord(**{**values, **changes}), run_id=f"run-{number}", facts=facts)


def study(rows: list[TrialRow], names: tuple[str, ...] = (SCALED, PLAIN), **info: Any) -> Study:
    whole = {
        "objectives": {"score": "rouge2", "cost": "stored_parameters"},
        "backbone": {"model": "facebook/bart-large"},
        "task": {"name": "xsum"},
        "designs": {name: {"design": DESIGNS[name], "training": {}, "seeds": []} for name in names},
        "seeds": [1, 2, 3],
        "paper": {"table": "5", "task": "xsum"},
        **info,
    }
    summary = StudySummary(
        name="t5", experiment_id="1", run_id="p", status="FINISHED", started=0.0, info=StudyInfo.from_dict(whole)
    )
    return Study(summary, tuple(rows), "sqlite:///nowhere.db")


THREE = [
    *(trial(n, SCALED, n + 1, rouge2, 2.0) for n, rouge2 in enumerate((0.21, 0.22, 0.23))),
    *(
        trial(3 + n, PLAIN, n + 1, rouge2, loss)
        for n, (rouge2, loss) in enumerate(((0.20, 2.1), (0.215, 1.9), (0.22, 2.0)))
    ),
]


def printed(what: Any, given: Study, width: int = 200) -> str:
    out = Console(width=width, file=io.StringIO(), color_system=None, markup=False, emoji=False, highlight=False)
    what(given, out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def line(text: str, name: str) -> str:
    return next(line.strip() for line in text.splitlines() if line.strip().startswith(name))


def test_means_and_deviations_are_of_the_test_split_in_percent_points() -> None:
    row = compare(study(THREE)).rows[0]
    spread = row.spread("rouge2", "test")
    assert spread is not None
    assert (spread.mean, spread.deviation, spread.error) == pytest.approx((22.0, 1.0, 1.0 / 3**0.5))
    text = line(printed(print_against, study(THREE)), SCALED)
    for cell in ("22.00 ±1.00", "21.54", "44.85", "36.58", "2.0000 ±0.0000"):
        assert cell in text


def test_one_seed_has_no_spread() -> None:
    text = printed(print_against, study([trial(0, SCALED, 1, 0.21, 2.0)], seeds=[1]))
    assert "21.00" in line(text, SCALED)
    assert "±" not in line(text, SCALED)


def test_counts_stand_beside_what_is_printed() -> None:
    listed = compare(study(THREE))
    assert listed.percent(listed.rows[0]) == pytest.approx(100 * 25_165_824 / 409_600_000)
    text = printed(print_against, study(THREE))
    (counts,) = (row for row in text.splitlines() if SCALED in row and "25,202,688" in row)
    assert counts.split()[-5:] == ["25,202,688", "25,202,688", "25,165,824", "6.144", "6.1"]


def test_missing_running_and_failed_rows_say_so() -> None:
    rows = [
        trial(0, SCALED, 1, 0.2, 2.0),
        trial(1, SCALED, 2, 0, 0, state=State.RUNNING, measurements=None),
        trial(2, SCALED, 3, 0, 0, state=State.FAIL, measurements=None, failure="out of memory: at step 3\nmore"),
    ]
    text = printed(print_against, study(rows))
    assert line(text, SCALED).endswith("1 running, 1 failed")
    assert line(text, PLAIN).rstrip().endswith("3 missing")
    assert f"{SCALED}: trial 2 failed: out of memory: at step 3\n" in text


def verdicts(rows: list[TrialRow], **info: Any) -> dict[str, str]:
    return {one.score: one.verdict for one in compare(study(rows, **info)).comparisons}


def test_findings_are_decided_by_paired_seeds() -> None:
    # differences of R-2: 1, 0.5, 1 with a standard error of 1/6; of the loss: -0.1, 0.1, 0
    assert verdicts(THREE) == {"rouge2": "holds", "loss": "undecided"}
    (rouge2, _) = compare(study(THREE)).comparisons
    assert rouge2.ours is not None
    assert (rouge2.ours.mean, rouge2.ours.error, rouge2.paper) == pytest.approx((2.5 / 3, 1 / 6, 0.56))
    assert verdicts(THREE[:1] + THREE[3:4]) == {"rouge2": "one seed", "loss": "one seed"}
    assert verdicts(THREE[:1] + THREE[4:]) == {"rouge2": "missing", "loss": "missing"}  # no seed in common


def test_a_lower_loss_is_the_better_one() -> None:
    rows = [trial(n, SCALED, n, 0.2, 1.9) for n in (1, 2)] + [trial(n + 2, PLAIN, n, 0.3, 2.0) for n in (1, 2)]
    assert verdicts(rows) == {"rouge2": "does not", "loss": "holds"}


def test_slips_have_footnotes() -> None:
    designs = {"LoRA (ffn), r = 102": {"design": "lora:rank=102,where=ffn,scale=4"}}
    text = printed(print_against, study([], designs=designs, paper={"table": "6", "task": "xsum"}))
    assert "7.2 [a]" in text
    assert "[a] 7.2 %: 7.2 would be r = 120" in text
    assert "44.53 ±0.14" in text
    designs = {"sequential adapter (ffn), r = 200": {"design": "sequential:size=200"}}
    for task, slips in (("xsum", True), ("en-ro", False)):  # one task's slip is none of the other's
        text = printed(print_against, study([], designs=designs, paper={"table": "figure 4", "task": task}))
        assert ("[a] Table 12 prints another R-2" in text) == slips


def test_the_development_split_is_the_whole_one_or_not_shown() -> None:
    """What a search measures may be of a sample of it."""
    row = replace(trial(0, SCALED, 1, 0.2, 2.0), facts={"final": {"validation": {"rouge2": 0.5}}})
    objectives = {"score": "rouge2", "cost": "stored_parameters"}
    assert "50.00" in line(
        printed(print_list, study([row], names=(SCALED,), paper=None, objectives=objectives)), SCALED
    )
    row = replace(row, facts={})
    text = printed(print_list, study([row], names=(SCALED,), paper=None, objectives=objectives))
    assert "1.00" not in line(text, SCALED)


def test_a_list_without_a_table_is_shown_by_its_own_score() -> None:
    text = printed(tables.print_study, study(THREE, paper=None))
    assert "paper's table" not in text
    columns = DesignTable(study(THREE, paper=None)).columns
    assert columns == (("rouge2", "validation"), ("loss", "validation"), ("rouge2", "test"))
    assert "22.00 ±1.00" in line(text, SCALED)
    with pytest.raises(StoreError, match="names no table of the paper to compare with"):
        print_against(study(THREE, paper=None), Console())
    with pytest.raises(StoreError, match="is a search"):
        print_against(study(THREE, designs={}), Console())


def test_as_json_rows() -> None:
    rows = compare(study(THREE)).to_rows()
    assert [row["row"] for row in rows] == [SCALED, PLAIN]
    assert rows[0]["scores"]["test rouge2"] == pytest.approx({"mean": 22.0, "deviation": 1.0})
    assert rows[0]["paper"]["rouge2"] == {"value": 21.54, "spread": None}
    assert (rows[0]["seeds"], rows[0]["printed_percent"]) == (3, "6.1")


def test_no_number_is_cut_on_a_terminal() -> None:
    text = printed(print_against, study(THREE), width=80)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines() if line.startswith(" "))  # sentences fold <= 80
    for number in ("22.00", "±1.00", "25,165,824", "21.54"):
        assert number in text


def test_every_row_and_finding_of_the_paper_is_well_formed() -> None:
    for result in RESULTS:
        for task, scores in result.scores.items():
            assert set(scores) <= set(PAPER_TASKS[task].scores), result.name
            assert PAPER_TASKS[task].headline in scores, result.name
    for table in TABLES:
        for task in PAPER_TASKS:
            names = [result.name for result in RESULTS if table in result.tables and task in result.scores]
            assert len(names) == len(set(names)), (table, task)
    for finding in FINDINGS:
        for table in finding.tables:
            rows = {name for task in PAPER_TASKS for name in results(table, task)}
            assert any({better, worse} <= rows for better, worse in finding.pairs), (table, finding.claim)
        everything = {name for table in finding.tables for task in PAPER_TASKS for name in results(table, task)}
        assert {name for pair in finding.pairs for name in pair} <= everything, finding.claim


@pytest.mark.parametrize("table", [table for table in TABLES if table != "figure 4"])
def test_every_row_of_a_table_has_its_percentage(table: str) -> None:
    names = {name for task in PAPER_TASKS for name in results(table, task)}
    printed: Mapping[str, str] = {name: percent(table, name)[0] for name in names}
    assert all(printed.values()), printed


def test_what_the_paper_finds_is_what_it_prints() -> None:
    """Its own numbers bear out its findings."""
    against = {
        (finding.claim, pair, task)
        for finding in FINDINGS
        for table in finding.tables
        for task in PAPER_TASKS
        for pair in finding.pairs
        if set(pair) <= set(rows := results(table, task))
        and (headline := PAPER_TASKS[task].headline)
        and rows[pair[0]].scores[task][headline].value < rows[pair[1]].scores[task][headline].value
    }
    assert against == set()
