"""Bottleneck: s (ReLU(N(z) W_down) W_up), an adapter (Houlsby et al., 2019)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from petl.forms.form import IN_LAYERS, FunctionalForm
from petl.forms.vocabulary import SCALED, Delta, Insertion, LayerNorm, Shapes, Site

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from petl.forms.modules import Change


def _shapes(delta: Delta) -> Shapes:
    size = delta.modification.size
    return {
        "down.weight": (size, delta.reads),
        "down.bias": (size,),
        "up.weight": (delta.adds, size),
        "up.bias": (delta.adds,),
    }


@cache
def _class() -> type[Change]:
    from torch import nn
    from torch.nn import functional

    from petl.forms.modules import Change, UndrawnLinear, draw_matrices

    class Bottleneck(Change):
        """z: (..., reads) -> (..., adds).

        N is a layer norm for "in", nothing otherwise; for "out" the norm comes after s. s multiplies the
        up-projection's bias too. Dropout acts on the bottleneck.
        """

        def __init__(self, delta: Delta) -> None:
            super().__init__(delta)
            self.down = UndrawnLinear(delta.reads, delta.modification.size)
            self.up = UndrawnLinear(delta.modification.size, delta.adds)

        def forward(self, z: Tensor) -> Tensor:
            norm = self.modification.layer_norm
            if norm is LayerNorm.IN:
                z = self.norm(z)
            change = self.scaled(self.up(self.drop(functional.relu(self.down(z)))))
            result: Tensor = self.norm(change) if norm is LayerNorm.OUT else change
            return result

        def reset(self, generator: torch.Generator) -> None:
            super().reset(generator)
            draw_matrices(self.down.weight, self.up.weight, self.modification.init, generator)
            nn.init.zeros_(self.down.bias)
            nn.init.zeros_(self.up.bias)

    return Bottleneck


def module(delta: Delta) -> Change:
    """Build the module, without first values."""
    return _class()(delta)


BOTTLENECK = FunctionalForm(
    sites=(Site.ATTENTION, Site.FFN),
    insertions=tuple(Insertion),
    compositions=SCALED,
    options=(*IN_LAYERS, "attentions", "layer_norm", "init", "dropout"),
    shapes=_shapes,
    module=module,
    unmergeable="its ReLU is not linear",
    not_in_peft="PEFT has no bottleneck adapters",
    phrase="{sites} {insertion}",
    label="{site}",
)
