"""The torch module that all forms share. Each form computes the change only, never the residual.

The forms' files import this one inside functions, so that the table of forms needs no torch. A module is built on its
`Delta`, which gives its modification and the widths that it reads and adds to; `reset` gives it its first values,
drawn from a generator alone. All tensors of a form are used inside its own forward call: ZeRO-3 gathers them for its
duration only.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from petl.forms.vocabulary import Composition, Delta, Init, LayerNorm

NORM_EPS: Final = 1e-5  # whatever the backbone's configuration says (fixtures)


class UndrawnLinear(nn.Linear):
    """An `nn.Linear` without first values of its own, which would be drawn from the global generator."""

    def reset_parameters(self) -> None:
        """Leave the first values to the form that the linear belongs to."""


class Change(nn.Module):
    """What forms share: a scale s, constant or learned, an own layer norm, dropout."""

    scale: float | nn.Parameter

    def __init__(self, delta: Delta) -> None:
        super().__init__()
        self.delta = delta
        m = self.modification = delta.modification
        if m.composition is Composition.LEARNED_SCALE:
            self.scale = nn.Parameter(torch.empty(1))
        else:
            self.scale = m.scale
        if m.layer_norm is not LayerNorm.NONE:
            self.norm = nn.LayerNorm(delta.normed, eps=NORM_EPS)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the `module` function of the form's file: a class inside a function is not found by its name."""
        return sys.modules[type(self).__module__].module, (self.delta,), self.__getstate__()  # type: ignore[no-untyped-call]

    def reset(self, generator: torch.Generator) -> None:
        """Give the tensors their first values."""
        if isinstance(self.scale, nn.Parameter):
            nn.init.constant_(self.scale, self.modification.scale)
        if self.modification.layer_norm is not LayerNorm.NONE:
            self.norm.reset_parameters()

    def weight_change(self) -> Tensor | None:
        """Return ΔW, (adds, reads) in float64, where Δh = x ΔWᵀ is the change of a linear; None otherwise."""
        return None

    def rescaling(self) -> Tensor | None:
        """Return v in float64, where h + Δh = h ⊙ v; None otherwise."""
        return None

    def scaled(self, change: Tensor) -> Tensor:
        """Return s times the change."""
        if isinstance(self.scale, float) and self.scale == 1.0:
            return change
        return self.scale * change

    def drop(self, z: Tensor) -> Tensor:
        """Apply the modification's own dropout."""
        rate = self.modification.dropout
        return functional.dropout(z, rate, self.training) if rate else z

    def double_scale(self) -> Tensor | float:
        """Return s, in float64 where it is learned."""
        return self.scale.detach().double() if isinstance(self.scale, Tensor) else self.scale


class Heads(Change):
    """f(q P_kᵀ) P_v for each head: a prefix with f = softmax, a multi-head adapter with f = ReLU (section 3.2).

    P_k, P_v: (size, key width), (size, value width), whose blocks are the heads'; where several
    query heads share a key head, they share its block. q is the model's own query, scaled as its
    attention scales it; with a layer norm, the query of the normed input. Dropout acts on P_k and P_v.

    A gated prefix is joined with the model's own keys and values before the one softmax, which is
    the gated form (1-λ) Attn(q, K, V) + λ softmax(q P_kᵀ) P_v (equations 5 to 7): call it with key
    and value. The others are added: call them with the query alone.
    """

    def __init__(self, delta: Delta, *, direct: bool = True) -> None:
        super().__init__(delta)
        if direct:
            self.key = nn.Parameter(torch.empty(delta.modification.size, delta.reads))
            self.value = nn.Parameter(torch.empty(delta.modification.size, delta.adds))
        self.normed_query: Tensor | None = None  # (batch, tokens, query width), left by `attention.NormedQuery`

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what a pass that failed has left."""
        return {**vars(self), "normed_query": None}

    @property
    def joined(self) -> bool:
        """Return whether it shares the model's softmax."""
        return self.modification.composition is Composition.GATE

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return (P_k, P_v)."""
        return self.key, self.value

    def weights(self, scores: Tensor) -> Tensor:
        """Return f(scores)."""
        raise NotImplementedError

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        scaling: float = 1.0,
        dropout: float = 0.0,
    ) -> tuple[Tensor, ...]:
        """Return (query, key, value) with the prefix in front where key and value are given, else (Δh,).

        All (batch, heads, tokens, head width); `dropout` is the attention's own.
        """
        own, self.normed_query = self.normed_query, None  # let go of, so that no activation outlives the pass
        width = query.shape[-1] if value is None else value.shape[-1]
        if own is not None:
            own = own.view(*own.shape[:2], -1, width).transpose(1, 2)
        p_k, p_v = (self.drop(rows).view(rows.shape[0], -1, width).transpose(0, 1) for rows in self.rows())
        if key is not None and value is not None:
            return _join(query, key, value, own, p_k.to(key.dtype), p_v.to(value.dtype))
        q = query if own is None else own
        groups = q.shape[1] // p_k.shape[0]
        p_k, p_v = (rows.repeat_interleave(groups, 0) if groups > 1 else rows for rows in (p_k, p_v))
        weights = self.weights(scaling * q @ p_k.mT.to(q.dtype))
        weights = functional.dropout(weights, dropout) if dropout else weights
        return (self.scaled(weights @ p_v.to(weights.dtype)),)

    def reset(self, generator: torch.Generator) -> None:
        """Draw N(0, 0.02): keys and values have no zero that would leave the model as it was."""
        super().reset(generator)
        nn.init.normal_(self.key, std=0.02, generator=generator)
        nn.init.normal_(self.value, std=0.02, generator=generator)


def draw_matrices(down: Tensor, up: Tensor, init: Init, generator: torch.Generator) -> None:
    """Draw the first values of a product of two matrices, as `init` says."""
    if init is Init.BERT:
        nn.init.normal_(down, std=0.02, generator=generator)
        nn.init.normal_(up, std=0.02, generator=generator)
    else:
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(up)


def _join(
    query: Tensor, key: Tensor, value: Tensor, own: Tensor | None, p_k: Tensor, p_v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Put prefix rows in front of keys and values.

    A query of its own takes columns of its own, in which the model's keys are zero: one product then
    gives q Kᵀ for the model's columns and q' P_kᵀ for the prefix's.
    """
    batch, _, _, width = key.shape
    if own is None:
        p_k = functional.pad(p_k, (0, width - p_k.shape[-1]))
    else:
        query, key = torch.cat((query, own.to(query.dtype)), -1), functional.pad(key, (0, p_k.shape[-1]))
        p_k = functional.pad(p_k, (width, 0))
    return (
        query,
        torch.cat((p_k.expand(batch, -1, -1, -1), key), 2),
        torch.cat((p_v.expand(batch, -1, -1, -1), value), 2),
    )
