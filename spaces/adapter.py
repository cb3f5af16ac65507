"""Bottleneck adapters on the attention and the FFN, with their layer norm, insertion, scale and start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from petl import parts
from petl.design import Design, Form, Init, Insertion, LayerNorm, Site
from spaces.dimensions import (
    FFN_INSERTIONS,
    INSERTIONS,
    LEARNING_RATE,
    SCALES,
    SIZES,
    Choice,
    Dimension,
    Dimensions,
    chosen,
    of_scales,
    of_sizes,
)
from spaces.shipped import ShippedSpace, first_layer, from_layer, of_layers_and_training

if TYPE_CHECKING:
    from petl.backbones.model import Backbone

SITES: Final = (Site.ATTENTION, Site.FFN)


def dimensions(
    backbone: Backbone,
    *,
    sites: Sequence[str] = SITES,
    sizes: Sequence[int] = SIZES,
    max_size: int | None = None,
    scales: Sequence[float] = SCALES,
    first_layers: Sequence[int] | None = None,
    learning_rate: Sequence[float] = LEARNING_RATE,
) -> Dimensions:
    """Return `SITE.size`, `.insertion`, `.layer_norm` for each of `sites`, `ffn.scale`, `init`, and the common ones.

    Raises SpaceError, naming the rule and the value.
    """
    included = chosen("sites", sites, SITES)
    rows: dict[str, Dimension] = {}
    for site in included:
        rows |= {
            f"{site}.size": of_sizes("sizes", sizes, max_size),
            f"{site}.insertion": Choice(FFN_INSERTIONS if site is Site.FFN else INSERTIONS),
            f"{site}.layer_norm": Choice(tuple(map(str, LayerNorm))),
        }
    if Site.FFN in included:
        rows["ffn.scale"] = of_scales(scales)
    return {
        **rows,
        "init": Choice(tuple(map(str, Init))),
        **of_layers_and_training(backbone, first_layers, learning_rate),
    }


def build(values: Mapping[str, Any], depth: int) -> Design:
    """Return the design with these values."""
    adapters = [
        parts.bottleneck(
            site,
            Insertion(values[f"{site}.insertion"]),
            size,
            scale=values.get(f"{site}.scale", 1.0),
            layer_norm=LayerNorm(values[f"{site}.layer_norm"]),
            init=Init(values["init"]),
        )
        for site in SITES
        if (size := values.get(f"{site}.size"))
    ]
    return from_layer(values["first_layer"], depth, adapters)


def read(design: Design, depth: int) -> dict[str, Any]:
    """Return the values from which `build` makes this design, if any do."""
    values: dict[str, Any] = {}
    for m in design.modifications:
        if m.form is Form.BOTTLENECK:
            values |= {
                f"{m.site}.size": m.size,
                f"{m.site}.insertion": m.insertion,
                f"{m.site}.layer_norm": m.layer_norm,
                "init": m.init,
                **first_layer(m, depth),
            }
            if m.site is Site.FFN:
                values["ffn.scale"] = m.scale
    return values


adapter = ShippedSpace(dimensions, build, read)
