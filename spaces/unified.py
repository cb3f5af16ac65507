"""The unified space: one product of ordinary dimensions, in which every named method is a point.

A size of 0 means that the part is absent; the other coordinates of an absent part mean nothing and
leave the configuration as it is. All sizes at 0 is `head_only`. Most coordinates of a size mean 0, so that a random
point has few parts, whichever sampler draws it: nobody deploys a mixture of seven methods.

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

from petl import parts
from petl.design import Design, Form, Insertion, Modification, Site
from spaces.dimensions import (
    FFN_INSERTIONS,
    INSERTIONS,
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
    sparse,
)
from spaces.shipped import FIRST_LAYER, ShippedSpace, first_layer, from_layer, of_training

if TYPE_CHECKING:
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
PARTS: Final = 2.0


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
    parts: float | None = PARTS,
) -> Dimensions:
    """Return what may be suggested on this backbone. Methods that are not listed have no dimensions.

    `methods` are by default all that the backbone allows without prompts, which train slowly.
    `sizes` are bottleneck widths and ranks, `lengths` prefix lengths; `max_size` cuts both.
    `parts` is how many methods a random point has on average; None makes 0 as likely as each other size.
    Raises SpaceError, naming the rule and the value.
    """
    available = [method for method in METHODS if method != "bias" or backbone.has_biases]
    default = [method for method in available if method != "prompt"]
    included = chosen("methods", default if methods is None else methods, available)
    size = sparse(of_sizes("sizes", sizes, max_size), parts, len(included))
    length = sparse(of_sizes("lengths", lengths, max_size), parts, len(included))
    switch = sparse(SWITCH, parts, len(included))
    scale = of_scales(scales)
    rows: dict[str, Dimension] = {}
    if "prefix" in included:
        rows["prefix.length"] = length
    if "multi_head" in included:
        rows["multi_head.size"] = size
    if "attention" in included:
        rows |= {"attention.size": size, "attention.insertion": Choice(INSERTIONS)}
    if "ffn" in included:
        rows |= {"ffn.size": size, "ffn.insertion": Choice(FFN_INSERTIONS), "ffn.scale": scale}
    low_rank = [method for method in included if method.startswith("low_rank")]
    if low_rank:
        rows |= dict.fromkeys(low_rank, size) | {"low_rank.scale": scale}
    if "rescale" in included:
        rows["rescale"] = switch
    if "prompt" in included:
        rows["prompt.length"] = length
    if "bias" in included:
        rows["bias"] = switch
    if _IN_LAYERS.intersection(included):
        rows[FIRST_LAYER] = of_first_layers(backbone, first_layers)
    return {**rows, **of_training(learning_rate)}


def build(values: Mapping[str, Any], depth: int) -> Design:
    """Return the design with these values; what `values` leaves out is absent."""
    in_layers: list[Modification] = []
    if length := values.get("prefix.length"):
        in_layers.append(parts.prefix(length))
    if size := values.get("multi_head.size"):
        in_layers.append(parts.multi_head(size))
    for site in (Site.ATTENTION, Site.FFN):
        if size := values.get(f"{site}.size"):
            insertion = Insertion(values.get(f"{site}.insertion", INSERTIONS[0]))
            in_layers.append(parts.bottleneck(site, insertion, size, scale=values.get(f"{site}.scale", 1.0)))
    for sub_layer, sites in parts.LORA_SITES.items():
        if rank := values.get(f"low_rank.{sub_layer}"):
            in_layers += [parts.low_rank(site, rank, values.get("low_rank.scale", 1.0)) for site in sites]
    if values.get("rescale"):
        in_layers += map(parts.rescale, parts.IA3_SITES)
    elsewhere: list[Modification] = []
    if length := values.get("prompt.length"):
        elsewhere.append(parts.prompt(length))
    if values.get("bias"):
        elsewhere.append(parts.bias())
    return from_layer(values.get(FIRST_LAYER, 0), depth, in_layers) | Design(tuple(elsewhere))


def read(design: Design, depth: int) -> dict[str, Any]:
    """Return the values from which `build` makes this design, if any do; of absent parts, none."""
    values: dict[str, Any] = {}
    for m in design.modifications:
        values |= _read(m)
        if m.form not in (Form.BIAS, Form.PROMPT):
            values |= first_layer(m, depth)
    return values


def _read(m: Modification) -> dict[str, Any]:
    match m.form, m.site:
        case Form.PREFIX, _:
            return {"prefix.length": m.size}
        case Form.MULTI_HEAD, _:
            return {"multi_head.size": m.size}
        case Form.BOTTLENECK, Site.ATTENTION:
            return {"attention.size": m.size, "attention.insertion": m.insertion}
        case Form.BOTTLENECK, _:
            return {"ffn.size": m.size, "ffn.insertion": m.insertion, "ffn.scale": m.scale}
        case Form.LOW_RANK, Site.FFN_UP | Site.FFN_DOWN:
            return {"low_rank.ffn": m.size, "low_rank.scale": m.scale}
        case Form.LOW_RANK, _:
            return {"low_rank.attention": m.size, "low_rank.scale": m.scale}
        case Form.RESCALE, _:
            return {"rescale": 1}
        case Form.PROMPT, _:
            return {"prompt.length": m.size}
        case Form.BIAS, _:
            return {"bias": 1}
    return {}


unified = ShippedSpace(dimensions, build, read)
