"""What a user does with a design on a family, from attaching to merging: the contract of all `designs.PAIRS`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from attached import logits, look, randomise
from designs import FORMS, PAIRS
from torch import Tensor
from transformers import PreTrainedModel

from petl.adapters.storage import load_adapter, save
from petl.attach.attachment import attach
from petl.backbones.count import stored_shapes
from petl.backbones.loading import load
from petl.backbones.model import describe, parameters_of
from petl.configuration import Training
from petl.design import DesignError, Form
from petl.presets import parse
from petl.training.engine import open_engine

END = 2
# Six tokens for each row, none of them the end token.
GREEDY: dict[str, Any] = {
    "max_new_tokens": 6,
    "min_new_tokens": 6,
    "do_sample": False,
    "forced_eos_token_id": None,
    "forced_bos_token_id": None,
}
EVERY_PAIR = pytest.mark.parametrize(("family", "text"), PAIRS, indirect=["family"], scope="module")


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def home(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(family, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def model(home: Path) -> PreTrainedModel:
    return load(str(home), labels=tiny.LABELS)


def is_key_bias(name: str, parameter: Tensor) -> bool:
    """It shifts all scores of a query alike: its gradient is zero, up to rounding."""
    return name.endswith("bias") and any(key in name for key in ("key.", "k_proj.", "k_lin."))


def train(model: PreTrainedModel, steps: int = 3) -> list[float]:
    """Steps through the engine that trials train by."""
    engine = open_engine(model, Training(learning_rate=1e-3, batch_size=3), steps, "fp32")
    labels, losses = torch.tensor([0, 1, 2]), []
    try:
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(engine.deepspeed(**tiny.batch()).logits, labels)
            engine.deepspeed.backward(loss)
            engine.deepspeed.step()
            losses.append(float(loss.detach()))
    finally:
        engine.close()
    return losses


@EVERY_PAIR
def test_contract(family: str, home: Path, model: PreTrainedModel, text: str, tmp_path: Path) -> None:
    design = parse(text)
    before, plain = look(model), logits(model).detach()
    frozen = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    if any(m.form is Form.BIAS for m in design.modifications) and family not in tiny.BIASED:
        with pytest.raises(DesignError, match="has no biases"):
            attach(model, design)
        assert look(model) == before
        return

    with attach(model, design) as attachment:
        trained = dict(attachment.named_parameters())
        assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
        randomise(attachment)
        changed = logits(model)
        assert not torch.equal(changed, plain)

        changed.square().sum().backward()
        for name, parameter in trained.items():
            assert parameter.grad is not None, name
            assert is_key_bias(name, parameter) or parameter.grad.abs().max() > 1e-9, name
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad or parameter.grad is None, name
        model.zero_grad()

        losses = train(model)  # in evaluation mode: without dropout the loss must fall
        assert losses[-1] < losses[0]
        backbone = describe(str(home))
        adapter = copy.deepcopy(attachment.state_dict())
        assert {name: tuple(tensor.shape) for name, tensor in adapter.items()} == stored_shapes(design, backbone, 3)
        save(tmp_path, attachment, backbone, {"labels": tiny.LABELS})
        changed = logits(model).detach()

    attachment.detach()
    assert look(model) == before
    assert torch.equal(logits(model), plain)
    assert all(torch.equal(parameter, frozen[name]) for name, parameter in model.named_parameters())

    with load_adapter(tmp_path, model):
        assert torch.equal(logits(model), changed)
    assert torch.equal(logits(model), plain)


@EVERY_PAIR
def test_merge_or_its_refusal(family: str, text: str) -> None:
    design, model = parse(text), tiny.model(family).double()
    if any(m.form is Form.BIAS for m in design.modifications) and family not in tiny.BIASED:
        return
    before = look(model)
    attachment = attach(model, design)
    randomise(attachment)
    expected = logits(model).detach()
    if all(FORMS[m.form].merges for m in design.modifications):
        attachment.merge()
        assert {name: look(model)[name] for name in ("modules", "hooks", "attributes", "attention")} == {
            name: before[name] for name in ("modules", "hooks", "attributes", "attention")
        }
    else:
        with pytest.raises(DesignError, match="cannot be merged"):
            attachment.merge()
    assert float((logits(model) - expected).abs().max()) < 1e-10


@pytest.mark.parametrize(("family", "text"), [pair for pair in PAIRS if pair[0] in tiny.GENERATING])
def test_generation_is_that_of_the_full_forward(family: str, text: str) -> None:
    """Greedy generation with a cache takes, at each step, the token that the forward pass without one ranks first."""
    design, model = parse(text), tiny.model(family, generates=True)
    if any(m.form is Form.BIAS for m in design.modifications) and family not in tiny.BIASED:
        return
    assert not parameters_of(model).head
    if design == parse("head_only"):
        with pytest.raises(DesignError, match="has no task head"):
            attach(model, design)
        return
    inputs = tiny.batch(left=True)
    with attach(model, design) as attachment, torch.no_grad():
        randomise(attachment)
        ids = model.generate(**inputs, **GREEDY, use_cache=True)
        for step in range(6, 0, -1):
            known = ids[:, :-step]
            if model.config.is_encoder_decoder:
                scores = model(**inputs, decoder_input_ids=known, use_cache=False).logits
            else:
                mask = torch.cat((inputs["attention_mask"], torch.ones_like(known[:, tiny.TOKENS :])), 1)
                positions = (mask.cumsum(1) - 1).clamp(min=0)  # as `generate` counts them
                scores = model(known, attention_mask=mask, position_ids=positions, use_cache=False).logits
            scores[..., END] = -torch.inf
            assert torch.equal(scores[:, -1].argmax(-1), ids[:, -step])
