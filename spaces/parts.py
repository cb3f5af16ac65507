"""The parts that the spaces are made of, each with a size that may be 0: then it is absent.

The conventions are those of the paper's code (He et al., ICLR 2022): a bottleneck on attention
carries a layer norm on its input, starts from N(0, 0.02) and has s = 1; one on the FFN has no layer
norm and starts at Δh = 0 where s > 1; a prefix is gated: one softmax over prefix and keys.
"""

from __future__ import annotations

from collections.abc import Iterable

from petl.design import Composition, Form, Init, Insertion, LayerNorm, Modification, Site

INSERTIONS = (str(Insertion.SEQUENTIAL), str(Insertion.PARALLEL))
FFN_INSERTIONS = (*INSERTIONS, str(Insertion.AFTER_RESIDUAL))


def top(first_layer: int, depth: int) -> str:
    """`layers` from the first adapted one to the last of the deepest stack."""
    return f"top {depth - first_layer}" if first_layer else "all"


def prefix(length: int, layers: str) -> tuple[Modification, ...]:
    """`length` vectors before the keys and values of every attention."""
    if not length:
        return ()
    return (Modification(form=Form.PREFIX, site=Site.HEADS, composition=Composition.GATE, size=length, layers=layers),)


def multi_head(size: int, layers: str) -> tuple[Modification, ...]:
    """An adapter on each head of every attention, beside its queries."""
    return (Modification(form=Form.MULTI_HEAD, site=Site.HEADS, size=size, layers=layers),) if size else ()


def bottleneck(
    site: Site,
    size: int,
    insertion: str,
    layers: str,
    *,
    scale: float = 1.0,
    layer_norm: str = LayerNorm.NONE,
    init: str = Init.BERT,
) -> tuple[Modification, ...]:
    """An adapter on the attention or the FFN."""
    if not size:
        return ()
    return (
        Modification(
            form=Form.BOTTLENECK,
            site=site,
            insertion=Insertion(insertion),
            composition=Composition.SCALE,
            size=size,
            scale=scale,
            layers=layers,
            layer_norm=LayerNorm(layer_norm),
            init=Init(init),
        ),
    )


def low_rank(sites: Iterable[Site], size: int, scale: float, layers: str) -> tuple[Modification, ...]:
    """LoRA on each of the linears."""
    if not size:
        return ()
    return tuple(
        Modification(
            form=Form.LOW_RANK, site=site, composition=Composition.SCALE, size=size, scale=scale, layers=layers
        )
        for site in sites
    )


def rescale(present: int, layers: str) -> tuple[Modification, ...]:
    """(IA)³: keys, values and the FFN's activations."""
    sites = (Site.KEY, Site.VALUE, Site.FFN_HIDDEN) if present else ()
    return tuple(
        Modification(form=Form.RESCALE, site=site, insertion=Insertion.SEQUENTIAL, layers=layers) for site in sites
    )


def prompt(length: int) -> tuple[Modification, ...]:
    """`length` vectors in front of the input."""
    return (Modification(form=Form.PROMPT, site=Site.INPUT, size=length),) if length else ()


def bias(present: int) -> tuple[Modification, ...]:
    """BitFit: every bias of the model, in all layers."""
    return (Modification(form=Form.BIAS, site=Site.MODEL),) if present else ()
