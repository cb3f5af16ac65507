"""The unified space: one product of ordinary dimensions, in which every named method is a point.

A size of 0 means that the part is absent; the other coordinates of an absent part mean nothing and
leave the configuration as it is. All sizes at 0 is `head_only`.

| dimension | part |
|---|---|
| prefix.length | vectors before the keys and values of every attention |
| multi_head.size | multi-head parallel adapter on every attention |
| attention.size, .insertion | bottleneck on the attention |
| ffn.size, .insertion, .scale | bottleneck on the FFN, or after its residual |
| low_rank.attention | rank of LoRA on query and value |
| low_rank.ffn | rank of LoRA on both linears of the FFN |
| low_rank.scale | s of both |
| rescale | (IA)³: keys, values and the FFN's activations rescaled |
| prompt.length | vectors in front of the input, where `methods` asks for them |
| bias | BitFit, in all layers, where the backbone has biases |
| first_layer | the lowest layer that the other parts adapt |
| learning_rate | |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from petl.configuration import Configuration, Training
from petl.design import Design, Form, Init, LayerNorm, Modification, Site
from spaces import parts
from spaces.dimensions import (
    LEARNING_RATE,
    LENGTHS,
    SCALES,
    SIZES,
    SWITCH,
    Choice,
    Dimension,
    Dimensions,
    chosen,
    of_first_layers,
    of_scales,
    of_sizes,
    suggest,
)
from spaces.training import DEFAULT, of_training, with_training

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

    from petl.backbones.model import Backbone

METHODS: Final = (
    "prefix",
    "multi_head",
    "attention",
    "ffn",
    "low_rank.attention",
    "low_rank.ffn",
    "rescale",
    "prompt",
    "bias",
)
_IN_LAYERS: Final = frozenset(METHODS) - {"prompt", "bias"}

_ATTENTION: Final = (Site.QUERY, Site.VALUE)
_FFN: Final = (Site.FFN_UP, Site.FFN_DOWN)


def unified(trial: BaseTrial, backbone: Backbone, *, training: Training = DEFAULT, **limits: Any) -> Configuration:
    """The configuration at the trial's point. `limits` are the keywords of `dimensions`."""
    values = suggest(trial, dimensions(backbone, **limits))
    return with_training(build(values, backbone.depth), training, values)


def dimensions(
    backbone: Backbone,
    *,
    methods: Sequence[str] | None = None,
    sizes: Sequence[int] = SIZES,
    lengths: Sequence[int] = LENGTHS,
    max_size: int | None = None,
    scales: Sequence[float] = SCALES,
    first_layers: Sequence[int] | None = None,
    learning_rate: Sequence[float] = LEARNING_RATE,
) -> Dimensions:
    """What may be suggested on this backbone. Methods that are not listed have no dimensions.

    `methods` are by default all that the backbone allows but prompts, which train slowly.
    `sizes` are bottleneck widths and ranks, `lengths` prefix lengths; `max_size` cuts both.
    Raises SpaceError, naming the rule and what it got.
    """
    there = [method for method in METHODS if method != "bias" or backbone.has_biases]
    on = chosen("methods", [m for m in there if m != "prompt"] if methods is None else methods, there)
    size = of_sizes("sizes", sizes, max_size)
    scale = of_scales(scales)
    rows: dict[str, Dimension] = {}
    if "prefix" in on:
        rows["prefix.length"] = of_sizes("lengths", lengths, max_size)
    if "multi_head" in on:
        rows["multi_head.size"] = size
    if "attention" in on:
        rows |= {"attention.size": size, "attention.insertion": Choice(parts.INSERTIONS)}
    if "ffn" in on:
        rows |= {"ffn.size": size, "ffn.insertion": Choice(parts.FFN_INSERTIONS), "ffn.scale": scale}
    low_rank = [method for method in on if method.startswith("low_rank")]
    if low_rank:
        rows |= dict.fromkeys(low_rank, size) | {"low_rank.scale": scale}
    if "rescale" in on:
        rows["rescale"] = SWITCH
    if "prompt" in on:
        rows["prompt.length"] = of_sizes("lengths", lengths, max_size)
    if "bias" in on:
        rows["bias"] = SWITCH
    if _IN_LAYERS.intersection(on):
        rows["first_layer"] = of_first_layers(backbone, first_layers)
    return {**rows, **of_training(learning_rate)}


def build(values: Mapping[str, Any], depth: int) -> Design:
    """The design with these values, in canonical form. What `values` leaves out is absent."""
    layers = parts.top(values.get("first_layer", 0), depth)
    low_rank_scale = values.get("low_rank.scale", 1.0)
    ffn_scale = values.get("ffn.scale", 1.0)
    return Design(
        (
            *parts.prefix(values.get("prefix.length", 0), layers),
            *parts.multi_head(values.get("multi_head.size", 0), layers),
            *parts.bottleneck(
                Site.ATTENTION,
                values.get("attention.size", 0),
                values.get("attention.insertion", parts.INSERTIONS[0]),
                layers,
                layer_norm=LayerNorm.IN,
            ),
            *parts.bottleneck(
                Site.FFN,
                values.get("ffn.size", 0),
                values.get("ffn.insertion", parts.INSERTIONS[0]),
                layers,
                scale=ffn_scale,
                init=Init.LORA if ffn_scale > 1 else Init.BERT,
            ),
            *parts.low_rank(_ATTENTION, values.get("low_rank.attention", 0), low_rank_scale, layers),
            *parts.low_rank(_FFN, values.get("low_rank.ffn", 0), low_rank_scale, layers),
            *parts.rescale(values.get("rescale", 0), layers),
            *parts.prompt(values.get("prompt.length", 0)),
            *parts.bias(values.get("bias", 0)),
        )
    )


def read(design: Design, depth: int) -> dict[str, Any]:
    """The values from which `build` makes this design, if any do; of absent parts, none."""
    values: dict[str, Any] = {}
    for part in design.modifications:
        values |= _read(part)
        if part.form not in (Form.BIAS, Form.PROMPT):
            values["first_layer"] = part.layers_of(depth)[0]
    return values


def _read(part: Modification) -> dict[str, Any]:
    match part.form, part.site:
        case Form.PREFIX, _:
            return {"prefix.length": part.size}
        case Form.MULTI_HEAD, _:
            return {"multi_head.size": part.size}
        case Form.BOTTLENECK, Site.ATTENTION:
            return {"attention.size": part.size, "attention.insertion": part.insertion}
        case Form.BOTTLENECK, _:
            return {"ffn.size": part.size, "ffn.insertion": part.insertion, "ffn.scale": part.scale}
        case Form.LOW_RANK, Site.FFN_UP | Site.FFN_DOWN:
            return {"low_rank.ffn": part.size, "low_rank.scale": part.scale}
        case Form.LOW_RANK, _:
            return {"low_rank.attention": part.size, "low_rank.scale": part.scale}
        case Form.RESCALE, _:
            return {"rescale": 1}
        case Form.PROMPT, _:
            return {"prompt.length": part.size}
        case Form.BIAS, _:
            return {"bias": 1}
    return {}
