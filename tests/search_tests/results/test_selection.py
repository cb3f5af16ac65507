"""Rows selected by an expression: beside what SQLite makes of the same expression."""

from __future__ import annotations

import random
import sqlite3
from typing import Any

import pytest

from search.results.selection import SelectionError, columns_of, parse, select

ROWS = [
    {"trial": 0, "size": 3, "share": 0.5, "form": "lora", "ffn.size": "64"},
    {"trial": 1, "size": 7, "form": "prefix", "ffn.size": "learned"},
    {"trial": 2, "share": float("nan"), "form": "lora", "ffn.size": "8"},
    {"trial": 3, "size": -2, "share": 2.0},
]


def numbers(where: str) -> list[int]:
    return [row["trial"] for row in select(ROWS, where)]


def expression(chance: random.Random, depth: int) -> str:
    """A random expression over the columns a and b (numbers) and c (text), in the syntax that SQL shares."""
    kind = chance.choice(("compare", "compare", "in", "text", "not", "and", "or")) if depth else "compare"
    if kind in ("and", "or"):
        return f"({expression(chance, depth - 1)} {kind} {expression(chance, depth - 1)})"
    if kind == "not":
        return f"(not {expression(chance, depth - 1)})"
    operator = chance.choice(("<", "<=", ">", ">=", "==", "!="))
    if kind == "text":
        return f"(c {operator} '{chance.choice('xyz')}')"
    if kind == "in":
        listed = f"({chance.randint(0, 3)}, {chance.randint(0, 3)})"
        return f"({chance.choice('ab')} {chance.choice(('in', 'not in'))} {listed})"
    return f"({chance.choice('ab')} {operator} {chance.choice(('a', 'b', '1', '-2', '0.5'))})"


@pytest.mark.parametrize("seed", range(300))
def test_sqlite_selects_the_same(seed: int) -> None:
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = [
        {
            "n": n,
            "a": chance.choice((None, -2, 0, 0.5, 1, 2)),
            "b": chance.choice((None, -2, 0, 0.5, 1, 2)),
            "c": chance.choice((None, "x", "y", "z")),
        }
        for n in range(30)
    ]
    text = expression(chance, 3)
    database = sqlite3.connect(":memory:")
    database.execute("create table rows (n, a, b, c)")
    database.executemany("insert into rows values (:n, :a, :b, :c)", rows)
    expected = [n for (n,) in database.execute(f"select n from rows where {text} order by n")]
    assert [row["n"] for row in select(rows, text)] == expected, text


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("", [0, 1, 2, 3]),
        ("size > 2", [0, 1]),
        ("not size > 2", [3]),  # trial 2 has no size: neither is true of it
        ("share < 1", [0]),
        ("not share < 1", [3]),  # nor is NaN a share
        ("0 < size < 5", [0]),
        ("ffn.size > 9", [0]),  # numbers in text are numbers, words are none
        ("ffn.size == 'learned'", [1]),
        ("ffn.size in (8, 64)", [0, 2]),
        ("form in ['lora']", [0, 2]),
        ("form != 'lora' or trial == 3", [1, 3]),
        ("-2 == size", [3]),
    ],
)
def test_a_selection(where: str, expected: list[int]) -> None:
    assert numbers(where) == expected


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("size >", r"at character 7 .*cannot be read"),
        ("size = 3", r"at character 6 .*equal is =="),
        ("siz > 3", r"at character 1 .*no column siz; columns: size, trial"),
        ("size > 0 and ffn.siz > 3", r"at character 14 .*no column ffn.siz; columns: ffn.size"),
        ("form == lora", r"at character 9 .*text is quoted: 'lora'"),
        ("form > 5", r"form is text, such as 'lora'"),
        ("size == 'x'", r"size is a number, such as 3"),
        ("__import__('os').getcwd() == 'x'", r"at character 1 .*compares columns"),
        ("size.__class__.x == 'x'", r"no column size.__class__.x"),
        ("size", r"compares columns"),
        ("size + 1 > 2", r"at character 1 .*compares columns"),
        ("size is 3", r"compares columns"),
        ("size in 3", r"is followed by a list"),
        ("size > (3, 4)", r"is followed by a list"),
        ("1 < 2", r"has a column"),
        ("[x for x in size] == 1", r"compares columns"),
        ("(" * 3_000 + "size > 1" + ")" * 3_000, r"cannot be read"),
        ("size > 1" + " " * 20_000, r"at most 10,000 characters"),
    ],
)
def test_a_bad_expression_says_where_and_gives_an_example(where: str, fault: str) -> None:
    with pytest.raises(SelectionError, match=f"(?s){fault}.*"):
        select(ROWS, where)


def test_an_example_is_one() -> None:
    with pytest.raises(SelectionError) as error:
        select(ROWS, "siz > 3")
    parse(str(error.value).rpartition("Example: ")[2])


def test_what_is_missing_comes_last_whichever_the_order() -> None:
    assert [row["trial"] for row in select(ROWS, sort=["share"])] == [0, 3, 1, 2]
    assert [row["trial"] for row in select(ROWS, sort=["-share"])] == [3, 0, 1, 2]
    assert [row["trial"] for row in select(ROWS, sort=["form", "-trial"])] == [2, 0, 1, 3]
    assert [row["trial"] for row in select(ROWS, sort=["ffn.size"])] == [2, 0, 1, 3]  # 8 before 64, then words


def test_columns_and_a_limit() -> None:
    assert select(ROWS, columns=["size", "trial"], limit=2) == [{"size": 3, "trial": 0}, {"size": 7, "trial": 1}]
    assert select(ROWS, "trial == 2", columns=["size"]) == [{"size": None}]
    assert select([]) == []
    for asked in ({"columns": ["siz"]}, {"sort": ["-siz"]}):
        with pytest.raises(SelectionError, match=r"no column 'siz'; columns: size"):
            select(ROWS, **asked)


def test_columns_of_an_expression() -> None:
    assert columns_of("size > 1 and not (ffn.size in (1, 2) or size < 3)") == ["size", "ffn.size"]
