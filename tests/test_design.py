from __future__ import annotations

import json
from typing import Any

import pytest
from designs import NAMED, random_design

from petl.design import PLACES, RULES, Design, DesignError, Form, Modification, Site, table
from petl.presets import PRESETS, parse

ADAPTER: dict[str, Any] = {"form": "bottleneck", "site": "ffn", "size": 4}


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
    assert one.in_depth(3) == other
    assert Modification(**ADAPTER, layers="2,1").in_depth(3).layers == "top 2"
    assert Modification(**ADAPTER, layers="1,0").in_depth(3).layers == "0,1"
    assert Modification(**ADAPTER, composition="scale", scale=1) == Modification(**ADAPTER)
    with pytest.raises(DesignError, match="layers 0 to 2"):
        Modification(**ADAPTER, layers="3").in_depth(3)
    with pytest.raises(DesignError, match="has 3 layers"):
        Modification(**ADAPTER, layers="top 4").in_depth(3)


def test_json_and_back() -> None:
    designs = [parse(text) for text in (*PRESETS, *NAMED)] + [random_design(seed, 3) for seed in range(100)]
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
    for form, rule in RULES.items():
        assert form in Form
        for site in rule.sites:
            assert any((site, insertion) in PLACES for insertion in rule.insertions)
    assert {site for site, _ in PLACES} == set(Site)
    assert len(table().splitlines()) == len(PLACES) + 1
