"""Generating: as the task's decoding says, whatever the checkpoint's own settings are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tokens

from petl.adapters import storage
from petl.attach.attachment import attach
from petl.backbones.generation import checkpoint_settings, generate
from petl.backbones.loading import load
from petl.backbones.model import describe
from petl.data.encoding import encode_sources
from petl.presets import parse
from petl.tasks import Task, resolve

END = 256
# Each changes what is generated in the first steps, where it holds.
OWN: dict[str, Any] = {
    "repetition_penalty": 1.5,
    "suppress_tokens": list(range(128, 256)),
    "begin_suppress_tokens": list(range(256)),
    "bad_words_ids": [[token] for token in range(128, 256)],
}


def task(**decoding: Any) -> Task:
    decoding = {"beams": 1, "max_length": 12, **decoding}
    return resolve({"name": "t", "kind": "summarization", "paths": {"train": "-"}, "decoding": decoding})


def folder(path: Path, **settings: Any) -> str:
    model: Any = tiny.model("gpt2", generates=True, vocab_size=257, eos_token_id=END, pad_token_id=END)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(path)
    tokens.of_bytes().save_pretrained(path)
    return str(path)


def written(place: str, what: Task) -> list[str]:
    tokenizer = tokens.of_bytes()
    inputs = encode_sources(["hello"], what, tokenizer, decoder_only=True)
    model: Any = load(place, generates=True)
    before = model.generation_config
    texts = generate(model, tokenizer, inputs, what)
    assert model.generation_config is before
    return texts


@pytest.mark.parametrize("name", [*OWN])
def test_one_decoding_is_one_text(tmp_path: Path, name: str) -> None:
    plain, own = folder(tmp_path / "plain"), folder(tmp_path / "own", **{name: OWN[name]})
    assert written(own, task()) == written(plain, task())
    assert written(own, task(checkpoint=True)) != written(plain, task())
    assert checkpoint_settings(plain) == {}
    assert checkpoint_settings(own) == {name: OWN[name]}


def test_what_is_no_setting_is_not_listed(tmp_path: Path) -> None:
    place = folder(tmp_path)
    said = {"repetition_penalty": 1.0, "early_stopping": True, "num_beams": 6, "temperature": 0.2, "unheard_of": 3}
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert checkpoint_settings(place) == {"early_stopping": True}
    (tmp_path / "generation_config.json").unlink()
    assert checkpoint_settings(place) == {}


def test_text_ends_where_targets_did_and_where_the_checkpoint_ends_it(tmp_path: Path) -> None:
    """The tokenizer's end, which the checkpoint does not name, is what training puts behind a target."""
    tokenizer = tokens.of_bytes()
    inputs = encode_sources(["hello"], task(), tokenizer, decoder_only=True)
    model: Any = load(folder(tmp_path), generates=True)
    first = int(model(**inputs).logits[0, -1].argmax())
    assert written(str(tmp_path), task()) != [""]
    tokenizer.add_special_tokens({"additional_special_tokens": [tokenizer.convert_ids_to_tokens(first)]})
    model.generation_config.eos_token_id = [first, 7]
    assert generate(model, tokenizer, inputs, task()) == [""]
    model.generation_config.eos_token_id = 7
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(first)
    assert generate(model, tokenizer, inputs, task()) == [""]


def test_an_adapter_stored_before_keeps_the_checkpoints_settings(tmp_path: Path) -> None:
    place = folder(tmp_path / "model", repetition_penalty=1.5)
    for name, facts in (("now", task().facts), ("before", task().facts)):
        if name == "before":
            del facts["decoding"]["checkpoint"]
        with attach(load(place, generates=True), parse("lora:rank=2")) as attachment:
            storage.save(tmp_path / name, attachment, describe(place), facts, tokens.of_bytes())
    texts = {name: storage.load_model(tmp_path / name).predict(["hello"]) for name in ("now", "before")}
    assert texts["now"] == written(place, task())
    assert texts["before"] == written(place, task(checkpoint=True))
    assert texts["now"] != texts["before"]
