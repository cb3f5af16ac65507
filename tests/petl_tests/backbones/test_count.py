from __future__ import annotations

import json
import os
from math import prod
from pathlib import Path

import pytest
import tiny
from designs import NAMED, random_design
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import BertConfig, RobertaConfig

from petl import presets
from petl.attach.attachment import attach
from petl.backbones import plan
from petl.backbones.count import count, stored_shapes
from petl.backbones.model import Backbone, describe, parameters_of
from petl.design import Design, DesignError, Form, LayerNorm, Modification, Site
from petl.forms.vocabulary import Delta
from petl.presets import parse

RANDOM = int(os.environ.get("PETL_RANDOM_DESIGNS", "100"))  # designs a family


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def backbone(family: str, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return tiny.backbone(family, tmp_path_factory.mktemp("configs"))


def designs(family: str, backbone: Backbone) -> list[Design]:
    """All named ones that the family can have, and the random ones."""
    traits = {
        "biases": backbone.has_biases,
        "rotary": family in ("llama", "qwen2", "qwen3"),
        "gate": Site.FFN_GATE in backbone.linears,
    }
    named = [parse(text) for text in NAMED if backbone.has_biases or "bitfit" not in text]
    return named + [random_design(seed, **traits) for seed in range(RANDOM)]


def test_counts_equal_what_is_built_and_saved(family: str, backbone: Backbone, tmp_path: Path) -> None:
    model = tiny.model(family)
    own = parameters_of(model)
    base = sum(p.numel() for p in own.base.values())
    head = sum(p.numel() for p in own.head.values())
    for design in designs(family, backbone):
        counts = count(design, backbone, len(tiny.LABELS))
        with attach(model, design) as attachment:
            tensors = {name: tensor.contiguous() for name, tensor in attachment.state_dict().items()}
            save_file(tensors, tmp_path / "adapter")
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            assert trained == sum(p.numel() for _, p in attachment.named_parameters())
        with safe_open(tmp_path / "adapter", "pt") as file:
            saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        stored = sum(map(prod, saved.values()))
        assert saved == stored_shapes(design, backbone, len(tiny.LABELS)), design
        assert (counts.base, counts.head, counts.stored, counts.trained) == (base, head, stored, trained), design
        for kind in ("stored", "paper"):
            assert sum(getattr(part, kind) for part in counts.parts) == getattr(counts, kind), design


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lora:layers=top 4", "the stack has 3 layers, 0 to 2; received layers 'top 4'"),
        ("lora:layers=3", "the stack has 3 layers, 0 to 2; received layers '3'"),
        ("lora:stacks=decoder", "nothing to change for .* this bert model has encoder with attentions self"),
        ("mam:attentions=cross", "nothing to change for .*prefix"),
        ("prompt:positions=shifted", ""),
    ],
)
def test_a_design_that_does_not_fit_is_refused_alike(text: str, says: str) -> None:
    backbone, model = tiny.described(tiny.CONFIGS["bert"]()), tiny.model("bert")
    if not says:
        assert count(parse(text), backbone).stored
        return
    for refused in (lambda: count(parse(text), backbone), lambda: attach(model, parse(text))):
        with pytest.raises(DesignError, match=says):
            refused()


@pytest.mark.parametrize(
    ("family", "text", "says"),
    [
        ("llama", "bitfit", "this llama model has no biases"),
        ("t5", "lora+bitfit", "this t5 model has no biases"),
        ("t5", "prompt:positions=shifted", "t5 has relative positions"),
        ("llama", "prompt:positions=shifted", "llama has relative positions"),
    ],
)
def test_what_means_nothing_on_a_family_is_refused(family: str, text: str, says: str) -> None:
    with pytest.raises(DesignError, match=says):
        count(parse(text), tiny.described(tiny.CONFIGS[family]()))


def test_parts_have_their_own_rules() -> None:
    """A linear that the family lacks; a norm on the way to queries that are rotated afterwards."""
    gate = Design((Modification(form=Form.LOW_RANK, site=Site.FFN_GATE, size=2),))
    norm = Design((Modification(form=Form.MULTI_HEAD, site=Site.HEADS, size=2, layer_norm=LayerNorm.IN),))
    for family, design, says in (("gpt2", gate, "nothing to change"), ("llama", norm, "llama rotates its queries")):
        with pytest.raises(DesignError, match=says):
            count(design, tiny.described(tiny.CONFIGS[family]()))


def test_a_width_that_a_form_cannot_have_is_an_error_of_the_design(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(delta: Delta) -> dict[str, tuple[int, ...]]:
        raise ValueError(f"the size divides the widths; received {delta.modification.size}")

    monkeypatch.setattr(plan, "stored_shapes", refuse)
    with pytest.raises(DesignError, match="the size divides the widths; received 8"):
        count(presets.lora(8), backbone)


def test_backbone_survives_json(backbone: Backbone) -> None:
    assert Backbone.from_dict(json.loads(json.dumps(backbone.to_dict()))) == backbone
    assert hash(backbone)


def test_a_backbone_that_ba3158e_stored_is_read(backbone: Backbone) -> None:
    stored = backbone.to_dict()
    assert Backbone.from_dict({**stored, "width": 32, "ffn_width": 64, "heads": 4}) == backbone
    with pytest.raises(TypeError, match="depths"):
        Backbone.from_dict({**stored, "depths": 3})


def _described(config: BertConfig | RobertaConfig, folder: Path) -> Backbone:
    config.save_pretrained(folder)
    return describe(str(folder / "config.json"))


def test_the_papers_numbers(tmp_path: Path) -> None:
    """RoBERTa-base, Table 2: 0.5 % for all of MAM 16/16, LoRA 16, prefix 32; BitFit 0.1 %."""
    roberta = _described(RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1), tmp_path)
    assert (roberta.depth, roberta.shapes["encoder.layer.0.output.dense.weight"]) == (12, (768, 3072))
    for design in (presets.mam(16, 16), presets.lora(16), presets.prefix(32), presets.parallel(32)):
        assert count(design, roberta).paper == 589_824
    counts = count(presets.mam(16, 16), roberta, labels=3)
    assert counts.base == 124_055_040
    assert counts.head == 592_899
    assert counts.stored == 589_824 + 12 * (16 + 768)  # the adapter's biases
    assert counts.trained == counts.stored + counts.head
    assert round(counts.paper_percent, 3) == 0.475
    assert count(presets.bitfit(), roberta).paper == 102_144
    frozen_head = Design(presets.bitfit().modifications, head=False)
    assert count(frozen_head, roberta, labels=3).stored == 102_915
    assert count(presets.full(), roberta, labels=2).stored_percent == 100
    assert count(presets.head_only(), roberta, labels=2).stored == 0


def test_the_pooler_trains_under_full_only(tmp_path: Path) -> None:
    bert = _described(BertConfig(), tmp_path)
    assert bert.head_shapes(2) == {"classifier.weight": (2, 768), "classifier.bias": (2,)}
    assert not any("pooler" in name for name in stored_shapes(presets.bitfit(), bert))
    assert any("pooler" in name for name in stored_shapes(presets.full(), bert))
    assert count(presets.head_only(), bert, labels=2).trained == 2 * 768 + 2
