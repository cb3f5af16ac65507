"""Parity with the original authors' code: their tensors in, their logits, hidden states and gradients out.

Walks the families in $PETL_FIXTURES, by default `shared/fixtures` beside the repository: each a folder
with a configuration, base weights, inputs and one file a design, as its README describes.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from designs import FIXTURES as DESIGNS
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from petl import presets
from petl.attach.attachment import attach
from petl.design import Composition, Design, LayerNorm

FIXTURES = Path(os.environ.get("PETL_FIXTURES", Path(__file__).parents[4] / "shared" / "fixtures"))
FAMILIES = sorted(path.parent for path in FIXTURES.glob("*/config.json"))
TOLERANCE = {"float64": 1e-10, "float32": 5e-5}
NOT_DESIGNS = {"base", "inputs", "base_outputs"}

pytestmark = pytest.mark.skipif(not FAMILIES, reason=f"no reference fixtures in {FIXTURES}")


FILES = [(path.parent, path.stem) for family in FAMILIES for path in sorted(family.glob("*.safetensors"))]
FILES = [(family, name) for family, name in FILES if name not in NOT_DESIGNS]
EVERY_FILE = pytest.mark.parametrize(("family", "name"), FILES, ids=lambda value: getattr(value, "name", value))
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
EVERY_WAY = pytest.mark.parametrize("implementation", ["sdpa", "eager"])
EVERY_DTYPE = pytest.mark.parametrize("dtype", list(TOLERANCE))


@cache
def _model(family: Path, dtype: str, implementation: str) -> PreTrainedModel:
    data = json.loads((family / "config.json").read_text())
    config = AutoConfig.for_model(**data, attn_implementation=implementation)
    model: PreTrainedModel = getattr(transformers, data["architectures"][0])(config)
    model.load_state_dict(load_file(family / "base.safetensors"), strict=True)
    return model.to(getattr(torch, dtype)).eval()


def _run(model: PreTrainedModel, family: Path) -> dict[str, Tensor]:
    """Our outputs under their names."""
    inputs = load_file(family / "inputs.safetensors")
    probe = inputs.pop("probe")
    out = model(**inputs, output_hidden_states=not model.config.is_encoder_decoder)
    (out.logits * probe).sum().backward()
    if model.config.is_encoder_decoder:
        return {"out.logits": out.logits, "out.encoder_last_hidden": out.encoder_last_hidden_state}
    return {"out.logits": out.logits, "out.last_hidden": out.hidden_states[-1]}


def _close(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], dtype: str) -> None:
    names = {name for name in theirs if name.startswith("out.")}
    assert names == set(ours)
    for name in names:
        # The encoder's states are stored in float32.
        tolerance = max(TOLERANCE[dtype], 1e-6 if theirs[name].dtype == torch.float32 else 0)
        assert ours[name].shape == theirs[name].shape
        assert float((ours[name].detach() - theirs[name]).abs().max()) <= tolerance, name


@EVERY_FAMILY
@EVERY_WAY
@EVERY_DTYPE
def test_base(family: Path, implementation: str, dtype: str) -> None:
    reference = load_file(family / "base_outputs.safetensors")
    _close(_run(_model(family, dtype, implementation), family), reference, dtype)


@EVERY_FILE
@EVERY_WAY
@EVERY_DTYPE
def test_design(family: Path, name: str, implementation: str, dtype: str) -> None:
    reference = load_file(family / f"{name}.safetensors")
    model = _model(family, dtype, implementation)
    _check(model, family, _design(name, reference, model), reference, dtype)


@EVERY_FAMILY
@EVERY_DTYPE
def test_prefix_through_its_mlp(family: Path, dtype: str) -> None:
    """The same function as its keys and values, which are what is stored."""
    reference = load_file(family / "prefix_concat.safetensors")
    (width, _) = next(tensor.shape for key, tensor in reference.items() if key.endswith(".in.weight"))
    _check(_model(family, dtype, "sdpa"), family, presets.prefix(5, int(width)), reference, dtype)


def _design(name: str, reference: Mapping[str, Tensor], model: PreTrainedModel) -> Design:
    design = DESIGNS[name]
    if name == "mh_parallel_adapter" and any(".ln." in key for key in reference):
        # BART's scores are not divided by √d_h, which a ReLU lets through to the scale.
        config = model.config
        scale = math.sqrt(config.hidden_size // config.num_attention_heads)
        (part,) = design.modifications
        norm = {"layer_norm": LayerNorm.IN, "composition": Composition.SCALE, "scale": scale}
        design = Design((replace(part, **norm),))  # type: ignore[arg-type]
    return replace(design, head=False)


def _check(model: PreTrainedModel, family: Path, design: Design, reference: Mapping[str, Tensor], dtype: str) -> None:
    with attach(model, replace(design, head=False)) as attachment:
        parameters = dict(attachment.named_parameters())
        theirs = {ours: _theirs(ours, model) for ours in parameters}
        through_mlp = any(name.startswith("reparam.") for name in theirs.values())
        expected = {key for key in _names(reference) if key.startswith("reparam.") == through_mlp}
        assert {re.sub(r"\.out\.\d\.", ".out.", name) for name in theirs.values()} == expected
        with torch.no_grad():
            for ours, parameter in parameters.items():
                tensor = _tensor(reference, f"adapter.{theirs[ours]}")
                assert parameter.shape == tensor.shape
                parameter.copy_(tensor)
        for parameter in parameters.values():
            parameter.grad = None
        _close(_run(model, family), reference, dtype)
        largest = max(float(reference[f"grad.{key}"].abs().max()) for key in _names(reference))
        for ours, key in theirs.items():
            gradient = parameters[ours].grad
            assert gradient is not None
            assert float((gradient - _tensor(reference, f"grad.{key}")).abs().max()) <= TOLERANCE[dtype] * largest, ours
        if through_mlp:
            for ours, tensor in attachment.state_dict().items():
                expected = reference[f"adapter.{_theirs(ours, model)}"]
                assert float((tensor - expected).abs().max()) <= TOLERANCE[dtype], ours


def _tensor(reference: Mapping[str, Tensor], name: str) -> Tensor:
    """Theirs by that name; their MLP's last matrix holds, in blocks, those that ours has for each layer."""
    if not (layer := re.search(r"\.out\.(\d)\.", name)):
        return reference[name]
    whole = reference[name.replace(layer[0], ".out.")]
    rows = 2 * reference["adapter.reparam.encoder_self.embedding"].shape[1]
    return whole[int(layer[1]) * rows : (int(layer[1]) + 1) * rows]


# Our names of tensors -> theirs.
_RENAMED = (
    (r"^(encoder|decoder)\.(\d)", r"\1.layer.\2"),
    (r"\.(self|cross)\.", r".\1_attn."),
    (r"\.heads\.(prefix|multi_head)", ".prefix"),
    (r"\.attention\.bottleneck|(?<=ffn)\.bottleneck", ""),
    (r"\.query\.low_rank\.", ".q.lora_"),
    (r"\.value\.low_rank\.", ".v.lora_"),
    (r"\.ffn_up\.low_rank\.", ".ffn.fc1.lora_"),
    (r"\.ffn_down\.low_rank\.", ".ffn.fc2.lora_"),
    (r"\.norm\.", ".ln."),
    (r"^reparameterisation", "reparam"),
    (r"\.hidden\.", ".in."),
)


def _theirs(ours: str, model: PreTrainedModel) -> str:
    own = f"{model.base_model_prefix}.{ours}"
    for name in (ours, own):
        if name in dict(model.named_parameters()) and not ours.startswith("petl"):
            return name  # bitfit: the model's own
    for pattern, replacement in _RENAMED:
        ours = re.sub(pattern, replacement, ours)
    return ours


def _names(reference: Mapping[str, Tensor]) -> Iterator[str]:
    return (key.removeprefix("adapter.") for key in reference if key.startswith("adapter."))


def test_every_design_is_compared_somewhere() -> None:
    assert {name for _, name in FILES} <= set(DESIGNS)
