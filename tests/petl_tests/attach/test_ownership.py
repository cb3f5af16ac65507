"""Who trains, of the model and of several attachments; and what is left of a pass."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

from petl.attach.attachment import attach
from petl.attach.hooks import HookPoint
from petl.attach.prompts import Prompts
from petl.backbones.count import count
from petl.backbones.model import Backbone
from petl.forms.modules import Heads
from petl.presets import parse

DESIGNS = ("lora:rank=2", "bitfit", "full", "houlsby:size=2")
LEAVING = {  # each kind of value that a hook keeps until another takes it
    "bert": "parallel:size=2,where=both+multi_head:site=heads,size=2,layer_norm=in+prompt:length=2",
    "mbart": "parallel:size=2,where=both+sequential:size=2+prompt:length=2",
    "llama": "parallel:size=2,where=both+prefix:length=2",
}


def _frozen_head(design: str) -> str:
    return f"{design}{',' if ':' in design else ':'}head=false"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return tiny.backbone("bert", tmp_path_factory.mktemp("ownership"))


def training(model: nn.Module) -> set[int]:
    return {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize("text", [*DESIGNS, "head_only", *(_frozen_head(design) for design in DESIGNS)])
def test_what_trains_is_the_attachments_own_and_is_counted(backbone: Backbone, text: str) -> None:
    model = tiny.model("bert")
    before = training(model)
    with attach(model, parse(text)) as attachment:
        own = dict(attachment.named_parameters())
        assert training(model) == {id(parameter) for parameter in own.values()}
        counts = count(parse(text), backbone, len(tiny.LABELS))
        assert counts.trained == sum(parameter.numel() for parameter in own.values())
        assert counts.head == sum(p.numel() for p in model.classifier.parameters())
        assert counts.stored == sum(tensor.numel() for tensor in attachment.state_dict().values())
    assert training(model) == before


@pytest.mark.parametrize("trains_first", [True, False])
def test_of_several_heads_the_latest_that_trains_is_used(trains_first: bool) -> None:
    model = tiny.model("bert")
    texts = ["lora:rank=2", "bitfit:head=false"]
    attachments = {text: attach(model, parse(text)) for text in (texts if trains_first else reversed(texts))}
    used = attachments["lora:rank=2"].named_parameters()
    assert model.classifier.weight is dict(used)["classifier.weight"]
    latest = attach(model, parse("houlsby:size=2"))
    assert model.classifier.weight is dict(latest.named_parameters())["classifier.weight"]
    latest.detach()
    attachments["lora:rank=2"].detach()
    assert not model.classifier.weight.requires_grad


@pytest.mark.parametrize("family", LEAVING)
def test_no_activation_outlives_its_pass(family: str) -> None:
    model = tiny.model(family)
    with attach(model, parse(LEAVING[family])) as attachment:
        model(**tiny.batch())
        points = [shared for shared, _ in model.petl.points.used.values()]
        taps = [point.tap for point in points if isinstance(point, HookPoint) and point.tap]
        assert taps
        assert all(tap.value is None for tap in taps)
        assert all(point.rows == {} for point in points if isinstance(point, Prompts))
        heads = [change for change in attachment.changes.values() if isinstance(change, Heads)]
        assert all(change.normed_query is None for change in heads)


def test_the_attentions_dropout_acts_on_the_weights_of_heads() -> None:
    """s dropout(relu(q P_k')) P_v, of the four heads by hand."""
    model = tiny.model("bert")
    with attach(model, parse("multihead_parallel:size=3")) as attachment:
        change = next(iter(attachment.changes.values()))
        query = torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
        key, value = (rows.view(3, 4, 8).transpose(0, 1) for rows in (change.key, change.value))
        weights = torch.relu(0.5 * query @ key.mT)
        torch.manual_seed(1)
        expected = torch.nn.functional.dropout(weights, 0.5) @ value
        torch.manual_seed(1)
        torch.testing.assert_close(change(query, scaling=0.5, dropout=0.5)[0], expected)
        torch.testing.assert_close(change(query, scaling=0.5)[0], weights @ value)
