"""What a file holds is what is read, or it is refused with its line. Expected rows are written out, or pandas'."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from petl.data.files import read_table
from petl.tasks import TaskError

ROWS = [{"text": f"review {i}", "label": "good" if i % 2 else "bad", "stars": str(i % 5)} for i in range(12)]


def written(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def rows_of(path: str) -> list[dict[str, Any]]:
    return read_table(path).astype(object).to_dict("records")


def table(separator: str, end: str = "", rows: list[dict[str, str]] = ROWS) -> str:
    lines = [separator.join(rows[0]), *(separator.join(row.values()) + end for row in rows)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(("name", "separator"), [("rows.csv", ","), ("rows.tsv", "\t")])
def test_rows_with_more_or_fewer_fields_than_the_header_are_refused(tmp_path: Path, name: str, separator: str) -> None:
    assert rows_of(written(tmp_path / name, table(separator))) == ROWS
    with pytest.raises(TaskError, match=rf"{name}, line 2: .*4 fields.* 3"):
        read_table(written(tmp_path / name, table(separator, end=separator)))
    longer = table(separator).replace("review 7", f"review{separator} 7")
    with pytest.raises(TaskError, match=r"line 9: .*4 fields"):
        read_table(written(tmp_path / name, longer))
    shorter = table(separator).replace(f"{separator}good{separator}4", "")  # review 9
    with pytest.raises(TaskError, match=r"line 11: .*1 field .* 3"):
        read_table(written(tmp_path / name, shorter))
    broken = table(separator).replace("review 4", "re\nview 4")
    with pytest.raises(TaskError, match=r"line 6: .*1 field"):
        read_table(written(tmp_path / name, broken))


def test_a_line_is_that_of_the_file_behind_quoted_line_ends(tmp_path: Path) -> None:
    text = 'text,label\n"one\ntwo\nthree",a\n\nfour,b,c\n'
    with pytest.raises(TaskError, match=r"line 6: .*3 fields"):
        read_table(written(tmp_path / "rows.csv", text))


@pytest.mark.parametrize("place", [(5, 25), (5, 6), (5,)])
def test_a_tsv_without_quoting_keeps_all_its_rows(tmp_path: Path, place: tuple[int, ...]) -> None:
    texts = [('" ' if i in place else "") + f"row {i}" for i in range(40)]
    texts[3] = '"What?" he said'
    lines = "sentence\tlabel\n" + "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(texts))
    found = rows_of(written(tmp_path / "rows.tsv", lines))
    assert found == [{"sentence": text, "label": str(i % 2)} for i, text in enumerate(texts)]


@pytest.mark.parametrize(("name", "separator"), [("rows.csv", ","), ("rows.tsv", "\t")])
def test_lines_that_can_be_read_in_two_ways_are_refused(tmp_path: Path, name: str, separator: str) -> None:
    """A text begins with a quotation mark, a later one ends with one: a quotation over all rows between, or none."""
    texts = [f"row {i}" for i in range(40)]
    texts[5], texts[25] = '"so it begins', 'and ends"'
    lines = separator.join(("sentence", "label")) + "\n"
    lines += "".join(f"{text}{separator}{i % 2}\n" for i, text in enumerate(texts))
    with pytest.raises(TaskError, match=r"line 7: .*quotation.*line 27"):
        read_table(written(tmp_path / name, lines))


@pytest.mark.parametrize(
    ("body", "line"),
    [('"What?" he said,1\nb,0\n', 2), ('a,1\n"b,0\nc,1\n', 3), ('a,1\nb,0\n"c",0\n"d"" e,1\n', 5)],
)
def test_a_quotation_in_a_csv_that_does_not_end_with_its_field_is_refused(tmp_path: Path, body: str, line: int) -> None:
    with pytest.raises(TaskError, match=rf"rows.csv, line {line}: .*quot"):
        read_table(written(tmp_path / "rows.csv", "text,label\n" + body))


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("name", "separator"), [("rows.csv", ","), ("rows.tsv", "\t"), ("rows.csv.gz", ",")])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_what_a_csv_writer_quotes_is_read_back(
    tmp_path: Path, name: str, separator: str, end: str, quoting: Any, mark: str
) -> None:
    texts = ["a\tb", "a, b", "two\nlines", "two\r\nlines", 'say "so"', '"', "'", " blank ", "NA", "long " * 40_000, "é"]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerows([("text", "label"), *((text, i % 2) for i, text in enumerate(texts))])
    content = (mark + stream.getvalue()).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert rows_of(str(tmp_path / name)) == [{"text": text, "label": str(i % 2)} for i, text in enumerate(texts)]


def test_one_column_of_quoted_texts_is_read_as_quoted(tmp_path: Path) -> None:
    assert rows_of(written(tmp_path / "rows.tsv", 'text\n"one\ntwo"\n\nthree\n')) == [
        {"text": "one\ntwo"}, {"text": "three"},
    ]  # fmt: skip


def test_a_drawn_table_is_read_as_pandas_reads_it(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    signs = np.array([*"ab ,;'", '"', "\n", "\t", "é", ""])
    frame = pd.DataFrame({name: ["".join(draw.choice(signs, 6)) + "." for _ in range(300)] for name in "xyz"})
    for name, separator in (("rows.csv", ","), ("rows.tsv", "\t")):
        frame.to_csv(tmp_path / name, sep=separator, index=name == "rows.csv")
        expected = pd.read_csv(tmp_path / name, sep=separator, dtype=str, keep_default_na=False)
        assert rows_of(str(tmp_path / name)) == expected.astype(object).to_dict("records")
        assert list(read_table(str(tmp_path / name)).columns) == list(expected.columns)


def test_bytes_that_are_no_utf8_are_read_and_noted(tmp_path: Path) -> None:
    frame = read_table(written(tmp_path / "rows.csv", "text,label\nplain,y\ncañon,x\nniño,x\n".encode("latin-1")))
    assert frame["text"].tolist() == ["plain", "ca�on", "ni�o"]
    assert len(frame.attrs["notes"]) == 1
    assert "2 lines" in frame.attrs["notes"][0]
    assert "line 3" in frame.attrs["notes"][0]
    assert read_table(written(tmp_path / "good.csv", "text,label\ncañon �,x\n")).attrs["notes"] == []
    assert rows_of(written(tmp_path / "wide.tsv", "text\tlabel\ncañon\tx\n".encode("utf-16"))) == [
        {"text": "cañon", "label": "x"}
    ]


def test_json_is_read_as_it_is_written(tmp_path: Path) -> None:
    rows = [
        {"text": "2020-01-01", "created_at": "2020-01-01", "label": 9007199254740993, "date": 5},
        {"text": "1.50", "created_at": "x", "label": None, "date": "07"},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name, text in (
        ("rows.jsonl", lines),
        ("marked.jsonl", "\ufeff" + lines.replace("\n", "\r\n\r\n")),
        ("rows.json", json.dumps(rows)),
        ("columns.json", json.dumps({name: [row[name] for row in rows] for name in rows[0]})),
    ):
        assert rows_of(written(tmp_path / name, text)) == rows, name


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.jsonl", '{"text": "a"}\n\n{"text": "b"\n', "rows.jsonl, line 3: "),
        ("rows.jsonl", '{"text": "a"}\n["b"]\n', "line 2: .*object"),
        ("rows.jsonl", '{"text": "a"}\n{"text": "\\ud83d"}\n', "line 2: .*surrogate"),
        ("rows.json", '{"text": "a"}\n{"text": "b"}\n', "line 2.*jsonl"),
        ("rows.json", "3", "list of rows"),
        ("rows.csv", "", "no header"),
    ],
)
def test_damaged_files_are_refused_with_their_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        read_table(written(tmp_path / name, text))
