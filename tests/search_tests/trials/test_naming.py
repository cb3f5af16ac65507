"""Names of trials, and their parameters flat."""

from __future__ import annotations

from dataclasses import replace

import pytest

from petl.configuration import Configuration, Training
from petl.design import Composition, Design, Form, Insertion, LayerNorm, Modification, Site
from petl.presets import parse
from search.trials.naming import flat_parameters, label, method, run_name
from search.trials.record import State, TrialRecord

MAM = Design(
    (
        Modification(form=Form.PREFIX, site=Site.HEADS, composition=Composition.GATE, size=16),
        Modification(form=Form.BOTTLENECK, site=Site.FFN, composition=Composition.SCALE, size=64, scale=4.0),
    )
)
COMPLETE = TrialRecord(number=3, state=State.COMPLETE, configuration=Configuration(MAM), name="mam")


def test_flat_parameters_names() -> None:
    assert flat_parameters(Configuration(MAM, Training(dropout=0.1), seed=7)) == {
        "prefix.length": "16",
        "ffn.size": "64",
        "ffn.insertion": "parallel",
        "ffn.scale": "4.0",
        "layers": "all",
        "head": "true",
        "learning_rate": "0.001",
        "epochs": "3.0",
        "batch_size": "32",
        "batch_tokens": "0",
        "accumulation": "1",
        "schedule": "linear",
        "warmup": "0.06",
        "weight_decay": "0.01",
        "beta2": "0.999",
        "epsilon": "1e-08",
        "clip": "1.0",
        "label_smoothing": "0.0",
        "loss_over": "step",
        "dropout": "0.1",
        "validate_every": "1.0",
        "keep": "last",
        "patience": "0",
        "seed": "7",
    }


@pytest.mark.parametrize(
    ("modifications", "expected"),
    [
        ([Modification(form=Form.LOW_RANK, site=Site.QUERY, size=8)], {"query.rank": "8", "query.scale": "1.0"}),
        ([Modification(form=Form.BIAS, site=Site.MODEL)], {"bias": "true"}),
        ([Modification(form=Form.PROMPT, site=Site.INPUT, size=5)], {"prompt.length": "5"}),
        ([Modification(form=Form.MULTI_HEAD, site=Site.HEADS, size=5)], {"multi_head.size": "5"}),
        (
            [
                Modification(
                    form=Form.BOTTLENECK,
                    site=Site.ATTENTION,
                    composition=Composition.LEARNED_SCALE,
                    size=4,
                    layer_norm=LayerNorm.IN,
                    layers="top 2",
                ),
                Modification(form=Form.LOW_RANK, site=Site.VALUE, size=2),
            ],
            {
                "attention.scale": "learned",
                "attention.layer_norm": "in",
                "attention.layers": "top 2",
                "value.layers": "all",
            },
        ),
        (
            [
                Modification(form=Form.BOTTLENECK, site=Site.FFN, size=4),
                Modification(form=Form.BOTTLENECK, site=Site.FFN, insertion=Insertion.SEQUENTIAL, size=6),
            ],
            {"ffn.size": "6", "ffn.insertion": "sequential", "ffn_2.size": "4", "ffn_2.insertion": "parallel"},
        ),
    ],
)
def test_flat_parameters_of_each_form(modifications: list[Modification], expected: dict[str, str]) -> None:
    flat = flat_parameters(Configuration(Design(tuple(modifications))))
    assert expected.items() <= flat.items()


def test_labels_and_run_names() -> None:
    unnamed = replace(COMPLETE, name="")
    assert [label(one) for one in (unnamed, COMPLETE, replace(COMPLETE, reference="full"))] == [
        MAM.describe(),
        "mam",
        "full",
    ]
    assert label(replace(unnamed, configuration=None)) == ""
    assert run_name(COMPLETE) == "3 mam"
    assert run_name(replace(COMPLETE, name="")) == "3 prefix 16 + ffn 64"
    assert run_name(replace(COMPLETE, reference="full")) == "full (reference)"
    assert len(run_name(replace(COMPLETE, name="x" * 200))) == 80


@pytest.mark.parametrize(
    ("text", "name", "parts"),
    [
        ("lora:rank=8", "3 lora 8", "lora"),
        ("mam:length=16,size=64", "3 prefix 16 + ffn 64", "prefix + ffn"),
        ("lora:rank=2+ia3", "3 lora 2 + rescale", "lora + rescale"),
        ("head_only", "3 head only", "head only"),
        ("full", "3 full", "full"),
    ],
)
def test_a_run_is_named_by_parts_and_sizes_and_grouped_by_parts(text: str, name: str, parts: str) -> None:
    design = parse(text)
    assert run_name(replace(COMPLETE, name="", configuration=Configuration(design))) == name
    assert method(design) == parts
