"""Rescale: h ⊙ (v - 1), so that h becomes h ⊙ v; v is a learned vector of ones at first ((IA)³, Liu et al., 2022).

It folds into the frozen linear: diag(v) W and v ⊙ b at the linear's output; W diag(v) at the FFN's activations,
the input of W_down.

PEFT's IA3: {linear}.ia3_l (out, 1) for its output, (1, in) for its input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from petl.forms.exchange import PATHS, Found, PeftLayout, Target, Tensors, by_linear, linears_with, padded
from petl.forms.form import IN_LAYERS, FunctionalForm
from petl.forms.peft_fields import COMMON_FIELDS
from petl.forms.vocabulary import LINEARS, Delta, Insertion, Settings, Shapes, Site

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from petl.forms.modules import Change


def _shapes(delta: Delta) -> Shapes:
    return {"vector": (delta.adds,)}


@cache
def _class() -> type[Change]:
    import torch
    from torch import nn

    from petl.forms.modules import Change

    class Rescale(Change):
        """h: (..., adds) -> (..., adds)."""

        def __init__(self, delta: Delta) -> None:
            super().__init__(delta)
            self.vector = nn.Parameter(torch.empty(delta.adds))

        def forward(self, h: Tensor) -> Tensor:
            return h * (self.vector - 1)

        def reset(self, generator: torch.Generator) -> None:
            nn.init.ones_(self.vector)

        def rescaling(self) -> Tensor:
            return self.vector.detach().double()

    return Rescale


def module(delta: Delta) -> Change:
    """Build the module, without first values."""
    return _class()(delta)


_VECTOR = "ia3_l"


def _faults(modifications: Sequence[Settings], target: Target) -> Iterator[str]:
    sides: dict[str, set[bool]] = {}
    for delta in target.deltas(*modifications):
        sides.setdefault(target.linear(delta), set()).add(_is_input(delta))
    if any(len(both) > 1 for both in sides.values()):
        yield f"PEFT rescales a linear's input or its output; received both {Site.FFN_HIDDEN} and {Site.FFN_DOWN}"


def _write(target: Target, deltas: Sequence[Delta], stored: Mapping[str, Tensor]) -> tuple[dict[str, Any], Tensors]:
    import torch

    tensors: Tensors = {}
    inputs = []
    linears = by_linear(target, deltas)
    for path, parts in linears.items():
        # Parts of one place read the same value, so that they add up.
        vector = sum((padded(delta, stored[f"{delta.name}.vector"] - 1) for delta in parts), torch.tensor(1.0))
        if _is_input(parts[0]):
            inputs.append(path)
        tensors[f"{path}.{_VECTOR}"] = vector[None] if _is_input(parts[0]) else vector[:, None]
    options = {"feedforward_modules": sorted(inputs), "fan_in_fan_out": target.transposed}
    return {"target_modules": sorted(linears), **options}, tensors


def _read(target: Target, config: Mapping[str, Any], tensors: Tensors) -> Found:
    changes: Found = {}
    linears = target.at_linears("rescale")
    for path in linears_with(_VECTOR, tensors, linears):
        vector = tensors.pop(f"{path}.{_VECTOR}")
        if vector.ndim != 2 or 1 not in vector.shape:
            raise ValueError(f"the vector of {path} is a row or a column; received the shape {tuple(vector.shape)}")
        of_input = vector.shape[0] == 1
        deltas = [delta for delta in linears[path] if _is_input(delta) is of_input]
        if not deltas:
            raise ValueError(f"only the input of {Site.FFN_DOWN} is rescaled; the adapter rescales that of {path}")
        vector = vector.flatten()
        if len(vector) != deltas[0].total:
            raise ValueError(f"the vector of {path} does not fit the model's linear")
        rescaled = [delta for delta in deltas if vector[delta.rows].ne(1).any()] or deltas
        changes |= {delta.place: (delta.modification, {"vector": vector[delta.rows]}) for delta in rescaled}
    return changes


def _is_input(delta: Delta) -> bool:
    return delta.modification.site is Site.FFN_HIDDEN


RESCALE = FunctionalForm(
    sites=(*LINEARS, Site.FFN_HIDDEN),
    insertions=(Insertion.SEQUENTIAL,),
    sized=False,
    options=(*IN_LAYERS, "attentions"),
    shapes=_shapes,
    module=module,
    counts_vectors=True,
    unmergeable="",
    peft="IA3",
    layout=PeftLayout(
        "IA3Config", PATHS, _faults, _write, _read, COMMON_FIELDS | {"feedforward_modules": (), "init_ia3_weights": ()}
    ),
    phrase="rescale {sites}",
    label="{form}.{site}",
)
