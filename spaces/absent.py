"""Which coordinates of a space mean that a part is absent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spaces.dimensions import Ordinal
from spaces.space import SPACES, BoundSpace, Space

if TYPE_CHECKING:
    from petl.backbones.model import Backbone


def absent(space: Space, backbone: Backbone) -> dict[str, int]:
    """Return the last coordinate that means 0 of each dimension in which several do; none of a user's own space."""
    if not isinstance(space, BoundSpace) or space.name not in SPACES:
        return {}
    options = {name: value for name, value in space.options.items() if name != "training"}
    return {
        name: dimension.coordinate(0)
        for name, dimension in SPACES[space.name].dimensions(backbone, **options).items()
        if isinstance(dimension, Ordinal) and dimension.values[:2] == (0, 0)
    }
