"""Prefix tuning: how many vectors, from which layer on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from petl.configuration import Configuration, Training
from petl.design import Design, Form
from spaces import parts
from spaces.dimensions import (
    LEARNING_RATE,
    LENGTHS,
    Dimensions,
    of_first_layers,
    of_sizes,
    suggest,
)
from spaces.training import DEFAULT, of_training, with_training

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

    from petl.backbones.model import Backbone


def prefix(trial: BaseTrial, backbone: Backbone, *, training: Training = DEFAULT, **limits: Any) -> Configuration:
    """The configuration at the trial's point. `limits` are the keywords of `dimensions`."""
    values = suggest(trial, dimensions(backbone, **limits))
    return with_training(build(values, backbone.depth), training, values)


def dimensions(
    backbone: Backbone,
    *,
    lengths: Sequence[int] = LENGTHS,
    first_layers: Sequence[int] | None = None,
    learning_rate: Sequence[float] = LEARNING_RATE,
) -> Dimensions:
    """`length`, `first_layer` and `learning_rate`. Raises SpaceError, naming the rule and what it got."""
    return {
        "length": of_sizes("lengths", lengths),
        "first_layer": of_first_layers(backbone, first_layers),
        **of_training(learning_rate),
    }


def build(values: Mapping[str, Any], depth: int) -> Design:
    """The design with these values, in canonical form."""
    return Design(parts.prefix(values["length"], parts.top(values["first_layer"], depth)))


def read(design: Design, depth: int) -> dict[str, Any]:
    """The values from which `build` makes this design, if any do."""
    return {
        name: value
        for part in design.modifications
        if part.form is Form.PREFIX
        for name, value in (("length", part.size), ("first_layer", part.layers_of(depth)[0]))
    }
