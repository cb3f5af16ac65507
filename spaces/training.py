"""The training hyperparameters that are searched; the study fixes the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from petl.configuration import Configuration, Training
from petl.design import Design
from spaces.dimensions import Dimensions, of_bounds

NAME: Final = "learning_rate"
DEFAULT: Final = Training()


def of_training(learning_rate: Sequence[float]) -> Dimensions:
    """The learning rate, log-uniform between two bounds. Raises SpaceError for bounds that are none."""
    return {NAME: of_bounds(NAME, learning_rate)}


def with_training(design: Design, training: Training, values: Mapping[str, Any]) -> Configuration:
    """The design under the study's training, with what the point says of it."""
    return Configuration(design, replace(training, learning_rate=values[NAME]))
