"""Prefix tuning: how many vectors, from which layer on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from petl import parts
from petl.design import Design, Form
from spaces.dimensions import LEARNING_RATE, LENGTHS, Dimensions, of_sizes
from spaces.shipped import ShippedSpace, first_layer, from_layer, of_layers_and_training

if TYPE_CHECKING:
    from petl.backbones.model import Backbone


def dimensions(
    backbone: Backbone,
    *,
    lengths: Sequence[int] = LENGTHS,
    first_layers: Sequence[int] | None = None,
    learning_rate: Sequence[float] = LEARNING_RATE,
) -> Dimensions:
    """Return `length`, `first_layer` and `learning_rate`. Raises SpaceError, naming the rule and the value."""
    return {"length": of_sizes("lengths", lengths), **of_layers_and_training(backbone, first_layers, learning_rate)}


def build(values: Mapping[str, Any], depth: int) -> Design:
    """Return the design with these values."""
    length = values["length"]
    return from_layer(values["first_layer"], depth, [parts.prefix(length)] if length else [])


def read(design: Design, depth: int) -> dict[str, Any]:
    """Return the values from which `build` makes this design, if any do."""
    values: dict[str, Any] = {}
    for m in design.modifications:
        if m.form is Form.PREFIX:
            values |= {"length": m.size, **first_layer(m, depth)}
    return values


prefix = ShippedSpace(dimensions, build, read)
