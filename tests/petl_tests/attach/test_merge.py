"""Merging: the same outputs from a plain model, and nothing else changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from attached import randomise
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from petl.attach.attachment import HOLDER, Attachment, attach
from petl.design import LINEARS, Composition, Design, DesignError, Form, Insertion, Modification, Site
from petl.presets import parse

RESCALED = (*LINEARS, Site.FFN_HIDDEN)


def everything(gate: bool) -> Design:
    """Low ranks and rescales at every linear, two of each in the last layer, scales constant and learned."""
    scales = (Composition.SCALE, Composition.LEARNED_SCALE)
    parts = [
        Modification(form=Form.LOW_RANK, site=site, size=2, composition=scales[index % 2], scale=3.0, layers=layers)
        for index, site in enumerate(LINEARS)
        for layers in ("all", "top 1")
    ] + [
        Modification(form=Form.RESCALE, site=site, insertion=Insertion.SEQUENTIAL, layers=layers)
        for site in RESCALED
        for layers in ("all", "top 1")
    ]
    return Design(tuple(part for part in parts if gate or part.site is not Site.FFN_GATE))


def designs(family: str) -> list[Design]:
    gate = family in ("t5-gated", "llama", "qwen2", "qwen3")
    texts = ["head_only", "lora:where=both", "ia3", "full", *(["bitfit+lora"] if family in tiny.BIASED else [])]
    own = [*map(parse, texts), everything(gate)]
    return [*own, everything(gate) | parse("bitfit")] if family in tiny.BIASED else own


def put(model: PreTrainedModel, design: Design | str, seed: int = 1) -> Attachment:
    attachment = attach(model, parse(design) if isinstance(design, str) else design)
    randomise(attachment, seed)
    return attachment


def logits(model: PreTrainedModel) -> Tensor:
    batch = tiny.batch()
    if model.config.is_encoder_decoder and model.get_output_embeddings() is not None:
        batch["decoder_input_ids"] = batch["input_ids"]
    with torch.no_grad():
        result: Tensor = model(**batch).logits
    return result


def deviation(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def look(model: PreTrainedModel) -> dict[str, Any]:
    """All that merging must leave, or give back."""
    tied: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).append(name)
    return {
        "names": [name for name, _ in model.named_parameters(remove_duplicate=False)],
        "trained": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "hooks": [(n, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()],
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "tied": sorted(map(sorted, tied.values())),
    }


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_merged_is_attached(family: str) -> None:
    for generates in (False, True)[: 1 + (family in tiny.GENERATING)]:
        for design in designs(family):
            if generates and design == parse("head_only"):  # a language model's head is pretrained
                continue
            model = tiny.model(family, generates=generates).double()
            next(model.parameters()).requires_grad_(False)
            before, plain = look(model), logits(model)
            frozen = {name: (p, p.detach().clone(), p._version) for name, p in model.named_parameters()}
            attachment = put(model, design)
            expected = logits(model)
            assert deviation(plain, expected) > 1e-4
            assert attachment.merge() is model
            assert not hasattr(model, HOLDER)
            assert deviation(logits(model), expected) < 1e-10
            assert look(model) == before
            for original, value, version in frozen.values():  # others may share their memory
                assert original._version == version
                assert torch.equal(original, value)
            for name, parameter in model.named_parameters():
                original, value, _ = frozen[name]
                assert parameter is original or not torch.equal(parameter, value)
            attachment.detach()  # nothing is left to take off
            assert deviation(logits(model), expected) < 1e-10


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("text", ["lora:where=both", "ia3"])
def test_merged_is_attached_in_single_precision(family: str, text: str) -> None:
    model = tiny.model(family, generates=family in tiny.GENERATING)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # at the tiny models' own size, rounding alone moves t5's logits by 3e-6
                parameter.mul_(0.25)
    attachment = attach(model, parse(text))
    randomise(attachment, by=0.05)
    expected = logits(model)
    attachment.merge()
    assert deviation(logits(model), expected) < 1e-6


def test_the_weights_are_those_worked_out_by_hand() -> None:
    model, twin = tiny.model("gpt2").double(), tiny.model("gpt2").double()
    low = Modification(form=Form.LOW_RANK, site=Site.VALUE, size=2, composition=Composition.LEARNED_SCALE)
    down = Modification(form=Form.LOW_RANK, site=Site.FFN_DOWN, size=2, composition=Composition.SCALE, scale=3.0)
    attachment = put(model, Design((low, down)) | parse("ia3"))
    stored = {name: tensor.clone() for name, tensor in attachment.state_dict().items()}
    attachment.merge()
    for index in range(3):
        at = f"decoder.{index}"
        fused, frozen = (m.get_submodule(f"transformer.h.{index}.attn.c_attn") for m in (model, twin))
        value = f"{at}.self.value.low_rank"  # Conv1D: (in, out), whose columns are query, key, value
        change = stored[f"{value}.scale"] * (stored[f"{value}.b"] @ stored[f"{value}.a"]).T
        vector = torch.cat((torch.ones(32), *(stored[f"{at}.self.{kind}.rescale.vector"] for kind in ("key", "value"))))
        weight = torch.cat((frozen.weight[:, :64], frozen.weight[:, 64:] + change), 1) * vector
        assert torch.allclose(fused.weight, weight, rtol=1e-14, atol=1e-14)
        assert torch.allclose(fused.bias, frozen.bias * vector, rtol=1e-14, atol=1e-14)
        out, plain = (m.get_submodule(f"transformer.h.{index}.mlp.c_proj") for m in (model, twin))
        change = 3 * (stored[f"{at}.ffn_down.low_rank.b"] @ stored[f"{at}.ffn_down.low_rank.a"]).T
        hidden = stored[f"{at}.ffn_hidden.rescale.vector"]
        assert torch.allclose(out.weight, hidden[:, None] * (plain.weight + change), rtol=1e-14, atol=1e-14)
        assert out.bias is not None
        assert torch.equal(out.bias, plain.bias)


@pytest.mark.parametrize(
    ("family", "generates", "text"), [("t5", True, "full"), ("gpt2", True, "lora"), ("bert", False, "lora+bitfit")]
)
def test_a_merged_model_is_saved_and_read_by_transformers(
    family: str, generates: bool, text: str, tmp_path: Path
) -> None:
    model = tiny.model(family, generates=generates)
    put(model, text).merge()
    model.save_pretrained(tmp_path)
    kind = type(model) if generates else AutoModelForSequenceClassification
    read = kind.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(read), logits(model))
    if generates:
        assert read.get_output_embeddings().weight is read.get_input_embeddings().weight


def test_what_is_not_linear_is_refused_by_name() -> None:
    model = tiny.model("llama")
    attachment = put(model, "mam:length=2,size=4+lora+prompt:length=3+multihead_parallel:size=2")
    before, expected = look(model), logits(model)
    with pytest.raises(DesignError) as refusal:
        attachment.merge()
    for part in (
        "prefix 2",
        "prompt 3",
        "ffn parallel 4",
        "multi-head 2",
        "ReLU is not linear",
        "stand in the sequence",
    ):
        assert part in str(refusal.value)
    assert "lora" not in str(refusal.value)
    assert look(model) == before
    assert torch.equal(logits(model), expected)


def test_only_what_is_attached_is_merged() -> None:
    model = tiny.model("bert")
    attachment = put(model, "lora")
    attachment.merge()
    with pytest.raises(DesignError, match="nothing to merge"):
        attachment.merge()


def alone(model: PreTrainedModel, attachment: Attachment) -> Tensor:
    """The logits of an equal model that carries this design only, with its tensors."""
    twin = attach(model, attachment.design)
    twin.load_state_dict(attachment.state_dict(), attachment.head_state_dict())
    return logits(model)


@pytest.mark.parametrize(
    ("merged", "other"),
    [
        ("lora", "mam:length=2,size=4"),
        ("lora", "lora:rank=3"),
        ("lora:where=both", "ia3"),
        ("ia3", "prefix:length=2"),
        ("ia3", "houlsby:size=3"),
        ("bitfit+lora", "lora:rank=3,head=false"),
        ("bitfit", "bitfit"),
        ("full", "mam:length=2,size=4"),
        ("lora:rank=3", "head_only"),
        ("lora:rank=3,head=false", "head_only"),
        ("lora:rank=3", "lora:rank=2,head=false"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_another_attachment_stays_and_goes(merged: str, other: str, first: bool) -> None:
    model = tiny.model("bert").double()
    frozen = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    one, two = (put(model, text, seed) for seed, text in enumerate((merged, other) if first else (other, merged)))
    mine, theirs = (one, two) if first else (two, one)
    expected = logits(model)
    only = alone(tiny.model("bert").double(), mine)
    mine.merge()
    assert deviation(logits(model), expected) < 1e-10
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained <= {id(parameter) for _, parameter in theirs.named_parameters()}
    theirs.detach()
    assert not hasattr(model, HOLDER)
    assert deviation(logits(model), only) < 1e-10
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == frozen


@pytest.mark.parametrize(
    ("merged", "other", "why"),
    [
        ("ia3", "lora", "changes bert.encoder.layer.0.attention.self.value beside encoder.0.self.value.rescale"),
        ("ia3", "ia3", "changes bert.encoder.layer.2.output.dense beside encoder.2.ffn_hidden.rescale"),
        ("ia3", "lora:where=ffn", "changes bert.encoder.layer.2.output.dense beside encoder.2.ffn_hidden.rescale"),
        ("lora", "full", "layer.0.attention.self.query.weight belongs to another attachment"),
        ("ia3", "bitfit", "layer.0.attention.self.key.bias belongs to another attachment"),
    ],
)
def test_what_would_change_another_attachment_is_refused(merged: str, other: str, why: str) -> None:
    model = tiny.model("bert").double()
    mine, theirs = put(model, merged), put(model, other, 2)
    expected = logits(model)
    with pytest.raises(DesignError) as refusal:
        mine.merge()
    assert why in str(refusal.value)
    assert torch.equal(logits(model), expected)
    theirs.detach()
    expected = logits(model)
    mine.merge()
    assert deviation(logits(model), expected) < 1e-10


def test_parts_of_a_fused_linear_do_not_stand_in_each_others_way() -> None:
    model = tiny.model("gpt2").double()
    query = parse("lora:rank=2").modifications[0]
    rescale = Modification(form=Form.RESCALE, site=Site.KEY, insertion=Insertion.SEQUENTIAL)
    mine, theirs = put(model, Design((rescale,))), put(model, Design((replace(query, site=Site.QUERY),)), 2)
    expected = logits(model)
    mine.merge()
    assert deviation(logits(model), expected) < 1e-10
    theirs.detach()


def test_a_tied_linear_is_refused() -> None:
    model = tiny.model("bert")
    first, second = (model.get_submodule(f"bert.encoder.layer.{n}.attention.self.query") for n in (0, 1))
    second.weight = first.weight
    attachment = put(model, "lora")
    with pytest.raises(DesignError, match=r"query\.weight is tied to another place"):
        attachment.merge()


def test_an_attachment_that_is_off_leaves_a_later_one_alone() -> None:
    model = tiny.model("bert")
    with attach(model, parse("bitfit")) as first:
        first.detach()
        second = put(model, "bitfit+lora")
        expected = logits(model)
    assert torch.equal(logits(model), expected)
    second.detach()
    assert not hasattr(model, HOLDER)
