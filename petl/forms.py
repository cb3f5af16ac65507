"""The functional forms of Δh as small modules. Each computes the change only, never the residual.

A form is built on its `Delta`, which gives its modification and the widths that it reads and adds
to; `build` gives it its first values, drawn from a generator alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from petl.design import Form, Init, LayerNorm
from petl.plan import Delta

NORM_EPS: Final = 1e-5  # whatever the backbone's configuration says (fixtures)


class Bottleneck(nn.Module):
    """s (ReLU(N(z) W_down) W_up), an adapter (Houlsby et al., 2019).

    z: (..., reads) -> (..., adds). N is a layer norm for "in", nothing otherwise; for "out" the norm
    comes after s. s multiplies the up-projection's bias too. Dropout acts on the bottleneck.
    """

    def __init__(self, delta: Delta) -> None:
        super().__init__()
        m = delta.modification
        self.scale, self.where_norm, self.dropout = m.scale, m.layer_norm, m.dropout
        self.down = nn.Linear(delta.reads, m.size)
        self.up = nn.Linear(m.size, delta.adds)
        if m.layer_norm is not LayerNorm.NONE:
            self.norm = nn.LayerNorm(delta.reads if m.layer_norm is LayerNorm.IN else delta.adds, eps=NORM_EPS)

    def forward(self, z: Tensor) -> Tensor:
        """Δh."""
        if self.where_norm is LayerNorm.IN:
            z = self.norm(z)
        hidden = functional.dropout(functional.relu(self.down(z)), self.dropout, self.training)
        change: Tensor = self.scale * self.up(hidden)
        return self.norm(change) if self.where_norm is LayerNorm.OUT else change

    def reset(self, init: Init, generator: torch.Generator) -> None:
        """First values."""
        _matrices(self.down.weight, self.up.weight, init, generator)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)
        if self.where_norm is not LayerNorm.NONE:
            self.norm.reset_parameters()


class LowRank(nn.Module):
    """s x Aᵀ Bᵀ, the change of a linear (Hu et al., 2022). x: (..., reads) -> (..., adds). Dropout acts on x."""

    def __init__(self, delta: Delta) -> None:
        super().__init__()
        m = delta.modification
        self.scale, self.dropout = m.scale, m.dropout
        self.a = nn.Parameter(torch.empty(m.size, delta.reads))
        self.b = nn.Parameter(torch.empty(delta.adds, m.size))

    def forward(self, x: Tensor) -> Tensor:
        """Δh."""
        x = functional.dropout(x, self.dropout, self.training)
        return self.scale * functional.linear(functional.linear(x, self.a), self.b)

    def reset(self, init: Init, generator: torch.Generator) -> None:
        """First values."""
        _matrices(self.a, self.b, init, generator)


class Prefix(nn.Module):
    """Keys and values P_k, P_v in front of an attention's own (Li and Liang, 2021; equation 5).

    Returns (length, key width) and (length, value width); `attention` joins them in one softmax.
    Dropout acts on both.
    """

    def __init__(self, delta: Delta) -> None:
        super().__init__()
        m = delta.modification
        self.dropout = m.dropout
        self.key = nn.Parameter(torch.empty(m.size, delta.reads))
        self.value = nn.Parameter(torch.empty(m.size, delta.adds))

    def forward(self) -> tuple[Tensor, Tensor]:
        """(keys, values)."""
        return (
            functional.dropout(self.key, self.dropout, self.training),
            functional.dropout(self.value, self.dropout, self.training),
        )

    def reset(self, init: Init, generator: torch.Generator) -> None:
        """First values: N(0, 0.02). A prefix has no zero that would leave the model as it was."""
        nn.init.normal_(self.key, std=0.02, generator=generator)
        nn.init.normal_(self.value, std=0.02, generator=generator)


FORMS: Final[Mapping[Form, Callable[[Delta], Bottleneck | LowRank | Prefix]]] = {
    Form.BOTTLENECK: Bottleneck,
    Form.LOW_RANK: LowRank,
    Form.PREFIX: Prefix,
}


def build(delta: Delta, seed: int) -> Bottleneck | LowRank | Prefix:
    """The module of `delta` on the CPU in float32.

    Its values depend on the seed and its name only: the same part starts alike in any design.
    """
    with torch.device("meta"):  # the layers' own initialisation would draw from the global generator
        module = FORMS[delta.modification.form](delta)
    module.to_empty(device="cpu")
    digest = hashlib.sha256(f"{seed} {delta.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    with torch.no_grad():
        module.reset(delta.modification.init, generator)
    return module


def _matrices(down: Tensor, up: Tensor, init: Init, generator: torch.Generator) -> None:
    if init is Init.BERT:
        nn.init.normal_(down, std=0.02, generator=generator)
        nn.init.normal_(up, std=0.02, generator=generator)
    else:
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(up)
