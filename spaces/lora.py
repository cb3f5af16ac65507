"""LoRA with a rank of its own for every linear of a layer; rank 0 leaves the linear alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from petl import parts
from petl.design import LINEARS, Design, Form
from spaces.dimensions import LEARNING_RATE, SCALES, SIZES, Dimensions, chosen, of_scales, of_sizes
from spaces.shipped import ShippedSpace, first_layer, from_layer, of_layers_and_training

if TYPE_CHECKING:
    from petl.backbones.model import Backbone


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
    """Return `SITE.size` for each of `sites` (default: all that the backbone has), `scale`, and the common ones.

    Raises SpaceError, naming the rule and the value.
    """
    linears = backbone.linears
    size = of_sizes("sizes", sizes, max_size)
    return {
        **{f"{site}.size": size for site in chosen("sites", sites or linears, linears)},
        "scale": of_scales(scales),
        **of_layers_and_training(backbone, first_layers, learning_rate),
    }


def build(values: Mapping[str, Any], depth: int) -> Design:
    """Return the design with these values."""
    ranks = {site: values.get(f"{site}.size", 0) for site in LINEARS}
    changes = [parts.low_rank(site, rank, values["scale"]) for site, rank in ranks.items() if rank]
    return from_layer(values["first_layer"], depth, changes)


def read(design: Design, depth: int) -> dict[str, Any]:
    """Return the values from which `build` makes this design, if any do."""
    values: dict[str, Any] = {}
    for m in design.modifications:
        if m.form is Form.LOW_RANK:
            values |= {f"{m.site}.size": m.size, "scale": m.scale, **first_layer(m, depth)}
    return values


lora = ShippedSpace(dimensions, build, read)
