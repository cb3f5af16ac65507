from __future__ import annotations

import json
from typing import Any

import pytest
from designs import FORMS as TESTED
from designs import NAMED, random_design

from petl.design import PLACES, Design, DesignError, Layout, Modification, Site, StackShape, table
from petl.forms.table import FORMS, Form
from petl.presets import PRESETS, parse

ADAPTER: dict[str, Any] = {"form": "bottleneck", "site": "ffn", "size": 4}
LOW_RANK: dict[str, Any] = {"form": "low_rank", "site": "query", "size": 4}
ENCODER: Layout = {"encoder": StackShape(3, ("self",))}
BOTH: Layout = {**ENCODER, "decoder": StackShape(2, ("self", "cross"))}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"form": "conv"}, "form is one of"),
        ({"site": "query"}, "takes site attention or ffn"),
        ({"site": "attention", "insertion": "after_residual"}, "attention takes insertion"),
        ({"composition": "gate"}, "takes composition"),
        ({"size": 0}, "at least 1"),
        ({"reparameterisation": 8}, "has no reparameterisation"),
        ({"scale": 2.0}, "add has no scale"),
        ({"composition": "scale", "scale": -1.0}, "positive number"),
        ({"composition": "scale", "scale": float("nan")}, "positive number"),
        ({"dropout": 1.0}, "dropout lies in"),
        ({"layers": "top 0"}, "layers is"),
        ({"layers": "top"}, "layers is"),
        ({"stacks": "left"}, "stacks is one of"),
        ({"attentions": "self"}, "belongs to no attention"),
        ({"attentions": "none", "site": "attention"}, "attentions is one of"),
    ],
)
def test_what_means_nothing_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(DesignError, match=says):
        Modification(**{**ADAPTER, **change})


def test_a_design_changes_something_once() -> None:
    part = Modification(**ADAPTER)
    with pytest.raises(DesignError, match="changes something"):
        Design(head=False)
    with pytest.raises(DesignError, match="twice"):
        Design((part, part))
    with pytest.raises(DesignError, match="not combined"):
        parse("full+lora")
    with pytest.raises(DesignError, match="schema"):
        Design.from_dict({"schema": 0})
    with pytest.raises(DesignError, match="no field width"):
        Design.from_dict({"schema": 1, "modifications": [{**ADAPTER, "width": 3}]})


def test_order_and_spelling_do_not_enter_the_key() -> None:
    assert parse("mam+bitfit") == parse("bitfit+mam")
    assert parse("mam+bitfit").key == parse("bitfit+mam").key
    one, other = (Modification(**ADAPTER, layers=layers) for layers in ("0,1,2", "all"))
    assert one.canonical(ENCODER) == other
    assert Modification(**ADAPTER, layers="2,1").canonical(ENCODER).layers == "top 2"
    assert Modification(**ADAPTER, layers="1,0").canonical(ENCODER).layers == "0,1"
    assert Modification(**ADAPTER, composition="scale", scale=1) == Modification(**ADAPTER)
    with pytest.raises(DesignError, match="3 layers, 0 to 2"):
        Modification(**ADAPTER, layers="3").canonical(ENCODER)
    with pytest.raises(DesignError, match="has 3 layers"):
        Modification(**ADAPTER, layers="top 4").canonical(ENCODER)


# The same places by different spellings, in a model with an encoder of three layers and a decoder of two.
ALIKE = (
    ({"stacks": "decoder", "attentions": "cross"}, {"attentions": "cross"}),
    ({"stacks": "encoder", "attentions": "self"}, {"stacks": "encoder"}),
    ({"layers": "0,1,2"}, {}),
    ({"layers": "top 3"}, {}),
    ({"stacks": "decoder", "layers": "1,0"}, {"stacks": "decoder"}),
    ({"stacks": "encoder", "layers": "2"}, {"stacks": "encoder", "layers": "top 1"}),
    ({"layers": "2"}, {"stacks": "encoder", "layers": "top 1"}),
    ({"attentions": "cross", "layers": "1"}, {"attentions": "cross", "layers": "top 1"}),
)


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_places_have_one_spelling(one: dict[str, str], other: dict[str, str]) -> None:
    design, twin = (Design((Modification(**LOW_RANK, **where),)) for where in (one, other))
    assert design.canonical(BOTH).key == twin.canonical(BOTH).key
    for spelled in (design, twin):
        (before,), (after,) = spelled.modifications, spelled.canonical(BOTH).modifications
        assert before.covers(BOTH) == after.covers(BOTH)


def test_layers_are_those_of_each_stack() -> None:
    places = Modification(**LOW_RANK, layers="top 1").covers(BOTH)
    assert places == (("encoder", 2, "self"), ("decoder", 1, "self"), ("decoder", 1, "cross"))
    with pytest.raises(DesignError, match="has 2 layers, 0 to 1"):
        Modification(**LOW_RANK, layers="2", stacks="decoder").covers(BOTH)


def test_reparameterisation_folds_away() -> None:
    design = parse("prefix:length=3,reparameterisation=8 + lora + prefix:length=4")
    assert design.folded() == parse("prefix:length=3 + lora + prefix:length=4")
    with pytest.raises(DesignError, match="twice"):
        parse("prefix:length=3,reparameterisation=8 + prefix:length=3")


def test_json_and_back() -> None:
    designs = [parse(text) for text in (*PRESETS, *NAMED)] + [random_design(seed) for seed in range(100)]
    for design in designs:
        again = Design.from_dict(json.loads(json.dumps(design.to_dict())))
        assert again == design
        assert again.key == design.key
        assert design.describe()
    assert len({design.key for design in designs}) == len(set(designs))


def test_keys_last() -> None:
    """A key names trials in stores that outlive a release: change it only with SCHEMA."""
    assert parse("mam").key == "bd3b66419360"
    assert parse("head_only").key == "306943e209b3"


def test_every_rule_has_a_place_and_every_place_a_row() -> None:
    assert set(FORMS) == set(Form) == set(TESTED)
    for rule in FORMS.values():
        for site in rule.sites:
            assert any((site, insertion) in PLACES for insertion in rule.insertions)
    assert {site for site, _ in PLACES} == set(Site)
    assert len(table().splitlines()) == len(PLACES) + 1
