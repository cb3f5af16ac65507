"""Patterns of paths, as PEFT's configurations have them, matched within bounds.

They are regular expressions that others wrote, and a search that backtracks may not end on one. Here all ways through
a pattern are followed at once: where a part can end, from a position, is found once, however many ways lead there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_LONGEST: Final = 1_000  # characters of a pattern
_DEEPEST: Final = 20  # groups in groups
_STEPS: Final = 1_000_000  # for all patterns of a configuration; what people write takes some thousand
_WAYS: Final = frozenset("*+?{|()")  # a pattern without them matches in one way, so that Python's own engine may
_ONE: Final = re.compile(r"\\[dDwWsS]|\\[^\w]|\[\^?\]?(?:[^\]\\]|\\.)*\]|[^\\\[\]()*+?{|]")  # what is one character
_COUNT: Final = re.compile(r"([*+?]|\{\d{1,4}(?:,\d{0,4})?\}|\{,\d{1,4}\})\??")


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of a pattern: one character, an anchor, one of `parts`, or these one by one, `low` to `high` times."""

    one: re.Pattern[str] | None = None
    anchor: str = ""
    choice: bool = False
    parts: tuple[_Part, ...] = ()
    low: int = 1
    high: float = 1


class Patterns:
    """Values by pattern, as in PEFT's rank_pattern: a path has that of the first which it ends with.

    Raises ValueError for what is no such pattern, and where matching takes too much.
    """

    def __init__(self, values: Mapping[str, Any] | None) -> None:
        self._steps = 0
        self._rows = [(text, _compiled(text), value) for text, value in (values or {}).items()]

    def of(self, path: str, default: Any) -> Any:
        """Return the value of a path, `default` where no pattern matches."""
        for text, pattern, value in self._rows:
            if self._matches(text, pattern, path):
                return value
        return default

    def _matches(self, text: str, pattern: re.Pattern[str] | _Part, path: str) -> bool:
        if isinstance(pattern, re.Pattern):
            return pattern.match(path) is not None
        known: dict[tuple[_Part, int], set[int]] = {}

        def ends(part: _Part, start: int) -> set[int]:
            if (part, start) not in known:
                self._steps += 1
                if self._steps > _STEPS:
                    raise ValueError(f"the pattern {text[:80]!r} takes too long to match")
                known[part, start] = found(part, start)
            return known[part, start]

        def found(part: _Part, start: int) -> set[int]:
            if part.one:
                return {start + 1} if start < len(path) and part.one.fullmatch(path[start]) else set()
            if part.anchor:
                return {start} if start == (0 if part.anchor == "^" else len(path)) else set()
            reached, at = ({start} if not part.low else set()), {start}
            most = len(path) + 2  # more repetitions than that reach nothing else
            for number in range(1, int(min(part.high, max(part.low, most), most)) + 1):
                at = once(part, at)
                if number >= min(part.low, most):
                    if at <= reached:
                        break
                    reached |= at
            return reached

        def once(part: _Part, at: set[int]) -> set[int]:
            if part.choice:
                return {end for start in at for other in part.parts for end in ends(other, start)}
            for other in part.parts:
                at = {end for start in at for end in ends(other, start)}
            return at

        starts = [0, *(number + 1 for number, letter in enumerate(path) if letter == ".")]
        return any(len(path) in ends(pattern, start) for start in starts)


def _compiled(text: str) -> re.Pattern[str] | _Part:
    try:
        if len(text) > _LONGEST:
            raise ValueError(f"it has more than {_LONGEST} characters")
        if _WAYS.isdisjoint(text):
            return re.compile(rf"(.*\.)?({text})$")
        part, rest = _alternatives(text, 0)
        if rest:
            raise ValueError(f"{rest[:20]!r} is not understood")
        return part
    except (re.error, ValueError) as error:
        raise ValueError(f"{text[:80]!r} is no pattern of paths: {error}") from None


def _alternatives(text: str, depth: int) -> tuple[_Part, str]:
    """Return what is written up to the end of a group, and the text that follows."""
    if depth > _DEEPEST:
        raise ValueError(f"groups are nested more than {_DEEPEST} deep")
    parts = []
    while True:
        part, text = _sequence(text, depth)
        parts.append(part)
        if not text.startswith("|"):
            return _Part(choice=True, parts=tuple(parts)), text
        text = text[1:]


def _sequence(text: str, depth: int) -> tuple[_Part, str]:
    parts = []
    while text and text[0] not in "|)":
        if text[0] == "(":
            part, text = _alternatives(text[1:].removeprefix("?:"), depth + 1)
            if not text:
                raise ValueError("a group has no end")
            text = text[1:]
        elif text[0] in "^$":
            part, text = _Part(anchor=text[0]), text[1:]
        elif one := _ONE.match(text):
            part, text = _Part(one=re.compile(one[0])), text[one.end() :]
        else:
            raise ValueError(f"{text[:20]!r} is not understood")
        if count := _COUNT.match(text):
            low, high = _bounds(count[1])
            part, text = _Part(parts=(part,), low=low, high=high), text[count.end() :]
        parts.append(part)
    return _Part(parts=tuple(parts)), text


def _bounds(count: str) -> tuple[int, float]:
    """Return the fewest and the most repetitions."""
    if count in ("*", "+", "?"):
        return int(count == "+"), 1 if count == "?" else float("inf")
    low, comma, high = count[1:-1].partition(",")
    return int(low or 0), int(high) if high else float("inf") if comma else int(low)
