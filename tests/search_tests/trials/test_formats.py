"""Numbers and words as people read them."""

from __future__ import annotations

import pytest

from search.trials import formats
from search.trials.record import State


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (formats.score_text, 0.95, "0.9500"),
        (formats.count_text, 22_713_216, "22,713,216"),
        (formats.percent_text, 1.69113, "1.691"),
        (formats.percent_text, 99.96, "100.0"),
        (formats.seconds_text, 9.96, "10.0"),
        (formats.seconds_text, 3_600.4, "3,600"),
        (formats.amount_text, 8.153, "8.15"),
        (formats.amount_text, 12_345.6, "12,346"),
        (formats.amount_text, 0, "0"),
        (formats.value_text, 25_000, "25,000"),
        (formats.value_text, 0.123456789, "0.123457"),
        (formats.bytes_text, 250_000_000, "0.25 GB"),
        (formats.bytes_text, 11_910_000, "12 MB"),
    ],
)
def test_numbers(write: object, value: float, text: str) -> None:
    assert write(value) == text  # type: ignore[operator]


@pytest.mark.parametrize(
    "write",
    [formats.score_text, formats.count_text, formats.percent_text, formats.seconds_text, formats.amount_text],
)
def test_what_was_not_measured_is_blank(write: object) -> None:
    assert write(None) == ""  # type: ignore[operator]


def test_a_single_seed_has_no_spread() -> None:
    assert formats.spread_text(0.7, None) == "0.7000"
    assert formats.spread_text(0.7, 0.0123) == "0.7000 ± 0.0123"


@pytest.mark.parametrize(
    ("model", "text"),
    [("roberta-base", "roberta-base"), ("facebook/bart-large", "facebook/bart-large"), ("/data/models/mine", "mine"),
     ("~/mine", "mine"), ("./mine/", "mine"), ("package:minilm/model", "minilm"), ("", "")],
)  # fmt: skip
def test_a_model_is_named_without_its_folder(model: str, text: str) -> None:
    assert formats.model_text(model) == text


def test_every_state_has_a_word_and_two_costs_no_column_of_their_own() -> None:
    assert set(formats.STATES) == set(State)
    assert [formats.heading(cost) for cost in ("stored_parameters", "seconds", "latency_ms")] == ["", "", "latency ms"]
