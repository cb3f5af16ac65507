"""Select rows of trials by an expression, which is parsed and never evaluated.

>>> rows = [{"trial": 0, "ffn.size": "64"}, {"trial": 1}]
>>> select(rows, where="ffn.size > 0 and trial in (0, 1)")
[{'trial': 0, 'ffn.size': '64'}]

The grammar is a part of Python's: comparisons of columns with numbers and quoted text, `in`, `and`, `or`, `not`,
parentheses, and `0 < x < 1`. What a row does not have is missing: a comparison with it is neither true nor false, and
neither is its negation, so the row is not selected (the logic of SQL's NULL).
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, TypeAlias

from petl.errors import UserError

Row: TypeAlias = Mapping[str, Any]
Truth: TypeAlias = bool | None  # None: unknown, since something is missing

EXAMPLE: Final = "stored_percent < 1 and ffn.size > 0"
_COMPARISONS: Final[Mapping[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda value, listed: value in listed,
    ast.NotIn: lambda value, listed: value not in listed,
}
_LONGEST: Final = 10_000  # characters: Python's parser recurses
_RULE: Final = "compares columns with numbers and quoted text by < <= > >= == != in, joined by and, or, not"


class SelectionError(UserError):
    """An expression, a column or a number of rows that makes no sense for the rows there are."""


@dataclass(frozen=True)
class Column:
    """A column, by its name in the rows."""

    name: str
    at: int  # where it stands in the expression


Operand: TypeAlias = Column | float | str | tuple[float | str, ...]


@dataclass(frozen=True)
class Comparison:
    """One comparison of two operands."""

    left: Operand
    compare: Callable[[Any, Any], bool]
    right: Operand

    def __call__(self, row: Row) -> Truth:
        numeric = any(_is_number(operand) for operand in (self.left, self.right))
        left, right = (_value(operand, row, numeric) for operand in (self.left, self.right))
        if left is None or right is None:
            return None
        if not isinstance(right, tuple) and isinstance(left, str) != isinstance(right, str):
            left, right = str(left), str(right)  # two columns, or text beside a number
        return self.compare(left, right)


@dataclass(frozen=True)
class Junction:
    """`and` or `or` over conditions: `decides` is the truth that one of them suffices for."""

    conditions: tuple[Condition, ...]
    decides: bool

    def __call__(self, row: Row) -> Truth:
        truths = [condition(row) for condition in self.conditions]
        return self.decides if self.decides in truths else None if None in truths else not self.decides


@dataclass(frozen=True)
class Negation:
    """`not` of a condition."""

    condition: Condition

    def __call__(self, row: Row) -> Truth:
        truth = self.condition(row)
        return None if truth is None else not truth


Condition: TypeAlias = Comparison | Junction | Negation


def parse(text: str) -> Condition:
    """Return the condition that an expression states. Raises SelectionError, which says where it is wrong."""
    if len(text) > _LONGEST:
        raise SelectionError(f"an expression has at most {_LONGEST:,} characters; received {len(text):,}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        at = (getattr(error, "offset", None) or len(text) + 1) - 1  # 0 is the end, to Python's parser
        hint = ": equal is ==" if text.strip()[at : at + 1] == "=" else ""
        raise _wrong(text.strip(), at, f"it cannot be read{hint}") from None
    return _condition(tree, text.strip())


def select(
    rows: Iterable[Row],
    where: str = "",
    sort: Sequence[str] = (),
    columns: Sequence[str] = (),
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of which `where` is true, in the order of the columns `sort` (`-name`: the largest first).

    What is missing comes last, whichever the order. `columns` are those that are kept, by default all that a row has.
    Raises SelectionError for an expression that cannot be read, columns that no row has, and comparisons of text with
    numbers.
    """
    rows = list(rows)
    known = list(dict.fromkeys(name for row in rows for name in row))
    condition = parse(where) if where.strip() else None
    keys = [(name.removeprefix("-"), name.startswith("-")) for name in sort]
    for name in [*(name for name, _ in keys), *columns]:
        _require(name, known, f"no column {name!r}")
    if condition:
        for comparison in _comparisons(condition):
            _check(comparison, rows, known, where)
    found = [row for row in rows if condition is None or condition(row) is True]
    for name, largest in reversed(keys):  # sorting is stable: the first key is the last to sort by
        present = [row for row in found if _present(row.get(name)) is not None]
        missing = [row for row in found if _present(row.get(name)) is None]
        found = sorted(present, key=lambda row: _order(row[name]), reverse=largest) + missing
    if limit is not None and limit < 0:
        raise SelectionError(f"a limit is a number of rows; received {limit}")
    kept = found[:limit]
    return [{name: row.get(name) for name in columns} if columns else dict(row) for row in kept]


def columns_of(where: str) -> list[str]:
    """Return the names of the columns in an expression, in its order."""
    found = [
        operand.name
        for comparison in (_comparisons(parse(where)) if where.strip() else ())
        for operand in (comparison.left, comparison.right)
        if isinstance(operand, Column)
    ]
    return list(dict.fromkeys(found))


def _condition(node: ast.expr, text: str) -> Condition:
    if isinstance(node, ast.BoolOp):
        return Junction(tuple(_condition(value, text) for value in node.values), isinstance(node.op, ast.Or))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return Negation(_condition(node.operand, text))
    if isinstance(node, ast.Compare):
        nodes = [node.left, *node.comparators]
        parts = [
            _comparison(left, operation, right, text)
            for left, operation, right in zip(nodes, node.ops, nodes[1:], strict=False)
        ]
        return parts[0] if len(parts) == 1 else Junction(tuple(parts), False)
    raise _wrong(text, node.col_offset, f"an expression {_RULE}")


def _comparison(left: ast.expr, operation: ast.cmpop, right: ast.expr, text: str) -> Comparison:
    if type(operation) not in _COMPARISONS:
        raise _wrong(text, right.col_offset, f"an expression {_RULE}")
    listed = isinstance(operation, ast.In | ast.NotIn)
    comparison = Comparison(_operand(left, text), _COMPARISONS[type(operation)], _operand(right, text))
    if isinstance(comparison.left, tuple) or isinstance(comparison.right, tuple) != listed:
        raise _wrong(
            text, right.col_offset, "`in` is followed by a list such as (16, 32), the other comparisons by one value"
        )
    if not any(isinstance(operand, Column) for operand in (comparison.left, comparison.right)):
        raise _wrong(text, left.col_offset, "a comparison has a column")
    return comparison


def _operand(node: ast.expr, text: str) -> Operand:
    match node:
        case ast.Constant(value=bool() as truth):
            return str(truth).lower()  # as flat parameters have it
        case ast.Constant(value=int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Tuple(elts=items) | ast.List(elts=items):
            operands = [_operand(item, text) for item in items]
            values = tuple(value for value in operands if isinstance(value, str | int | float))
            if len(values) == len(operands):
                return values
        case ast.Name() | ast.Attribute():
            if name := _name(node):
                return Column(name, node.col_offset)
    raise _wrong(text, node.col_offset, f"an expression {_RULE}")


def _name(node: ast.expr) -> str:
    """Return a dotted name, "" for anything else."""
    if isinstance(node, ast.Attribute):
        owner = _name(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return node.id if isinstance(node, ast.Name) else ""


def _comparisons(condition: Condition) -> Iterator[Comparison]:
    if isinstance(condition, Comparison):
        yield condition
    else:
        parts = condition.conditions if isinstance(condition, Junction) else (condition.condition,)
        for part in parts:
            yield from _comparisons(part)


def _check(comparison: Comparison, rows: Sequence[Row], known: Sequence[str], text: str) -> None:
    """Raise SelectionError for a column that no row has, and for one that is never of the other operand's kind."""
    for column, other in ((comparison.left, comparison.right), (comparison.right, comparison.left)):
        if not isinstance(column, Column):
            continue
        if column.name not in known and column.name.isidentifier() and isinstance(other, Column):
            raise _wrong(
                text, column.at, f"there is no column {column.name}, and text is quoted: '{column.name}'", known
            )
        _require(column.name, known, f"there is no column {column.name}", text, column.at)
        values = [value for row in rows if (value := _present(row.get(column.name))) is not None]
        if not values or isinstance(other, Column):
            continue
        if _is_number(other) and all(_number(value) is None for value in values):
            raise _wrong(text, column.at, f"{column.name} is text, such as {str(values[0])!r}, and has no numbers")
        texts = isinstance(other, str) or (isinstance(other, tuple) and all(isinstance(one, str) for one in other))
        if texts and not any(isinstance(value, str) for value in values):
            raise _wrong(text, column.at, f"{column.name} is a number, such as {values[0]}, and has no text")


def _require(name: str, known: Sequence[str], fault: str, text: str = "", at: int = 0) -> None:
    if name not in known:
        raise _wrong(text, at, fault, [*get_close_matches(name, known, 3), *known])


def _wrong(text: str, at: int, fault: str, columns: Sequence[str] = ()) -> SelectionError:
    where = f"the expression is wrong at character {at + 1} ({text[at : at + 20]!r}): " if text else ""
    listed = f"; columns: {', '.join(dict.fromkeys(columns))}" if columns else ""
    return SelectionError(f"{where}{fault}{listed}. Example: {EXAMPLE}")


def _value(operand: Operand, row: Row, numeric: bool) -> Any:
    """Return what an operand is in a row, None for what is missing; text that should be a number is missing."""
    if not isinstance(operand, Column):
        return operand
    value = _present(row.get(operand.name))
    return _number(value) if numeric and value is not None else value


def _is_number(operand: Operand) -> bool:
    """Return whether an operand is a number, or a list of them."""
    values = operand if isinstance(operand, tuple) else (operand,)
    return bool(values) and all(isinstance(value, int | float) for value in values)


def _present(value: Any) -> float | str | None:
    """Return a cell's value, None for what is missing: no value, or no number."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else str(value).lower()


def _number(value: float | str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _order(value: Any) -> tuple[bool, Any]:
    """Return a key by which numbers, also those in text, come before words."""
    present = _present(value)
    number = _number(present) if present is not None else None
    return (number is None, str(present) if number is None else number)
