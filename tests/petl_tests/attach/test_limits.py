"""What no model holds is refused: prompts beyond its positions, ranks beyond its matrices, tensors beyond memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attached
import pytest
import tiny
import torch

from petl.attach import attachment as attachments
from petl.attach.attachment import attach
from petl.backbones.count import count
from petl.backbones.model import Backbone, describe
from petl.design import DesignError
from petl.presets import parse

TABLES = ("bert", "roberta", "distilbert", "bart", "mbart", "gpt2")


def with_padding(padding: int, path: Path) -> tuple[Any, Backbone]:
    """A tiny RoBERTa of 40 positions, the first of which are not for tokens, and its description."""
    model = tiny.model("roberta", pad_token_id=padding, bos_token_id=5, eos_token_id=6)
    model.config.save_pretrained(path)
    return model, describe(str(path / "config.json"))


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_positions_of_a_roberta_begin_behind_its_padding(tmp_path: Path, padding: int) -> None:
    model, backbone = with_padding(padding, tmp_path)
    assert backbone.max_tokens == 40 - 1 - padding
    assert Backbone.from_dict(backbone.to_dict()).max_tokens == backbone.max_tokens
    assert backbone.max_tokens is not None
    model(input_ids=torch.full((1, backbone.max_tokens), 9))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, backbone.max_tokens + 1), 9))
    seen: list[list[int]] = []
    table = model.roberta.embeddings.position_embeddings
    table.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[0].tolist()))
    with attach(model, parse("prompt:length=3,positions=shifted")):
        model(input_ids=torch.tensor([[9, 10, 11, 12, padding]]), attention_mask=torch.tensor([[1, 1, 1, 1, 0]]))
    assert seen[0][:7] == list(range(padding + 1, padding + 8))


def test_a_backbone_stored_before_its_padding_has_roberta_positions_as_published(tmp_path: Path) -> None:
    _, backbone = with_padding(1, tmp_path)
    stored = backbone.to_dict()
    del stored["padding"]
    assert Backbone.from_dict(stored).max_tokens == 38


@pytest.mark.parametrize("family", TABLES)
def test_a_text_and_a_shifted_prompt_share_the_positions(family: str) -> None:
    model = tiny.model(family)
    most = {"roberta": 38}.get(family, 40)
    design = parse("prompt:length=8,positions=shifted")
    ends = {"input_ids": torch.full((2, most - 8), 9)}
    ends["input_ids"][:, -1] = 2
    with attach(model, design):
        model(**ends)
        with pytest.raises(DesignError, match=rf"of which shifted prompts take 8: {most - 8} .* of {most - 7} tokens"):
            model(input_ids=torch.cat((ends["input_ids"][:, :1], ends["input_ids"]), 1))
        model(**ends)  # what failed has left nothing


@pytest.mark.parametrize("positions", ["kept", "shifted"])
def test_a_prompt_is_shorter_than_the_positions(positions: str) -> None:
    model = tiny.model("bert")
    before = attached.look(model)
    for length in (40, 1_000_000_000_000):
        with pytest.raises(DesignError, match=f"shorter than the model's 40 positions; received length {length}"):
            attach(model, parse(f"prompt:length={length},positions={positions}"))
    assert attached.look(model) == before
    attach(model, parse(f"prompt:length=39,positions={positions}")).detach()


def test_a_rank_beyond_the_matrices_and_the_model_is_refused(tmp_path: Path) -> None:
    model, backbone = tiny.model("bert"), tiny.backbone("bert", tmp_path)
    before = attached.look(model)
    for refuse in (lambda design: attach(model, design), lambda design: count(design, backbone)):
        with pytest.raises(DesignError, match=r"longest side here is 32; received rank 100,000"):
            refuse(parse("lora:rank=100000"))
    assert attached.look(model) == before
    attach(model, parse("lora:rank=64")).detach()  # more than the matrices need, which is the user's to choose


@pytest.mark.parametrize("design", ["prefix:length=60", "houlsby:size=60", "multihead_parallel:size=60"])
def test_what_memory_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch, design: str, tmp_path: Path) -> None:
    """Before anything of it is made."""
    model = tiny.model("bert")
    stored = 4 * count(parse(design), tiny.backbone("bert", tmp_path)).stored
    monkeypatch.setattr(attachments, "virtual_memory", lambda: SimpleNamespace(total=stored))
    attach(model, parse(design)).detach()
    monkeypatch.setattr(attachments, "virtual_memory", lambda: SimpleNamespace(total=stored - 1))
    monkeypatch.setattr(attachments, "_build", lambda *_: pytest.fail("it was made"))
    before = attached.look(model)
    with pytest.raises(DesignError, match="not enough memory for"):
        attach(model, parse(design))
    assert attached.look(model) == before
