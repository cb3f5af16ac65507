"""The functional forms of Δh as small modules. Each computes the change only, never the residual.

A form is built on its `Delta`, which gives its modification and the widths that it reads and adds
to; `build` gives it its first values, drawn from a generator alone. All tensors of a form are used
inside its own forward call: ZeRO-3 gathers them for its duration only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from petl.backbones.plan import Delta, Reparameterisation
from petl.design import Composition, Form, Init, LayerNorm

NORM_EPS: Final = 1e-5  # whatever the backbone's configuration says (fixtures)


class Linear(nn.Linear):
    """`nn.Linear` without first values of its own, which would be drawn from the global generator."""

    def reset_parameters(self) -> None:
        """The form that it belongs to gives the first values."""


class Change(nn.Module):
    """What forms share: a scale s, constant or learned, an own layer norm, dropout."""

    scale: float | nn.Parameter

    def __init__(self, delta: Delta) -> None:
        super().__init__()
        m = self.modification = delta.modification
        if m.composition is Composition.LEARNED_SCALE:
            self.scale = nn.Parameter(torch.empty(1))
        else:
            self.scale = m.scale
        if m.layer_norm is not LayerNorm.NONE:
            self.norm = nn.LayerNorm(delta.normed, eps=NORM_EPS)

    def reset(self, generator: torch.Generator) -> None:
        """First values."""
        if isinstance(self.scale, nn.Parameter):
            nn.init.constant_(self.scale, self.modification.scale)
        if self.modification.layer_norm is not LayerNorm.NONE:
            self.norm.reset_parameters()

    def scaled(self, change: Tensor) -> Tensor:
        """s times the change."""
        if isinstance(self.scale, float) and self.scale == 1.0:
            return change
        return self.scale * change

    def drop(self, z: Tensor) -> Tensor:
        """The modification's own dropout."""
        rate = self.modification.dropout
        return functional.dropout(z, rate, self.training) if rate else z


class Bottleneck(Change):
    """s (ReLU(N(z) W_down) W_up), an adapter (Houlsby et al., 2019).

    z: (..., reads) -> (..., adds). N is a layer norm for "in", nothing otherwise; for "out" the norm
    comes after s. s multiplies the up-projection's bias too. Dropout acts on the bottleneck.
    """

    def __init__(self, delta: Delta) -> None:
        super().__init__(delta)
        self.down = Linear(delta.reads, delta.modification.size)
        self.up = Linear(delta.modification.size, delta.adds)

    def forward(self, z: Tensor) -> Tensor:
        """Δh."""
        where_norm = self.modification.layer_norm
        if where_norm is LayerNorm.IN:
            z = self.norm(z)
        change = self.scaled(self.up(self.drop(functional.relu(self.down(z)))))
        result: Tensor = self.norm(change) if where_norm is LayerNorm.OUT else change
        return result

    def reset(self, generator: torch.Generator) -> None:
        """First values."""
        super().reset(generator)
        _matrices(self.down.weight, self.up.weight, self.modification.init, generator)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)


class LowRank(Change):
    """s x Aᵀ Bᵀ, the change of a linear (Hu et al., 2022). x: (..., reads) -> (..., adds). Dropout acts on x."""

    def __init__(self, delta: Delta) -> None:
        super().__init__(delta)
        self.a = nn.Parameter(torch.empty(delta.modification.size, delta.reads))
        self.b = nn.Parameter(torch.empty(delta.adds, delta.modification.size))

    def forward(self, x: Tensor) -> Tensor:
        """Δh."""
        return functional.linear(self.scaled(functional.linear(self.drop(x), self.a)), self.b)

    def reset(self, generator: torch.Generator) -> None:
        """First values."""
        super().reset(generator)
        _matrices(self.a, self.b, self.modification.init, generator)


class Rescale(Change):
    """h ⊙ (v - 1): with the residual h ⊙ v (Liu et al., 2022). v starts at one."""

    def __init__(self, delta: Delta) -> None:
        super().__init__(delta)
        self.vector = nn.Parameter(torch.empty(delta.adds))

    def forward(self, h: Tensor) -> Tensor:
        """Δh."""
        return h * (self.vector - 1)

    def reset(self, generator: torch.Generator) -> None:
        """First values."""
        nn.init.ones_(self.vector)


class Heads(Change):
    """f(q P_kᵀ) P_v for each head: a prefix with f = softmax, a multi-head adapter with f = ReLU (section 3.2).

    P_k, P_v: (size, key width), (size, value width), whose blocks are the heads'; where several
    query heads share a key head, they share its block. q is the model's own query, scaled as its
    attention scales it; with a layer norm, the query of the normed input. Dropout acts on P_k and P_v.

    A gated prefix is joined with the model's own keys and values before the one softmax, which is
    the gated form (1-λ) Attn(q, K, V) + λ softmax(q P_kᵀ) P_v (equations 5 to 7): call it with key
    and value. The others are added: call them with the query alone.
    """

    def __init__(self, delta: Delta, mlp: PrefixMLP | None = None, index: int = 0) -> None:
        super().__init__(delta)
        self._mlp = (mlp, index)  # in a tuple, since the holder registers it, once for all layers
        if mlp is None:
            self.key = nn.Parameter(torch.empty(delta.modification.size, delta.reads))
            self.value = nn.Parameter(torch.empty(delta.modification.size, delta.adds))
        self.normed_query: Tensor | None = None  # (batch, tokens, query width), left by `attention.QueryOfNormed`

    def __getstate__(self) -> dict[str, Any]:
        """A copy keeps nothing of a pass that failed."""
        return {**vars(self), "normed_query": None}

    @property
    def joined(self) -> bool:
        """Whether it shares the model's softmax."""
        return self.modification.composition is Composition.GATE

    def rows(self) -> tuple[Tensor, Tensor]:
        """(P_k, P_v)."""
        mlp, index = self._mlp
        return (self.key, self.value) if mlp is None else mlp(index)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        scaling: float = 1.0,
        dropout: float = 0.0,
    ) -> tuple[Tensor, ...]:
        """(query, key, value) with the prefix in front where key and value are given, else (Δh,).

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
        scores = scaling * q @ p_k.mT.to(q.dtype)
        weights = functional.relu(scores) if self.modification.form is Form.MULTI_HEAD else scores.softmax(-1)
        weights = functional.dropout(weights, dropout) if dropout else weights
        return (self.scaled(weights @ p_v.to(weights.dtype)),)

    def reset(self, generator: torch.Generator) -> None:
        """First values: N(0, 0.02). A prefix has no zero that would leave the model as it was."""
        super().reset(generator)
        if self._mlp[0] is None:
            nn.init.normal_(self.key, std=0.02, generator=generator)
            nn.init.normal_(self.value, std=0.02, generator=generator)


class PrefixMLP(nn.Module):
    """Keys and values of all layers of one stack's attentions, through an MLP (Li and Liang, 2021).

    tanh(E W_in + b_in) W_out + b_out: (l, key width + value width) for each layer. W_out is one matrix in
    the paper; here each layer's block is a linear of its own, since the gradient of a slice is as large as the whole.
    """

    def __init__(self, plan: Reparameterisation) -> None:
        super().__init__()
        shapes = plan.shapes()
        self.widths = (plan.deltas[0].reads, plan.deltas[0].adds)
        self.embedding = nn.Parameter(torch.empty(shapes["embedding"]))
        width, into = shapes["hidden.weight"]
        self.hidden = Linear(into, width)
        self.out = nn.ModuleList(Linear(width, sum(self.widths)) for _ in plan.deltas)

    def forward(self, index: int) -> tuple[Tensor, Tensor]:
        """(P_k, P_v) of the `index`-th layer covered."""
        key, value = self.out[index](torch.tanh(self.hidden(self.embedding))).split(self.widths, -1)
        return key, value

    def reset(self, generator: torch.Generator) -> None:
        """First values: PyTorch's own, as in the paper's code."""
        nn.init.normal_(self.embedding, generator=generator)
        for linear in (self.hidden, *cast(Iterable[Linear], self.out)):
            nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5), generator=generator)
            bound = 1 / math.sqrt(linear.in_features)
            nn.init.uniform_(linear.bias, -bound, bound, generator=generator)


class Prompt(Change):
    """Rows in front of the embedded input (Lester et al., 2021): (l, width). Dropout acts on them."""

    def __init__(self, delta: Delta) -> None:
        super().__init__(delta)
        self.weight = nn.Parameter(torch.empty(delta.modification.size, delta.adds))

    def forward(self, batch: int) -> Tensor:
        """(batch, l, width)."""
        return self.drop(self.weight).expand(batch, -1, -1)

    def reset(self, generator: torch.Generator) -> None:
        """First values: N(0, 0.02)."""
        nn.init.normal_(self.weight, std=0.02, generator=generator)


FORMS: Final[Mapping[Form, Callable[[Delta], Change]]] = {
    Form.BOTTLENECK: Bottleneck,
    Form.LOW_RANK: LowRank,
    Form.PREFIX: Heads,
    Form.MULTI_HEAD: Heads,
    Form.RESCALE: Rescale,
    Form.PROMPT: Prompt,
}


def build(delta: Delta, seed: int, mlp: PrefixMLP | None = None, index: int = 0) -> Change:
    """The module of `delta` on the CPU in float32, its prefix the `index`-th of `mlp` where that is given.

    Its values depend on the seed and its name only: the same part starts alike in any design.
    """
    with torch.device("cpu"):  # whatever the caller's default is
        form = Heads(delta, mlp, index) if mlp is not None else FORMS[delta.modification.form](delta)
    return _first_values(form, seed, delta.name)


def build_mlp(plan: Reparameterisation, seed: int) -> PrefixMLP:
    """The MLP on the CPU in float32; its values depend on the seed and its name only."""
    with torch.device("cpu"):  # whatever the caller's default is
        mlp = PrefixMLP(plan)
    return _first_values(mlp, seed, plan.name)


M = TypeVar("M", Change, PrefixMLP)


def _first_values(module: M, seed: int, name: str) -> M:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    with torch.no_grad():
        module.reset(generator)
    return module


def _join(
    query: Tensor, key: Tensor, value: Tensor, own: Tensor | None, p_k: Tensor, p_v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Prefix rows in front of keys and values.

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


def _matrices(down: Tensor, up: Tensor, init: Init, generator: torch.Generator) -> None:
    if init is Init.BERT:
        nn.init.normal_(down, std=0.02, generator=generator)
        nn.init.normal_(up, std=0.02, generator=generator)
    else:
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(up)
