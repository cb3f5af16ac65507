"""What attaching does, beyond the contract of every design on every family (test_contract.py)."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import tiny
import torch
from attached import logits, look, randomise
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import eager_attention_forward

from petl import presets
from petl.attach.attachment import HOLDER, StateError, attach
from petl.attach.attention import HeadChanges, attend
from petl.attach.build import build
from petl.backbones.families import FAMILIES
from petl.backbones.locate import BackboneError
from petl.backbones.plan import deltas
from petl.design import Composition, Design, DesignError, Form, Init, LayerNorm, Modification, Site
from petl.forms.modules import Heads
from petl.forms.vocabulary import Delta
from petl.presets import parse


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny.model(request.param)


@pytest.fixture(scope="module", params=["bert", "roberta"])
def encoder(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Families whose modules these tests name."""
    return tiny.model(request.param)


@pytest.mark.parametrize(
    "text",
    [
        "mam",
        "parallel:where=both",
        "lora",
        "prefix:length=4,reparameterisation=6",
        "multihead_parallel",
        "ia3",
        "prompt",
    ],
)
def test_an_attached_model_can_be_copied_and_pickled(model: PreTrainedModel, text: str) -> None:
    with attach(model, parse(text)) as attachment:
        randomise(attachment)
        expected = logits(model)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(logits(twin), expected)
            with torch.no_grad():
                for parameter in twin.petl.parameters():
                    parameter.zero_()
            assert not torch.equal(logits(twin), expected)
        assert torch.equal(logits(model), expected)


def test_first_values_depend_on_the_seed_and_the_name_only(model: PreTrainedModel) -> None:
    def first(text: str, seed: int) -> dict[str, Tensor]:
        with attach(model, parse(text), seed=seed) as attachment:
            return copy.deepcopy(attachment.state_dict())

    torch.manual_seed(0)
    one = first("mam", 0)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    again, other, wider = first("mam", 0), first("mam", 1), first("lora+mam+ia3", 0)
    assert all(torch.equal(one[name], again[name]) and torch.equal(one[name], wider[name]) for name in one)
    drawn = [name for name in one if name.endswith(("key", "value", "down.weight"))]
    assert drawn
    assert not any(torch.equal(one[name], other[name]) for name in drawn)
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())


def test_initialisation() -> None:
    def built(form: Form, init: Init, site: Site) -> dict[str, Tensor]:
        m = Modification(form=form, site=site, size=400, init=init)
        return dict(build(Delta("name", m, reads=500, adds=300), 0).state_dict())

    for form, site, down, up in (
        (Form.BOTTLENECK, Site.FFN, "down.weight", "up.weight"),
        (Form.LOW_RANK, Site.QUERY, "a", "b"),
    ):
        bert, lora = built(form, Init.BERT, site), built(form, Init.LORA, site)
        assert float(bert[down].std()) == pytest.approx(0.02, rel=0.02)
        assert float(bert[up].std()) == pytest.approx(0.02, rel=0.02)
        assert float(lora[down].abs().max()) == pytest.approx(1 / math.sqrt(500), rel=0.01)
        assert not lora[up].any()
        assert not any(tensor.any() for tables in (bert, lora) for name, tensor in tables.items() if "bias" in name)


@pytest.mark.parametrize("text", ["lora:where=both", "scaled_parallel:size=4", "ia3", "full", "head_only"])
@torch.no_grad()  # else the kernel depends on what is frozen
def test_what_starts_from_zero_changes_nothing(model: PreTrainedModel, text: str) -> None:
    plain = logits(model)
    with attach(model, parse(text)):
        assert torch.equal(logits(model), plain)


def test_a_late_failure_leaves_the_model_as_it_was(model: PreTrainedModel) -> None:
    before, used = look(model), model.config._attn_implementation
    model.config._attn_implementation_internal = "flex_attention"
    try:
        with pytest.raises(DesignError, match="sdpa or eager; received flex_attention"):
            attach(model, parse("mam+lora"))
    finally:
        model.config._attn_implementation_internal = used
    assert look(model) == before


def test_an_unknown_family_says_how_to_add_one() -> None:
    with pytest.raises(BackboneError, match=r"supported: bert, .*; received 'Linear'.*one row of FAMILIES"):
        attach(torch.nn.Linear(2, 2), parse("lora"))  # type: ignore[arg-type]


def test_every_misfit_is_listed_and_nothing_copied(encoder: PreTrainedModel) -> None:
    with attach(encoder, parse("lora:rank=2")) as attachment:
        state = copy.deepcopy(attachment.state_dict())
        wrong = {name: tensor + 1 for name, tensor in state.items()}
        wrong["encoder.0.self.query.low_rank.a"] = torch.zeros(3, 32)
        wrong["extra"] = wrong.pop("encoder.1.self.value.low_rank.b")
        with pytest.raises(StateError) as error:
            attachment.load_state_dict(wrong)
        for fault in ("missing encoder.1.self.value.low_rank.b", "unknown extra", "(3, 32), wanted (2, 32)"):
            assert fault in str(error.value)
        assert all(torch.equal(tensor, state[name]) for name, tensor in attachment.state_dict().items())
        with pytest.raises(StateError, match="missing classifier"):
            attachment.load_state_dict(state, {})


def test_names(encoder: PreTrainedModel) -> None:
    with attach(encoder, parse("lora:where=both+mam+prefix:length=2+sequential:where=both")) as attachment:
        names = set(attachment.state_dict())
        inside = {name for name, _ in encoder.get_submodule(f"{HOLDER}.attachment_1").named_parameters()}
    assert names == inside
    assert names >= {
        "encoder.0.self.query.low_rank.a",
        "encoder.1.self.attention.bottleneck.norm.weight",
        "encoder.0.self.heads.prefix.key",
        "encoder.0.self.heads.prefix_2.key",
        "encoder.2.ffn.bottleneck.down.weight",
        "encoder.2.ffn.bottleneck_2.up.bias",
        "encoder.0.ffn_down.low_rank.b",
    }


def test_bitfit_owns_the_heads_biases_only_where_the_head_is_frozen(encoder: PreTrainedModel) -> None:
    frozen = Design(presets.bitfit().modifications, head=False)
    with attach(encoder, frozen) as attachment:
        assert any(name.startswith("classifier") for name in attachment.state_dict())
        assert all("bias" in name and "pooler" not in name for name, _ in attachment.named_parameters())
        assert all("bias" not in name for name in attachment.head_state_dict())
    with attach(encoder, presets.bitfit()) as attachment:
        assert not any(name.startswith("classifier") for name in attachment.state_dict())
        assert "pooler" not in " ".join(name for name, _ in attachment.named_parameters())


def test_only_the_chosen_layers_change(encoder: PreTrainedModel) -> None:
    top = Design((Modification(form=Form.LOW_RANK, site=Site.VALUE, size=2, layers="top 2"),))
    with attach(encoder, top) as attachment:
        assert {name.split(".")[1] for name in attachment.state_dict()} == {"1", "2"}
    with attach(
        encoder, Design((Modification(form=Form.LOW_RANK, site=Site.VALUE, size=2, layers="2,0"),))
    ) as attachment:
        assert {name.split(".")[1] for name in attachment.state_dict()} == {"0", "2"}


def test_a_sequential_change_reads_the_low_rank_one(encoder: PreTrainedModel) -> None:
    """As it would after merging: LoRA is part of the linear."""
    low_rank = Modification(form=Form.LOW_RANK, site=Site.ATTENTION_OUT, size=2)
    design = presets.sequential(4, "attention") | Design((low_rank,))
    merged = copy.deepcopy(encoder)
    with attach(encoder, design) as attachment:
        randomise(attachment)
        state, head, expected = attachment.state_dict(), attachment.head_state_dict(), logits(encoder)
    with torch.no_grad():
        for index, layer in enumerate(merged.base_model.encoder.layer):
            a, b = (state[f"encoder.{index}.self.attention_out.low_rank.{part}"] for part in "ab")
            layer.attention.output.dense.weight.add_(b @ a)
    with attach(merged, presets.sequential(4, "attention")) as attachment:
        attachment.load_state_dict({name: t for name, t in state.items() if "low_rank" not in name}, head)
        assert torch.allclose(logits(merged), expected, atol=1e-5)


def test_two_prefixes_share_one_softmax(model: PreTrainedModel) -> None:
    with attach(model, presets.prefix(2) | presets.prefix(3)) as attachment:
        state, head, expected = attachment.state_dict(), attachment.head_state_dict(), logits(model)
    with attach(model, presets.prefix(5)) as attachment:
        joined = {
            name: torch.cat((state[name], state[name.replace("prefix", "prefix_2")]))
            for name in attachment.state_dict()
        }
        attachment.load_state_dict(joined, head)
        assert torch.allclose(logits(model), expected, atol=1e-6)


class Attending(torch.nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.is_causal = causal


Attending.__module__ = eager_attention_forward.__module__  # where `eager` looks for the model's own function

# What five queries see of five keys: (mask given, mask meant). A decoder without mask is the case that
# sdpa would get wrong with more keys than queries.
SEEN = {
    "all": (None, torch.ones(5, 5, dtype=torch.bool)),
    "causal": (None, torch.ones(5, 5, dtype=torch.bool).tril()),
    "left padded": (torch.tensor([False, False, True, True, True]).expand(5, 5),) * 2,
    "right padded": (torch.tensor([True, True, True, False, False]).expand(5, 5),) * 2,
}


@pytest.mark.parametrize(
    ("implementation", "seen"),
    [("sdpa", seen) for seen in SEEN] + [("eager", seen) for seen in SEEN if seen != "causal"],  # always masked
)
def test_prefixes_are_seen_by_all_and_hide_nothing(implementation: str, seen: str) -> None:
    given, meant = SEEN[seen]
    if given is not None and implementation == "eager":  # eager takes what is added to the scores
        given = torch.zeros(5, 5).masked_fill(~given, -torch.inf)
    shapes = {f"encoder.layer.0.attention.self.{linear}.weight": (8, 8) for linear in ("query", "key", "value")}
    (delta,) = deltas(presets.prefix(3), FAMILIES["bert"], shapes)
    prefix = build(delta, 0)
    assert isinstance(prefix, Heads)
    module = Attending(seen == "causal")
    HeadChanges(module, changes=[prefix]).put()
    query, key, value = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = None if given is None else given[None, None]
    ours, _ = attend(module, query, key, value, mask, implementation=implementation, scaling=0.5)
    keys, values = (part.view(3, 2, 4).transpose(0, 1)[None] for part in prefix.rows())
    scores = 0.5 * query @ torch.cat((keys, key), 2).mT
    hidden = ~torch.cat((torch.ones(5, 3, dtype=torch.bool), meant), 1)
    theirs = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ torch.cat((values, value), 2)
    assert torch.allclose(ours, theirs.transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize(
    "part",
    [
        Modification(form=Form.BOTTLENECK, site=Site.FFN, size=8, init=Init.BERT, dropout=0.5),
        Modification(form=Form.LOW_RANK, site=Site.QUERY, size=8, init=Init.BERT, dropout=0.5),
        Modification(form=Form.PREFIX, site=Site.HEADS, size=8, composition=Composition.GATE, dropout=0.5),
    ],
    ids=lambda part: str(part.form),
)
def test_dropout_acts_in_training_only(model: PreTrainedModel, part: Modification) -> None:
    with attach(model, Design((part,))) as attachment:
        randomise(attachment)
        assert torch.equal(logits(model), logits(model))
        holder = model.get_submodule(HOLDER)
        holder.train()
        assert not torch.equal(logits(model), logits(model))


def test_scale_multiplies_the_up_bias_and_not_the_norm_out() -> None:
    def change(norm: LayerNorm, scale: float) -> Tensor:
        m = Modification(
            form=Form.BOTTLENECK,
            site=Site.FFN,
            size=3,
            composition="scale",
            scale=scale,
            layer_norm=norm,  # type: ignore[arg-type]
        )
        module = build(Delta("name", m, reads=8, adds=8, normed=8), 0)
        with torch.no_grad():
            module.get_parameter("up.bias").copy_(torch.arange(8.0))
        result: Tensor = module(torch.ones(1, 8))
        return result

    assert torch.allclose(change(LayerNorm.NONE, 4), 4 * change(LayerNorm.NONE, 1))
    assert torch.allclose(change(LayerNorm.OUT, 4), change(LayerNorm.OUT, 1), atol=1e-4)
