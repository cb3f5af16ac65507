"""Loading: the head of a decoder reads the last token of each text, however configuration and tokenizer pad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import tokens
import torch

from petl.adapters import storage
from petl.attach.attachment import attach
from petl.backbones.loading import load, load_tokenizer
from petl.backbones.model import describe
from petl.backbones.padding import padding
from petl.data.encoding import encode_sources
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
