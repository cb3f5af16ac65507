"""Loading: what a decoder's head reads, what a checkpoint may lack, and files that are refused in one message."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tokens
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM

from petl.adapters import storage
from petl.attach.attachment import attach
from petl.backbones.loading import load, load_tokenizer
from petl.backbones.locate import BackboneError
from petl.backbones.model import describe
from petl.backbones.padding import padding
from petl.data.encoding import encode_sources
from petl.errors import UserNotice
from petl.presets import parse
from petl.tasks import Task

TEXTS = ("good", "a text that is longer")
TASK = Task(kind="text-classification", paths={"train": "-"})
END, MORE, PAD = 256, 257, 258
DECODERS = ("gpt2", "llama")


def tokenizer(pads: bool) -> Any:
    """A token a byte, then the end of a text, another end, and the padding where it pads."""
    result = tokens.of_bytes()
    result.add_special_tokens({"additional_special_tokens": ["<|other|>"]})
    if pads:
        result.add_special_tokens({"pad_token": "[PAD]"})
    return result


def folder(path: Path, family: str, pads: bool, **changes: Any) -> str:
    model = tiny.model(family, generates=True, vocab_size=259, **changes)
    model.save_pretrained(path)
    tokenizer(pads).save_pretrained(path)
    return str(path)


def read_by_hand(model: Any, text: str) -> torch.Tensor:
    """The head on the hidden state of the text's last token: a byte a token, alone, nothing padded."""
    ids = torch.tensor([tokens.of_bytes()(text)["input_ids"]])
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        scores: torch.Tensor = hidden[0, -1] @ model.score.weight.T
    return scores


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("pads", [True, False], ids=["pads", "has-no-padding"])
@pytest.mark.parametrize(
    "configured",
    [
        {"pad_token_id": None, "eos_token_id": END},
        {"pad_token_id": None, "eos_token_id": [MORE, END]},
        {"pad_token_id": 0, "eos_token_id": END},
        {"pad_token_id": PAD, "eos_token_id": END},
        {"pad_token_id": END, "eos_token_id": [END, MORE]},
        {"pad_token_id": None, "eos_token_id": None},
    ],
    ids=str,
)
def test_a_decoders_head_reads_the_last_token(
    tmp_path: Path, family: str, pads: bool, configured: dict[str, Any]
) -> None:
    model = load(place := folder(tmp_path, family, pads, **configured), labels=["no", "yes"])
    own = load_tokenizer(place)
    with torch.no_grad():
        together = model(**encode_sources(TEXTS, TASK, own)).logits
    for text, logits in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(logits, read_by_hand(model, text), rtol=0, atol=1e-5)


def test_the_tokenizer_of_an_adapter_pads_for_it(tmp_path: Path) -> None:
    """It may be another one than that which lies beside the weights."""
    place = folder(tmp_path / "model", "gpt2", pads=False, eos_token_id=END, pad_token_id=None)
    model = load(place, labels=["no", "yes"])
    with attach(model, parse("lora:rank=2")) as attachment:
        facts = {**TASK.facts, "labels": ["no", "yes"]}
        storage.save(tmp_path / "adapter", attachment, describe(place), facts, tokenizer(pads=True))
    loaded = storage.load_model(tmp_path / "adapter")
    assert loaded.model.config.pad_token_id == padding(loaded.tokenizer) == PAD
    alone = [loaded.probabilities([text])[0].tolist() for text in TEXTS]
    for row, probabilities in zip(loaded.probabilities(TEXTS).tolist(), alone, strict=True):
        assert row == pytest.approx(probabilities, abs=1e-5)
    assert storage.load_pretrained(tmp_path / "adapter")[0].config.pad_token_id == PAD


def test_an_encoder_keeps_what_its_configuration_pads_with(tmp_path: Path) -> None:
    """RoBERTa's positions begin behind it."""
    tiny.model("roberta").save_pretrained(tmp_path)
    tokenizer(pads=True).save_pretrained(tmp_path)
    assert load(str(tmp_path), labels=["no", "yes"]).config.pad_token_id == 1


def test_without_a_tokenizer_the_configuration_says_what_pads(tmp_path: Path) -> None:
    """The first of several ends where it says nothing."""
    for number, (pad, end, expected) in enumerate([(1, 2, 1), (None, 2, 2), (None, [5, 2], 5)]):
        model = tiny.model("llama", generates=True, pad_token_id=pad, eos_token_id=end)
        model.save_pretrained(tmp_path / str(number))
        assert load(str(tmp_path / str(number)), labels=["no", "yes"]).config.pad_token_id == expected


def edited(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pointer": (
        lambda path: (path / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"
        ),
        "is a pointer of git-lfs, not the weights",
    ),
    "cut off": (
        lambda path: os.truncate(path / "model.safetensors", (path / "model.safetensors").stat().st_size // 2),
        "is damaged or cut off",
    ),
    "empty": (lambda path: os.truncate(path / "model.safetensors", 0), "is damaged or cut off"),
    "no tensors": (lambda path: (path / "model.safetensors").write_bytes(b"\0" * 64), "is damaged or cut off"),
    "another name": (
        lambda path: (path / "model.safetensors").rename(path / "weights.safetensors"),
        "lacks model.safetensors, it has weights.safetensors",
    ),
    "a part gone": (
        lambda path: [
            (path / "model.safetensors").rename(path / "model-1-of-2.safetensors"),
            (path / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}})
            ),
        ],
        "lacks model-2-of-2.safetensors",
    ),
    "index torn": (
        lambda path: [
            (path / "model.safetensors").rename(path / "model-1-of-2.safetensors"),
            (path / "model.safetensors.index.json").write_text('{"weight_map'),
        ],
        "does not name the files of weights",
    ),
    "none": (lambda path: (path / "model.safetensors").unlink(), r"no \*.safetensors"),
    "quantised": (lambda path: edited(path, quantization_config={"quant_method": "bitsandbytes"}), "bitsandbytes ones"),
    "heads": (lambda path: edited(path, num_attention_heads=5), "transformers does not load it: .* attention heads"),
    "more words": (lambda path: edited(path, vocab_size=120), "lack or misshape bert.embeddings.word_embeddings"),
    "wider": (lambda path: edited(path, intermediate_size=65), "lack or misshape bert.encoder.layer.0.intermediate"),
    "deeper": (lambda path: edited(path, num_hidden_layers=4), "lack or misshape bert.encoder.layer.3"),
    "no number": (lambda path: edited(path, hidden_size="wide"), "config.json is no configuration|does not load it"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    tiny.model("bert").save_pretrained(tmp_path)
    spoil, said = DAMAGES[damage]
    spoil(tmp_path)
    with pytest.raises(BackboneError, match=said) as raised:
        load(str(tmp_path), labels=["no", "yes"])
    assert "\n" not in str(raised.value)


def test_sizes_that_make_no_model_are_refused_without_weights(tmp_path: Path) -> None:
    tiny.model("bert").config.save_pretrained(tmp_path)
    edited(tmp_path, num_attention_heads=5)
    with pytest.raises(BackboneError, match=r"the sizes in its config.json make no model: .* attention heads"):
        describe(str(tmp_path / "config.json"))


def test_a_pooler_that_a_checkpoint_lacks_is_drawn_and_said(tmp_path: Path) -> None:
    """The same for every seed, since no adapter holds it; as pretraining continued with a masked language model has."""
    config = tiny.CONFIGS["bert"]()
    BertForMaskedLM(config).save_pretrained(tmp_path)
    loaded: list[Any] = []
    for seed in (0, 7):
        torch.manual_seed(seed)
        with pytest.warns(UserNotice, match=r"lacks bert.pooler.dense.bias, bert.pooler.dense.weight: drawn"):
            loaded.append(load(str(tmp_path), labels=["no", "yes"], seed=seed))
    one, other = (model.bert.pooler.dense for model in loaded)
    assert torch.equal(one.weight, other.weight)
    assert float(one.weight.detach().std()) == pytest.approx(config.initializer_range, rel=0.1)
    assert not one.bias.any()
    assert not torch.equal(loaded[0].classifier.weight, loaded[1].classifier.weight)


def test_anything_else_that_a_checkpoint_lacks_is_refused(tmp_path: Path) -> None:
    tiny.model("bert").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["bert.encoder.layer.0.output.dense.bias"], tensors["bert.pooler.dense.bias"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackboneError, match=r"lack or misshape bert.encoder.layer.0.output.dense.bias$"):
        load(str(tmp_path), labels=["no", "yes"])
