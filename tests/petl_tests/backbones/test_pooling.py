"""A linear head on pooled hidden states: what it reads, against rows run by themselves; the model is left as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModel

from petl.adapters.peft import to_peft
from petl.adapters.storage import load_adapter, read_head, save
from petl.attach.attachment import attach
from petl.backbones.count import count
from petl.backbones.locate import BackboneError
from petl.backbones.model import describe
from petl.backbones.pooling import pool, pooled, unpool
from petl.design import Design, DesignError
from petl.head import Head
from petl.presets import parse

EVERY_FAMILY = pytest.mark.parametrize("family", tiny.FAMILIES)
POOLINGS = ("mean", "first", "last")
HEAD_ONLY = Design()


def alone(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The last layer's output for one row without padding, (tokens, width)."""
    inputs = {"input_ids": ids[None]}
    if type(model).__name__.startswith("T5"):  # whose head shifts the tokens itself
        inputs["decoder_input_ids"] = torch.cat([torch.tensor([[1]]), ids[None, :-1]], 1)
    return model.base_model(**inputs).last_hidden_state[0]


@EVERY_FAMILY
@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_does_not_count(family: str, pooling: str) -> None:
    model, batch = tiny.model(family), tiny.batch()
    take = {"mean": lambda rows: rows.mean(0), "first": lambda rows: rows[0], "last": lambda rows: rows[-1]}[pooling]
    with torch.no_grad():
        found = pooled(model, batch, pooling)
        rows = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        expected = torch.stack([take(alone(model, ids)) for ids in rows])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_padding_on_the_left_does_not_count(pooling: str) -> None:
    model, left = tiny.model("llama"), tiny.batch(left=True)
    lengths = left["attention_mask"].sum(1).tolist()
    rolled = {
        name: torch.stack([row.roll(length - tiny.TOKENS) for row, length in zip(values, lengths, strict=True)])
        for name, values in left.items()
    }
    positions = (left["attention_mask"].cumsum(-1) - 1).clamp(0)
    with torch.no_grad():
        found = pooled(model, {**left, "position_ids": positions}, pooling)
        torch.testing.assert_close(found, pooled(model, rolled, pooling), rtol=1e-4, atol=1e-5)


def test_the_first_token_stands_behind_padding_on_the_left() -> None:
    model, left = tiny.model("bert"), tiny.batch(left=True)
    with torch.no_grad():
        hidden = model.base_model(**left).last_hidden_state
        expected = torch.stack([hidden[row, tiny.TOKENS - length] for row, length in enumerate((tiny.TOKENS, 6, 4))])
        torch.testing.assert_close(pooled(model, left, "first"), expected)


@EVERY_FAMILY
def test_the_head_is_linear_and_the_model_has_its_own_again(family: str) -> None:
    model, batch = tiny.model(family), tiny.batch()
    names, before = [*dict(model.named_parameters())], model(**batch).logits
    own = pool(model, "mean")
    head = model.get_submodule("pooled_head")
    weight = torch.randn(3, head.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(torch.arange(3.0))
        expected = pooled(model, batch, "mean") @ weight.T + torch.arange(3.0)
        torch.testing.assert_close(model(**batch).logits, expected)
    unpool(model, own)
    assert sorted(dict(model.named_parameters())) == sorted(names)
    assert torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize(
    ("family", "design"),
    [
        *((family, design) for family in tiny.FAMILIES for design in ("head_only", "lora:rank=2", "full")),
        *((family, "bitfit") for family in tiny.BIASED),
    ],
)
def test_counts_are_those_of_the_attachment(family: str, design: str, tmp_path: Path) -> None:
    model = tiny.model(family)
    folder = tiny.folder(family, tmp_path)
    counted = count(parse(design), describe(str(folder)), 3, "mean")
    with attach(model, parse(design), pooling="mean") as attachment:
        head = attachment.head_state_dict()
        assert counted.head == sum(tensor.numel() for tensor in head.values()) == 3 * 33
        assert counted.trained == sum(parameter.numel() for _, parameter in attachment.named_parameters())
        assert counted.stored == sum(tensor.numel() for tensor in attachment.state_dict().values())


@pytest.mark.parametrize("family", tiny.KINDS)
@pytest.mark.parametrize("form", ["prompt", "prefix"])
def test_rows_of_a_prompt_do_not_count(family: str, form: str) -> None:
    model, batch = tiny.model(family), tiny.batch()
    with attach(model, parse(f"{form}:length=4"), pooling="mean"), torch.no_grad():
        shift = {"decoder_input_ids": batch["input_ids"]} if family == "mbart" else {}
        hidden = model.base_model(**batch, **shift).last_hidden_state
        assert hidden.shape[1] == tiny.TOKENS
        mask = batch["attention_mask"][..., None]
        torch.testing.assert_close(pooled(model, {**batch, **shift}, "mean"), (hidden * mask).sum(1) / mask.sum(1))


def test_gradients_reach_design_and_head() -> None:
    model, batch = tiny.model("bert"), tiny.batch()
    with attach(model, parse("lora:rank=2"), pooling="mean") as attachment:
        with torch.no_grad():
            model.get_parameter("pooled_head.weight").normal_()
        model(**batch).logits.square().sum().backward()
        missing = [name for name, parameter in attachment.named_parameters() if parameter.grad is None]
        assert missing == []
        assert {name for name, _ in attachment.named_parameters()} >= {"pooled_head.weight", "pooled_head.bias"}


@pytest.mark.parametrize("family", tiny.KINDS)
def test_a_stored_adapter_has_its_head_again(family: str, tmp_path: Path) -> None:
    model, batch, folder = tiny.model(family), tiny.batch(), tiny.folder(family, tmp_path)
    model = type(model).from_pretrained(folder).eval()
    plain = model(**batch).logits
    with attach(model, parse("lora:rank=2"), seed=3, pooling="last") as attachment:
        with torch.no_grad():
            for _, parameter in attachment.named_parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(1))
            expected = model(**batch).logits
        save(tmp_path / "adapter", attachment, describe(str(folder)), {"labels": list(tiny.LABELS)}, start="probe")
    assert read_head(tmp_path / "adapter") == Head(pooling="last", start="probe")
    assert torch.equal(model(**batch).logits, plain)
    with load_adapter(tmp_path / "adapter", model), torch.no_grad():
        assert torch.equal(model(**batch).logits, expected)
    assert torch.equal(model(**batch).logits, plain)


def test_what_cannot_be_is_refused() -> None:
    decoder, encoder = tiny.model("gpt2"), tiny.model("bert")
    with pytest.raises(BackboneError, match=r"pooling first is for encoders.*gpt2.*take last or mean"):
        attach(decoder, HEAD_ONLY, pooling="first")
    with pytest.raises(BackboneError, match="pooling mean is for classifiers; BertModel has no task head"):
        attach(AutoModel.from_config(encoder.config), parse("lora"), pooling="mean")
    with attach(encoder, parse("lora"), pooling="mean") as attachment:
        with pytest.raises(DesignError, match="share the head of their model, with pooling mean; received model"):
            attach(encoder, parse("bitfit"))
        with pytest.raises(DesignError, match="a merged model has the head that transformers gives"):
            attachment.merge()
        with pytest.raises(DesignError, match=r"a PEFT adapter has the head.*format petl"):
            to_peft(attachment, "nowhere")
    with pytest.raises(DesignError):  # of the design; the head is the model's own afterwards
        attach(encoder, parse("prompt:length=100"), pooling="mean")
    assert "pooled_head" not in dict(encoder.named_children())
    assert encoder(**tiny.batch()).logits.shape == (3, 3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pooling": "max"}, "head.pooling is one of model, mean, first, last; received 'max'"),
        ({"start": "zero"}, "head.start is one of random, probe; received 'zero'"),
        ({"start": "probe"}, "head.start probe is for a linear head"),
    ],
)
def test_a_head_checks_itself(values: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Head(**values)
