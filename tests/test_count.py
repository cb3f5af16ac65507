from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from designs import LATER, NAMED, random_design
from safetensors import safe_open
from transformers import BertConfig, RobertaConfig

from petl import presets
from petl.attach import attach
from petl.backbones import Backbone, describe
from petl.count import count, stored_shapes
from petl.design import Design, DesignError, Form, Modification, Site
from petl.presets import parse
from petl.storage import ADAPTER, save

RANDOM = 300  # designs a family


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return tiny.backbone(request.param, tmp_path_factory.mktemp("configs"))


def test_counts_equal_what_is_built(backbone: Backbone) -> None:
    model = tiny.model(backbone.family)
    base = sum(p.numel() for name, p in model.named_parameters() if backbone.row.in_base(name))
    head = sum(p.numel() for name, p in model.named_parameters() if not backbone.row.in_base(name))
    for design in [parse(text) for text in NAMED] + [random_design(seed, backbone.depth) for seed in range(RANDOM)]:
        counts = count(design, backbone, len(tiny.LABELS))
        with attach(model, design) as attachment:
            built = {name: tuple(tensor.shape) for name, tensor in attachment.state_dict().items()}
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            assert trained == sum(p.numel() for _, p in attachment.named_parameters())
            stored = sum(tensor.numel() for tensor in attachment.state_dict().values())
        assert built == stored_shapes(design, backbone, len(tiny.LABELS)), design
        assert (counts.base, counts.head, counts.stored, counts.trained) == (base, head, stored, trained), design


@pytest.mark.parametrize("text", NAMED)
def test_the_file_holds_what_is_stored(backbone: Backbone, text: str, tmp_path: Path) -> None:
    design = parse(text)
    with attach(tiny.model(backbone.family), design) as attachment:
        save(tmp_path, attachment, backbone, {"labels": tiny.LABELS})
    with safe_open(tmp_path / ADAPTER, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes == stored_shapes(design, backbone, len(tiny.LABELS))


@pytest.mark.parametrize("name", LATER)
def test_what_is_not_built_yet_is_refused_alike(backbone: Backbone, name: str) -> None:
    with pytest.raises(DesignError, match="supported so far") as counted:
        count(parse(name), backbone)
    with pytest.raises(DesignError, match="supported so far") as attached:
        attach(tiny.model(backbone.family), parse(name))
    assert str(counted.value) == str(attached.value)


def test_a_design_that_changes_nothing_is_refused(backbone: Backbone) -> None:
    nothing = Design((Modification(form=Form.LOW_RANK, site=Site.QUERY, size=2, stacks="decoder"),))
    with pytest.raises(DesignError, match="nothing to change"):
        count(nothing, backbone)
    with pytest.raises(DesignError, match="has 3 layers"):
        count(Design((Modification(form=Form.LOW_RANK, site=Site.QUERY, size=2, layers="top 4"),)), backbone)


def test_backbone_survives_json(backbone: Backbone) -> None:
    assert Backbone.from_dict(json.loads(json.dumps(backbone.to_dict()))) == backbone
    assert hash(backbone)


def _described(config: BertConfig | RobertaConfig, folder: Path) -> Backbone:
    config.save_pretrained(folder)
    return describe(str(folder / "config.json"))


def test_the_papers_numbers(tmp_path: Path) -> None:
    """RoBERTa-base, Table 2: 0.5 % for all of MAM 16/16, LoRA 16, prefix 32; BitFit 0.1 %."""
    roberta = _described(RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1), tmp_path)
    assert (roberta.depth, roberta.width, roberta.ffn_width, roberta.heads) == (12, 768, 3072, 12)
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
