"""What rows become: labels, what is dropped and why, and what is refused. Counts are those of the tables written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from petl.data.report import DataReport
from petl.data.rows import read_rows, read_splits
from petl.tasks import Task, TaskError, resolve

NAMES = ("negative", "neutral", "positive")


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def task(train: str, validation: str = "", **changes: Any) -> Task:
    paths = {"train": train, **({"validation": validation} if validation else {})}
    return resolve({"name": "mine", "kind": "text-classification", "paths": paths, **changes})


def rows(count: int = 90, first: int = 0, **changes: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {first + i}", "label": "ab"[i % 2], **changes} for i in range(count)]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_numbers_that_begin_at_minus_one_are_refused(tmp_path: Path, split: str) -> None:
    paths = {
        name: lines(tmp_path / f"{name}.jsonl", [{"text": f"{name} {i}", "label": i % 3} for i in range(9)])
        for name in ("train", "validation", "test")
    }
    lines(tmp_path / f"{split}.jsonl", [{"text": f"x {i}", "label": i % 3 - 1} for i in range(9)])
    mine = resolve({"name": "mine", "paths": paths, "labels": NAMES})
    with pytest.raises(TaskError, match=rf"the {split} split has the label '-1'.*positive does not occur.*minimum"):
        read_splits(mine)
    kept = read_splits(resolve({"name": "mine", "paths": paths, "labels": NAMES, "minimum": {"label": 0}}))
    assert len(kept[split]) == 6


def test_hidden_labels_are_left_out_and_counted(tmp_path: Path) -> None:
    train = [{"text": f"t {i}", "label": i % 4 - 1} for i in range(40)]  # all three occur, so -1 is none of them
    train += [{"text": f"n {i}", "label": None} for i in range(2)]
    test = [{"text": f"s {i}", "label": -1} for i in range(9)]
    paths = {"train": lines(tmp_path / "t.jsonl", train), "test": lines(tmp_path / "s.jsonl", test)}
    found = read_rows(resolve({"name": "mine", "paths": paths, "labels": NAMES}))
    assert set(found.frames) == {"train", "validation"}
    assert found.report.splits["train"].dropped == {"without label": 2, "with the label -1, hidden": 10}
    assert sum(map(len, found.frames.values())) == 30


def test_minus_one_may_be_a_label_by_its_name(tmp_path: Path) -> None:
    train = lines(tmp_path / "t.jsonl", [{"text": f"t {i}", "label": i % 3 - 1} for i in range(90)])
    for labels in (None, ("-1", "0", "1")):
        assert set(read_splits(task(train, labels=labels))["train"]["label"]) == {"-1", "0", "1"}


def test_dropped_rows_are_counted_by_reason(tmp_path: Path) -> None:
    table = rows(60) + [{"text": "x", "label": ""}] * 0
    text = "text,label,sure\n" + "".join(f"{row['text']},{row['label']},0.9\n" for row in table)
    text += "".join(f"no label {i},,0.9\n" for i in range(30)) + ",a,0.9\n" + ",,0.9\n"
    text += "unsure,a,0.1\nwhat,b,much\n" + "text 3,b,0.9\ntext 5,a,0.9\n"
    (tmp_path / "t.csv").write_text(text)
    report = read_rows(task(str(tmp_path / "t.csv"), minimum={"sure": 0.5})).report
    train = report.splits["train"]
    assert (train.read, train.dropped) == (
        96, {"sure below 0.5, or no number": 2, "without text": 2, "without label": 30, "repeated": 2},
    )  # fmt: skip
    assert train.kept + report.splits["validation"].kept + report.splits["test"].kept == 60
    shown = "\n".join(report.lines({"text": "text", "label": "label"}))
    assert "of 96 read; dropped: 2 sure below 0.5, or no number, 2 without text, 30 without label, 2 repeated" in shown
    assert "warning: train: 36 of 96 rows are not used" in shown
    assert "1 of the repeated texts have another answer" in shown  # text 5 was b before
    assert "first train row: text 'text 0', label 'a'" in shown


def test_what_looks_wrong_is_said(tmp_path: Path) -> None:
    train = lines(tmp_path / "t.jsonl", rows(100))
    validation = lines(tmp_path / "v.jsonl", rows(50, 100))
    assert list(read_rows(task(train, validation)).report.warnings()) == []

    def said(
        validation: list[dict[str, Any]] | None = None, own: list[dict[str, Any]] | None = None, **changes: Any
    ) -> str:
        first = lines(tmp_path / "own.jsonl", own) if own else train
        second = lines(tmp_path / "v.jsonl", validation or rows(50, 100))
        return "\n".join(read_rows(task(first, second, **changes)).report.warnings())

    assert "validation: 30 of 50 rows are in the train split too" in said(rows(50, 70))
    assert "98 of 100 rows repeat" in said(own=[*rows(2), *([{"text": "text 0", "label": "a"}] * 98)])
    assert "train: 99.0% of the rows have the label 'a'" in said(own=[*rows(2, 900), *rows(98, label="a")])
    assert "validation: 1 of the 2 labels" in said(rows(50, 100, label="a"))
    assert "validation: 5 rows are few" in said(rows(5, 100))
    assert "train: 100 rows have 100 labels; is that the column of the answer?" in said(
        [{"text": f"v {i}", "label": f"a{i}"} for i in range(50)],
        own=[{"text": f"t {i}", "label": f"a{i}"} for i in range(100)],
    )
    assert "no row has the label 'c'" in said(labels=("a", "b", "c"))
    assert "'Good' and 'good' differ in upper and lower case" in said(
        own=[{"text": f"t {i}", "label": ("good", "Good", "a", "b")[i % 4]} for i in range(100)]
    )


def test_a_csv_of_98_equal_rows_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\n" + "same,a\n" * 98 + "".join(f"other {i},b\n" for i in range(29)))
    report = read_rows(task(str(tmp_path / "t.csv"))).report
    assert report.splits["train"].dropped == {"repeated": 97}
    assert "train: 97 of 127 rows are not used" in list(report.warnings())


@pytest.mark.parametrize("other", ["good ", " good", "go\u200bod", "ｇood", "go\u00a0od"])
def test_labels_that_look_the_same_are_refused(tmp_path: Path, other: str) -> None:
    first = "go od" if "\u00a0" in other else "good"
    table = [{"text": f"t {i}", "label": (first, other, "bad")[i % 3]} for i in range(60)]
    with pytest.raises(TaskError, match=r"labels .* differ in blanks or invisible signs alone"):
        read_rows(task(lines(tmp_path / "t.jsonl", table)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["a", "b"], r"the column text of row 31 is a list, received \['a', 'b'\]"),
        ({"en": "a"}, r"row 31 has parts.*text\.en"),
    ],
)
@pytest.mark.parametrize("column", ["text", "label"])
def test_values_that_are_several_are_refused(tmp_path: Path, value: Any, message: str, column: str) -> None:
    table = [*rows(30), {"text": "x", "label": "a", column: value}]
    with pytest.raises(TaskError, match=message.replace("text", column)):
        read_rows(task(lines(tmp_path / "t.jsonl", table)))


@pytest.mark.parametrize("value", [["a", "b"], b"bytes"])
def test_parquet_values_that_are_no_text_are_refused(tmp_path: Path, value: Any) -> None:
    frame = pd.DataFrame({"text": [value] * 30, "label": ["a", "b"] * 15})
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(TaskError, match="the column text of row 1 is"):
        read_rows(task(str(tmp_path / "t.parquet")))


def test_two_columns_of_one_name_are_refused_where_they_are_read(tmp_path: Path) -> None:
    body = "".join(f"t {i},u {i},{'ab'[i % 2]}\n" for i in range(40))
    (tmp_path / "t.csv").write_text("text,text,label\n" + body)
    with pytest.raises(TaskError, match="two columns are named text"):
        read_splits(task(str(tmp_path / "t.csv")))
    (tmp_path / "t.csv").write_text("note,note,label\n" + body)
    with pytest.raises(TaskError, match="two columns are named note"):
        read_splits(task(str(tmp_path / "t.csv"), columns={"text": "note"}))
    (tmp_path / "t.csv").write_text("note,note,text,label\n" + body.replace("t ", "n,t "))
    assert set(read_splits(task(str(tmp_path / "t.csv")))["train"]["label"]) == {"a", "b"}


def test_a_report_is_json(tmp_path: Path) -> None:
    report = read_rows(task(lines(tmp_path / "t.jsonl", rows()))).report
    assert DataReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_a_study_begun_earlier_reads_as_it_did(tmp_path: Path) -> None:
    """Its stored task has no word for how rows are read."""
    (tmp_path / "t.tsv").write_text("text\tlabel\n" + "".join(f'"What?" he said {i}\t{i % 3 - 1}\n' for i in range(90)))
    settings = {"name": "mine", "paths": {"train": str(tmp_path / "t.tsv")}, "labels": list(NAMES)}
    stored = Task.from_stored(settings)
    found = read_splits(stored)
    assert set(pd.concat(found.values())["label"]) == {"negative", "neutral"}
    assert all(text.startswith("What? he said") for text in found["train"]["text"])
    with pytest.raises(TaskError):
        read_splits(resolve(settings))
    assert Task.from_stored({**settings, "reading": "checked"}).reading == "checked"
