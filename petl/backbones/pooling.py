"""A linear head on pooled hidden states, in place of a classifier's own head."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

from petl.backbones.families import Family, family_of
from petl.backbones.locate import BackboneError
from petl.backbones.model import POOLED_HEAD, parameters_of
from petl.head import MODEL

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def pool(model: PreTrainedModel, pooling: str) -> dict[str, nn.Module]:
    """Give a classifier a new linear head on its pooled hidden states, float32, of zeros.

    Return the model's own head, which `unpool` brings back; with `pooling` "model" it stays. Raises BackboneError for
    the first token of a decoder, and for a model that does not classify.
    """
    from torch import nn

    if pooling == MODEL:
        return {}
    own = parameters_of(model)
    if not own.head:
        raise BackboneError(f"head.pooling {pooling} is for classifiers; {type(model).__name__} has no task head")
    require_pooling(family_of(model), pooling)
    width = next(parameter.shape[-1] for parameter in own.head.values() if parameter.dim() > 1)
    modules = {name: getattr(model, name) for name in {name.partition(".")[0] for name in own.head}}
    for name in modules:
        delattr(model, name)
    head = nn.Linear(width, int(model.config.num_labels or 0), device=next(iter(own.base.values())).device)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    model.add_module(POOLED_HEAD, head)
    model.forward = MethodType(partial(_classify, pooling=pooling), model)
    return modules


def unpool(model: PreTrainedModel, own_head: Mapping[str, nn.Module]) -> None:
    """Bring back the head that `pool` returned, where it did."""
    if not own_head:
        return
    weight = model.get_parameter(f"{POOLED_HEAD}.weight")
    del model.forward
    delattr(model, POOLED_HEAD)
    for name, module in own_head.items():
        model.add_module(name, module.to(weight.device))  # `model.to` did not reach it


def require_pooling(family: Family, pooling: str) -> None:
    """Raise BackboneError where the token that a head reads has seen no other one."""
    if not family.encodes and pooling == "first":
        raise BackboneError(
            f"head.pooling first is for encoders: the first token of a decoder, {family.name}, has seen no other one; "
            "take last or mean"
        )


def pooled(model: PreTrainedModel, inputs: Mapping[str, Tensor], pooling: str) -> Tensor:
    """Return the last layer's output for a batch of padded texts, pooled: (rows, width), float32."""
    import torch

    named = dict(inputs)
    shift = getattr(model.base_model, "_shift_right", None)  # T5's head does it, the others' base model
    if shift and model.config.is_encoder_decoder:
        named.setdefault("decoder_input_ids", shift(named["input_ids"]))
    hidden: Tensor = model.base_model(**named).last_hidden_state.float()
    mask = inputs["attention_mask"]
    if pooling == "mean":
        weight = mask.unsqueeze(-1)
        return (hidden * weight).sum(1) / weight.sum(1)
    places = torch.arange(mask.shape[1], device=mask.device)
    token = (mask * places).argmax(1) if pooling == "last" else mask.argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), token]


def _classify(model: Any, *, pooling: str, **inputs: Tensor) -> Any:
    from transformers.modeling_outputs import SequenceClassifierOutput

    return SequenceClassifierOutput(logits=getattr(model, POOLED_HEAD)(pooled(model, inputs, pooling)))
