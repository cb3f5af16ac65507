"""The designs that contract tests run over: every named one that can be built, and random mixtures."""

from __future__ import annotations

import random
from typing import Any

from petl.design import LINEARS, Composition, Design, Form, Init, Insertion, LayerNorm, Modification, Site
from petl.presets import PRESETS

LATER = ("prompt", "pfeiffer", "multihead_parallel")  # refused so far
NAMED = (
    *(name for name in PRESETS if name not in LATER),
    "lora:where=ffn",
    "lora:rank=2,where=both",
    "sequential:where=attention,size=16",
    "parallel:where=attention,size=16",
    "parallel:where=both",
    "bitfit+lora:rank=2+mam:length=2,size=16",
    "prefix:length=2+prefix:length=3",
    "sequential:size=16+parallel:size=16+scaled_parallel:size=16",
)


def random_design(seed: int, depth: int) -> Design:
    """One to four parts of any kind that can be built, on any layers."""
    rng = random.Random(seed)
    parts = {_part(rng, depth) for _ in range(rng.randint(1, 4))}
    # Two spellings of the same layers would make the same part twice.
    parts = {part.in_depth(depth) for part in parts}
    return Design(tuple(parts), head=rng.random() < 0.7)


def _part(rng: random.Random, depth: int) -> Modification:
    layers = rng.choice(["all", f"top {rng.randint(1, depth)}", f"{rng.randrange(depth)}", "0,2"])
    scaled: dict[str, Any] = rng.choice([{}, {"composition": Composition.SCALE, "scale": rng.choice([0.5, 4.0])}])
    size = rng.randint(1, 9)
    match rng.choice([Form.BOTTLENECK, Form.LOW_RANK, Form.PREFIX, Form.BIAS]):
        case Form.BOTTLENECK:
            return Modification(
                form=Form.BOTTLENECK,
                site=rng.choice([Site.ATTENTION, Site.FFN]),
                insertion=rng.choice([Insertion.SEQUENTIAL, Insertion.PARALLEL]),
                layer_norm=rng.choice(list(LayerNorm)),
                init=rng.choice(list(Init)),
                size=size,
                layers=layers,
                **scaled,
            )
        case Form.LOW_RANK:
            return Modification(form=Form.LOW_RANK, site=rng.choice(LINEARS), size=size, layers=layers, **scaled)
        case Form.PREFIX:
            return Modification(
                form=Form.PREFIX, site=Site.HEADS, composition=Composition.GATE, size=size, layers=layers
            )
        case _:
            return Modification(form=Form.BIAS, site=Site.MODEL)
