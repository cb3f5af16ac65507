"""The parts that designs are made of, by the conventions of the paper's code (He et al., ICLR 2022).

A bottleneck on attention carries a layer norm on its input, one on the FFN none; with s of at most 1 it starts from
N(0, 0.02), with a greater s from Δh = 0. A prefix is gated: one softmax over prefix and keys. LoRA changes the query
and the value of an attention, or both linears of an FFN. Scales are s itself, never LoRA's alpha (s = alpha / r).
"""

from __future__ import annotations

from typing import Final

from petl.design import Composition, Init, Insertion, LayerNorm, Modification, Positions, Site
from petl.forms.table import Form

LORA_SITES: Final = {"attention": (Site.QUERY, Site.VALUE), "ffn": (Site.FFN_UP, Site.FFN_DOWN)}
IA3_SITES: Final = (Site.KEY, Site.VALUE, Site.FFN_HIDDEN)


def prefix(length: int, *, reparameterisation: int = 0, gated: bool = True) -> Modification:
    """Return `length` vectors in front of the keys and values of every attention."""
    return Modification(
        form=Form.PREFIX,
        site=Site.HEADS,
        composition=Composition.GATE if gated else Composition.ADD,
        size=length,
        reparameterisation=reparameterisation,
    )


def multi_head(size: int) -> Modification:
    """Return an adapter on each head of every attention, beside its queries."""
    return Modification(form=Form.MULTI_HEAD, site=Site.HEADS, size=size)


def bottleneck(
    site: Site,
    insertion: Insertion,
    size: int,
    *,
    scale: float = 1.0,
    layer_norm: LayerNorm | None = None,
    init: Init | None = None,
) -> Modification:
    """Return an adapter on the attention or the FFN, with the paper's layer norm and start where none are given."""
    if layer_norm is None:
        layer_norm = LayerNorm.IN if site is Site.ATTENTION else LayerNorm.NONE
    if init is None:
        init = Init.LORA if scale > 1 else Init.BERT
    return Modification(
        form=Form.BOTTLENECK,
        site=site,
        insertion=insertion,
        composition=Composition.SCALE,
        size=size,
        scale=scale,
        layer_norm=layer_norm,
        init=init,
    )


def low_rank(site: Site, rank: int, scale: float) -> Modification:
    """Return LoRA on a linear."""
    return Modification(form=Form.LOW_RANK, site=site, composition=Composition.SCALE, size=rank, scale=scale)


def rescale(site: Site) -> Modification:
    """Return a learned vector on the output of a linear, or on the FFN's activations."""
    return Modification(form=Form.RESCALE, site=site, insertion=Insertion.SEQUENTIAL)


def prompt(length: int, positions: Positions = Positions.KEPT) -> Modification:
    """Return `length` vectors in front of the input."""
    return Modification(form=Form.PROMPT, site=Site.INPUT, size=length, positions=positions)


def bias() -> Modification:
    """Return every bias of the model, in all layers."""
    return Modification(form=Form.BIAS, site=Site.MODEL)
