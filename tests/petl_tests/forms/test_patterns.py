"""Patterns of paths: Python's own regular expressions say what matches, where they end."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from petl.forms import patterns
from petl.forms.patterns import Patterns

PATHS = ("", "q_proj", "model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "a.a.aa.b", "aa", "q]-x")


def peft_matches(pattern: str, path: str) -> bool:
    """Whether PEFT takes the pattern for the path."""
    return re.match(rf"(.*\.)?({pattern})$", path) is not None


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj", "proj", r"self_attn\.q_proj", "^model.layers.0.self_attn.q_proj", r"layers\.\d+\..*_proj",
        "layers.(0|11).*", "(?:q|k|v)_proj", ".*", "", "a+", "a{2}", "a{2,}", "a{,2}.*", "(a|b|.)+b", "[^.]+",
        "[]q]+-x", "q[]]-x", r"q\]\-x", "model.*?q_proj", "(self_attn|mlp).(q|down)_proj", "(a?){3}", "((a)*.)*b",
        "a$", "^a+$", r"\w+", r"[\w.]*", r"layers\.[0-9]+\.mlp.*", "(|q)_proj", "(^model|layers).*", "x|a+", "a{0}q",
    ],
)  # fmt: skip
def test_a_pattern_matches_what_it_matches_in_peft(pattern: str) -> None:
    rows = Patterns({pattern: True})
    assert [rows.of(path, False) for path in PATHS] == [peft_matches(pattern, path) for path in PATHS]


PIECES = st.sampled_from(["a", "b", ".", r"\.", "[ab]", "[^a]", "^", "$"])
TEXTS = st.recursive(
    PIECES,
    lambda inner: st.one_of(
        st.builds("".join, st.lists(inner, min_size=1, max_size=3)),
        st.builds("({}|{})".format, inner, inner),
        st.builds("(?:{}){}".format, inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "*?"])),
    ),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.text("ab.", max_size=6))
def test_any_pattern_matches_what_it_matches_in_peft(pattern: str, path: str) -> None:
    assert Patterns({pattern: 1}).of(path, 0) == int(peft_matches(pattern, path))


def test_the_first_that_matches_counts() -> None:
    rows = Patterns({"k_proj": 1, "[qk]_proj": 2, "layers.*": 3})
    assert [rows.of(path, 0) for path in ("m.k_proj", "m.q_proj", "layers.x", "o_proj")] == [1, 2, 3, 0]
    assert Patterns(None).of("q_proj", 5) == 5


@pytest.mark.parametrize(
    "pattern",
    ["q(", "q)", "(?=q)q", "(?P<n>q)", r"(q)\1", "(?i)q", "q**", "[q", "a" * 1001, "(" * 30 + ")" * 30, r"\b?", "q{"],
)
def test_what_is_no_pattern_of_paths_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="is no pattern of paths"):
        Patterns({pattern: 1})


@pytest.mark.parametrize("pattern", ["(([a-z0-9_.]+)+)+!", "((a*)*)*!", "(a|a)*" * 160 + "!", "((a{1,9}){1,9}){1,9}!"])
def test_a_pattern_with_many_ways_is_matched_in_few_steps(pattern: str) -> None:
    rows = Patterns({pattern: 1})
    assert rows.of("model." + "a" * 60, 0) == 0
    assert rows._steps < 100_000


def test_the_steps_of_all_patterns_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_STEPS", 1_000)
    rows = Patterns({f"(.*)*{number}": 1 for number in range(100)})
    with pytest.raises(ValueError, match="takes too long to match"):
        rows.of("a" * 80, 0)
