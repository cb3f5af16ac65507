"""The designs that contract tests run over: every named one, and random mixtures."""

from __future__ import annotations

import random
from typing import Any

import tiny

from petl.design import (
    RULES,
    Composition,
    Design,
    DesignError,
    Form,
    Init,
    Insertion,
    LayerNorm,
    Modification,
    Site,
)
from petl.presets import PRESETS

NAMED = (
    *PRESETS,
    "lora:where=ffn",
    "lora:rank=2,where=both",
    "sequential:where=attention,size=16",
    "parallel:where=attention,size=16",
    "parallel:where=both",
    "prefix:length=4,reparameterisation=6",
    "prefix:length=4,gated=false",
    "bitfit+lora:rank=2+mam:length=2,size=16",
    "prefix:length=2+prefix:length=3",
    "sequential:size=16+parallel:size=16+scaled_parallel:size=16+pfeiffer:size=16",
    "prompt:length=3+prefix:length=2+ia3",
)
# Each form, and each place of a bottleneck, once.
FORMS = ("full", "head_only", "bitfit", "prompt", "lora", "houlsby", "pfeiffer", "multihead_parallel", "mam", "ia3")
# Every form on every family, and every design on every kind of family; each with each under PETL_ALL=1.
PAIRS = [
    (family, text) for family in tiny.FAMILIES for text in NAMED if tiny.ALL or text in FORMS or family in tiny.KINDS
]


def random_design(seed: int, *, biases: bool = True, rotary: bool = False, gate: bool = False) -> Design:
    """One to four parts of any kind, on any layers, for a model with biases, rotary positions, a gated FFN or not."""
    rng = random.Random(seed)
    while True:
        parts = {_part(rng, biases, rotary, gate) for _ in range(rng.randint(1, 4))}
        try:
            return Design(tuple(parts), head=rng.random() < 0.7)
        except DesignError:  # the same part twice, but for its reparameterisation
            continue


def _part(rng: random.Random, biases: bool, rotary: bool, gate: bool) -> Modification:
    form = rng.choice([form for form in Form if form is not Form.FULL and (biases or form is not Form.BIAS)])
    rule = RULES[form]
    sites = [site for site in rule.sites if gate or site is not Site.FFN_GATE]
    site, insertion = rng.choice(sites), rng.choice(rule.insertions)
    if site is Site.ATTENTION and insertion is Insertion.AFTER_RESIDUAL:
        insertion = Insertion.PARALLEL
    composition = rng.choice(rule.compositions)
    values: dict[str, Any] = {"form": form, "site": site, "insertion": insertion, "composition": composition}
    if composition is Composition.SCALE:
        values["scale"] = rng.choice([0.5, 4.0])
    if rule.sized:
        values["size"] = rng.randint(1, 9)
    norms = [norm for norm in LayerNorm if site is not Site.HEADS or (norm is not LayerNorm.OUT and not rotary)]
    choices: dict[str, list[Any]] = {
        "layers": ["all", f"top {rng.randint(1, 3)}", f"{rng.randrange(2)}", "0,2"],
        "init": list(Init),
        "layer_norm": norms or [LayerNorm.NONE],
        "reparameterisation": [0, 0, 5],
    }
    options = {name: rng.choice(values_) for name, values_ in choices.items() if name in rule.options}
    return Modification(**values, **options)
