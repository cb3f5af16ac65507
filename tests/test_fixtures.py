"""Parity with the original authors' code: their tensors in, their logits, hidden states and gradients out.

Reads $PETL_FIXTURES, by default `shared/fixtures` beside the repository.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from petl import presets
from petl.attach import attach
from petl.design import Composition, Design, LayerNorm

FIXTURES = Path(os.environ.get("PETL_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures"))
ROBERTA = FIXTURES / "roberta"
TOLERANCE = 1e-10

pytestmark = pytest.mark.skipif(not ROBERTA.is_dir(), reason=f"no reference fixtures in {FIXTURES}")


def _ffn(insertion: str, scale: float, norm: str) -> Design:
    base = presets.parallel if insertion == "parallel" else presets.sequential
    (adapter,) = base(7, "ffn").modifications
    return Design((replace(adapter, composition=Composition.SCALE, scale=scale, layer_norm=LayerNorm(norm)),))


# The designs of fixtures/README.md that BERT-like encoders have now: file -> design.
DESIGNS: dict[str, Design] = {
    "prefix_concat": presets.prefix(5),
    "attn_parallel": presets.parallel(6, "attention"),
    "attn_sequential": presets.sequential(6, "attention"),
    "ffn_sequential_ln_none": _ffn("sequential", 1, "none"),
    "ffn_sequential_ln_in": _ffn("sequential", 1, "in"),
    "ffn_sequential_s4_ln_none": _ffn("sequential", 4, "none"),
    "ffn_parallel_s1_ln_none": _ffn("parallel", 1, "none"),
    "ffn_parallel_s1_ln_in": _ffn("parallel", 1, "in"),
    "ffn_parallel_s4_ln_none": presets.scaled_parallel(7),
    "ffn_parallel_s4_ln_in": _ffn("parallel", 4, "in"),
    "ffn_parallel_s4_ln_out": _ffn("parallel", 4, "out"),
    "lora_attn": presets.lora(4, "attention", 2),
    "lora_ffn": presets.lora(3, "ffn", 4),
    "lora_attn_ffn": presets.lora(4, "attention", 2) | presets.lora(2, "ffn", 4),
    "bitfit": presets.bitfit(),
    "mam": presets.mam(5, 7),
    "houlsby": presets.sequential(6, "attention") | presets.sequential(7, "ffn"),
    "attn_parallel_ffn_parallel": presets.parallel(6, "attention") | presets.parallel(7, "ffn"),
    "prefix_lora_ffn": presets.prefix_lora(5, 3, 2),
}

# Learned s, after_residual, multi-head, ungated prefix: forms that are not built yet.
LATER = {
    "ffn_parallel_learned_s_ln_none",
    "ffn_pfeiffer_ln_in",
    "ffn_pfeiffer_ln_none",
    "mh_parallel_adapter",
    "prefix_nogate",
    "prefix_nogate_ln",
}


def test_every_file_has_its_design() -> None:
    files = {path.stem for path in ROBERTA.glob("*.safetensors")} - {"base", "inputs", "base_outputs"}
    assert files == set(DESIGNS) | LATER


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    data = json.loads((ROBERTA / "config.json").read_text())
    config = AutoConfig.for_model(**data)
    built = AutoModelForSequenceClassification.from_config(config, attn_implementation=request.param)
    built.load_state_dict(load_file(ROBERTA / "base.safetensors"), strict=True)
    return built.double().eval()


def _run(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    out = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True)
    return out.logits, out.hidden_states[-1]


def _theirs(name: str) -> str:
    """Our name of a tensor -> theirs."""
    for ours, theirs in (
        ("encoder.", "encoder.layer."),
        (".self.heads.prefix.", ".self_attn.prefix."),
        (".self.attention.bottleneck.", ".self_attn."),
        (".ffn.bottleneck.", ".ffn."),
        (".norm.", ".ln."),
        (".self.query.low_rank.", ".self_attn.q.lora_"),
        (".self.value.low_rank.", ".self_attn.v.lora_"),
        (".ffn_up.low_rank.", ".ffn.fc1.lora_"),
        (".ffn_down.low_rank.", ".ffn.fc2.lora_"),
    ):
        name = name.replace(ours, theirs, 1)
    return name


def _close(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= tolerance)


def test_base(model: PreTrainedModel) -> None:
    reference = load_file(ROBERTA / "base_outputs.safetensors")
    logits, hidden = _run(model, load_file(ROBERTA / "inputs.safetensors"))
    assert _close(logits, reference["out.logits"], TOLERANCE)
    assert _close(hidden, reference["out.last_hidden"], TOLERANCE)


@pytest.mark.parametrize("name", DESIGNS)
def test_design(model: PreTrainedModel, name: str) -> None:
    reference = load_file(ROBERTA / f"{name}.safetensors")
    inputs = load_file(ROBERTA / "inputs.safetensors")
    design: Design = replace(DESIGNS[name], head=False)
    with attach(model, design) as attachment:
        parameters = dict(attachment.named_parameters())
        theirs = {ours: ours if name == "bitfit" else _theirs(ours) for ours in parameters}
        expected = {key for key in _names(reference) if not key.startswith("reparam.")}
        assert set(theirs.values()) == expected
        attachment.load_state_dict({ours: reference[f"adapter.{key}"] for ours, key in theirs.items()})
        logits, hidden = _run(model, inputs)
        (logits * inputs["probe"]).sum().backward()
        assert _close(logits, reference["out.logits"], TOLERANCE)
        assert _close(hidden, reference["out.last_hidden"], TOLERANCE)
        largest = max(float(reference[f"grad.{key}"].abs().max()) for key in _names(reference))
        for ours, key in theirs.items():
            gradient = parameters[ours].grad
            assert gradient is not None
            assert _close(gradient, reference[f"grad.{key}"], TOLERANCE * largest), ours


def _names(reference: dict[str, Tensor]) -> Iterator[str]:
    return (key.removeprefix("adapter.") for key in reference if key.startswith("adapter."))
