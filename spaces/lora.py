"""LoRA with a rank of its own for every linear of a layer; rank 0 leaves the linear alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from petl.configuration import Configuration, Training
from petl.design import LINEARS, Design, Form, Site
from spaces import parts
from spaces.dimensions import (
    LEARNING_RATE,
    SCALES,
    SIZES,
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


def lora(trial: BaseTrial, backbone: Backbone, *, training: Training = DEFAULT, **limits: Any) -> Configuration:
    """The configuration at the trial's point. `limits` are the keywords of `dimensions`."""
    values = suggest(trial, dimensions(backbone, **limits))
    return with_training(build(values, backbone.depth), training, values)


def dimensions(
    backbone: Backbone,
    *,
    sites: Sequence[str] | None = None,
    sizes: Sequence[int] = SIZES,
    max_size: int | None = None,
    scales: Sequence[float] = SCALES,
    first_layers: Sequence[int] | None = None,
    learning_rate: Sequence[float] = LEARNING_RATE,
) -> Dimensions:
    """`SITE.size` for each of `sites` (default: all that the backbone has), `scale`, `first_layer`, `learning_rate`.

    Raises SpaceError, naming the rule and what it got.
    """
    there = backbone.linears
    size = of_sizes("sizes", sizes, max_size)
    return {
        **{f"{site}.size": size for site in chosen("sites", sites or there, there)},
        "scale": of_scales(scales),
        "first_layer": of_first_layers(backbone, first_layers),
        **of_training(learning_rate),
    }


def build(values: Mapping[str, Any], depth: int) -> Design:
    """The design with these values, in canonical form."""
    layers = parts.top(values["first_layer"], depth)
    return Design(
        tuple(
            part
            for site in LINEARS
            for part in parts.low_rank((site,), values.get(f"{site}.size", 0), values["scale"], layers)
        )
    )


def read(design: Design, depth: int) -> dict[str, Any]:
    """The values from which `build` makes this design, if any do."""
    values: dict[str, Any] = {}
    for part in design.modifications:
        if part.form is Form.LOW_RANK:
            values |= {f"{Site(part.site)}.size": part.size, "scale": part.scale}
            values["first_layer"] = part.layers_of(depth)[0]
    return values
