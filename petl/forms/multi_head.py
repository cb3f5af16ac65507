"""Multi-head adapter: s ReLU(x W_q P_kᵀ) P_v, per head, beside the frozen attention (He et al., section 3.3)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from petl.forms.form import IN_LAYERS, FunctionalForm
from petl.forms.vocabulary import SCALED, Delta, Shapes, Site

if TYPE_CHECKING:
    from torch import Tensor

    from petl.forms.modules import Heads


def _shapes(delta: Delta) -> Shapes:
    size = delta.modification.size
    return {"key": (size, delta.reads), "value": (size, delta.adds)}


@cache
def _class() -> type[Heads]:
    from torch.nn import functional

    from petl.forms.modules import Heads

    class MultiHead(Heads):
        def weights(self, scores: Tensor) -> Tensor:
            return functional.relu(scores)

    return MultiHead


def module(delta: Delta) -> Heads:
    """Build the module, without first values."""
    return _class()(delta)


MULTI_HEAD = FunctionalForm(
    sites=(Site.HEADS,),
    compositions=SCALED,
    options=(*IN_LAYERS, "attentions", "layer_norm", "dropout"),
    shapes=_shapes,
    module=module,
    unmergeable="its ReLU is not linear",
    not_in_peft="PEFT has no adapters of heads",
    phrase="multi-head",
)
