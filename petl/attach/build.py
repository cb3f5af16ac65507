"""The modules of a design's deltas, each with first values that depend on a seed and its name alone."""

from __future__ import annotations

import hashlib
from typing import Protocol, TypeVar, cast

import torch
from torch import nn

from petl.forms import prefix
from petl.forms.modules import Change
from petl.forms.prefix import Reparameterisation
from petl.forms.table import FORMS
from petl.forms.vocabulary import Delta


class Drawn(Protocol):
    """A module that draws its first values."""

    def reset(self, generator: torch.Generator) -> None:
        """Draw them from the generator."""


M = TypeVar("M", bound=nn.Module)


def build(delta: Delta, seed: int, mlp: nn.Module | None = None, index: int = 0) -> Change:
    """Return the module of `delta` on the CPU in float32; its prefix is the `index`-th of `mlp` where that is given.

    Its values depend on the seed and its name only: the same part starts alike in any design.
    """
    form = FORMS[delta.modification.form]
    assert form.module is not None
    with torch.device("cpu"):  # whatever the caller's default is
        change = form.module(delta) if mlp is None else form.module(delta, mlp, index)
    return _drawn(change, seed, delta.name)


def build_mlp(plan: Reparameterisation, seed: int) -> nn.Module:
    """Return the MLP on the CPU in float32; its values depend on the seed and its name only."""
    with torch.device("cpu"):
        mlp = prefix.mlp(plan)
    return _drawn(mlp, seed, plan.name)


def _drawn(module: M, seed: int, name: str) -> M:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    with torch.no_grad():
        cast(Drawn, module).reset(generator)
    return module
