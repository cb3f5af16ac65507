"""A space that is made of dimensions: what each of ours consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from petl.configuration import Configuration, Training
from petl.design import Design, Modification
from spaces.dimensions import Dimensions, of_bounds, of_first_layers, suggest

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

    from petl.backbones.model import Backbone

LEARNING_RATE: Final = "learning_rate"
FIRST_LAYER: Final = "first_layer"


@dataclass(frozen=True)
class ShippedSpace:
    """A search space.

    `dimensions` gives what may be suggested on a backbone; its keywords are the space's options. `build` makes
    the design of values on a stack of so many layers, and `read` gives the values from which `build` makes
    a design, if any do.
    """

    dimensions: Callable[..., Dimensions]
    build: Callable[[Mapping[str, Any], int], Design]
    read: Callable[[Design, int], dict[str, Any]]

    def __call__(
        self, trial: BaseTrial, backbone: Backbone, *, training: Training | None = None, **options: Any
    ) -> Configuration:
        """Return the configuration at the trial's point: its design, and the learning rate in the study's training."""
        values = suggest(trial, self.dimensions(backbone, **options))
        design = self.build(values, backbone.depth)
        return Configuration(design, replace(training or Training(), learning_rate=values[LEARNING_RATE]))


def of_training(learning_rate: Sequence[float]) -> Dimensions:
    """Return the learning rate, log-uniform between two bounds. Raises SpaceError for bounds that are none."""
    return {LEARNING_RATE: of_bounds(LEARNING_RATE, learning_rate)}


def of_layers_and_training(
    backbone: Backbone, first_layers: Sequence[int] | None, learning_rate: Sequence[float]
) -> Dimensions:
    """Return the first adapted layer and the learning rate. Raises SpaceError where either leaves nothing."""
    return {FIRST_LAYER: of_first_layers(backbone, first_layers), **of_training(learning_rate)}


def from_layer(first_layer: int, depth: int, modifications: Sequence[Modification]) -> Design:
    """Return the design of these modifications from a layer on, to the last of the deepest stack."""
    layers = f"top {depth - first_layer}" if first_layer else "all"
    return Design(tuple(replace(m, layers=layers) for m in modifications))


def first_layer(modification: Modification, depth: int) -> dict[str, int]:
    """Read the value from which `from_layer` makes the modification's layers."""
    return {FIRST_LAYER: modification.layers_of(depth)[0]}
