"""Bottleneck adapters on the attention and the FFN, with their layer norm, insertion, scale and start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from petl.configuration import Configuration, Training
from petl.design import Design, Form, Init, LayerNorm, Site
from spaces import parts
from spaces.dimensions import (
    LEARNING_RATE,
    SCALES,
    SIZES,
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

SITES: Final = (Site.ATTENTION, Site.FFN)


def adapter(trial: BaseTrial, backbone: Backbone, *, training: Training = DEFAULT, **limits: Any) -> Configuration:
    """The configuration at the trial's point. `limits` are the keywords of `dimensions`."""
    values = suggest(trial, dimensions(backbone, **limits))
    return with_training(build(values, backbone.depth), training, values)


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
    """`SITE.size`, `.insertion` and `.layer_norm` for each of `sites`, `ffn.scale`, `init`, and the common ones.

    Raises SpaceError, naming the rule and what it got.
    """
    on = chosen("sites", sites, SITES)
    rows: dict[str, Dimension] = {}
    for site in on:
        rows |= {
            f"{site}.size": of_sizes("sizes", sizes, max_size),
            f"{site}.insertion": Choice(parts.FFN_INSERTIONS if site is Site.FFN else parts.INSERTIONS),
            f"{site}.layer_norm": Choice(tuple(map(str, LayerNorm))),
        }
    if Site.FFN in on:
        rows["ffn.scale"] = of_scales(scales)
    return {
        **rows,
        "init": Choice(tuple(map(str, Init))),
        "first_layer": of_first_layers(backbone, first_layers),
        **of_training(learning_rate),
    }


def build(values: Mapping[str, Any], depth: int) -> Design:
    """The design with these values, in canonical form."""
    layers = parts.top(values["first_layer"], depth)
    return Design(
        tuple(
            part
            for site in SITES
            if values.get(f"{site}.size")
            for part in parts.bottleneck(
                site,
                values[f"{site}.size"],
                values[f"{site}.insertion"],
                layers,
                scale=values.get(f"{site}.scale", 1.0),
                layer_norm=values[f"{site}.layer_norm"],
                init=values["init"],
            )
        )
    )


def read(design: Design, depth: int) -> dict[str, Any]:
    """The values from which `build` makes this design, if any do."""
    values: dict[str, Any] = {}
    for part in design.modifications:
        if part.form is Form.BOTTLENECK:
            values |= {
                f"{part.site}.size": part.size,
                f"{part.site}.insertion": part.insertion,
                f"{part.site}.layer_norm": part.layer_norm,
                "init": part.init,
                "first_layer": part.layers_of(depth)[0],
            }
            if part.site is Site.FFN:
                values["ffn.scale"] = part.scale
    return values
