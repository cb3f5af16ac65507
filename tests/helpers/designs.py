"""The designs that contract tests run over: every named one, and random mixtures."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import tiny
from scope import sampled

from petl import presets
from petl.design import Composition, Design, DesignError, Form, Init, Insertion, LayerNorm, Modification, Site
from petl.forms import table
from petl.presets import PRESETS, parse


@dataclass(frozen=True)
class FormRow:
    """A functional form: designs that have it, which run on every kind of family, and whether it can be merged."""

    designs: tuple[str, ...]
    merges: bool = False


FORMS = {
    "bottleneck": FormRow(("houlsby", "pfeiffer")),
    "low_rank": FormRow(("lora",), merges=True),
    "prefix": FormRow(("mam",)),
    "multi_head": FormRow(("multihead_parallel",)),
    "rescale": FormRow(("ia3",), merges=True),
    "bias": FormRow(("bitfit",), merges=True),
    "prompt": FormRow(("prompt",)),
    "full": FormRow(("full",), merges=True),
}
OF_FORMS = ["head_only", *(text for row in FORMS.values() for text in row.designs)]
NAMED = (
    *dict.fromkeys((*PRESETS, *OF_FORMS)),
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
PAIRS = sampled(
    "designs on families",
    [(family, text) for family in tiny.FAMILIES for text in NAMED],
    # every design on one family, every form on one family of each kind, and one design of several forms on every family
    lambda pair: pair[0] == "bert" or pair[1] == "mam" or (pair[0] in tiny.KINDS and pair[1] in OF_FORMS),
)


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
    rule = table.FORMS[form]
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


def _changed(text: str, **fields: Any) -> Design:
    (part,) = parse(text).modifications
    return Design((replace(part, **fields),))


def _ffn(insertion: str, scale: float, norm: str) -> Design:
    return _changed(f"{insertion}:size=7", composition=Composition.SCALE, scale=scale, layer_norm=LayerNorm(norm))


# The designs of the fixtures that the paper's authors' code made: file -> design.
FIXTURES: Mapping[str, Design] = {
    "prefix_concat": presets.prefix(5),
    "prefix_gated_explicit": presets.prefix(5),  # the same function
    "prefix_gated_ln": _changed("prefix:length=5", layer_norm=LayerNorm.IN),
    "prefix_nogate": parse("prefix:length=5,gated=false"),
    "prefix_nogate_ln": _changed("prefix:length=5,gated=false", layer_norm=LayerNorm.IN),
    "mh_parallel_adapter": presets.multihead_parallel(5),
    "attn_parallel": presets.parallel(6, "attention"),
    "attn_sequential": presets.sequential(6, "attention"),
    "ffn_sequential_ln_none": _ffn("sequential", 1, "none"),
    "ffn_sequential_ln_in": _ffn("sequential", 1, "in"),
    "ffn_sequential_s4_ln_none": _ffn("sequential", 4, "none"),
    "ffn_parallel_s1_ln_none": _ffn("parallel", 1, "none"),
    "ffn_parallel_s1_ln_in": _ffn("parallel", 1, "in"),
    "ffn_parallel_s4_ln_none": presets.scaled_parallel(7),
    "ffn_parallel_s4_ln_in": _ffn("parallel", 4, "in"),
    "ffn_parallel_s4_ln_out": _ffn("parallel", 4, "out"),
    "ffn_parallel_learned_s_ln_none": _changed("parallel:size=7", composition=Composition.LEARNED_SCALE),
    "ffn_pfeiffer_ln_none": presets.pfeiffer(7),
    "ffn_pfeiffer_ln_in": _changed("pfeiffer:size=7", layer_norm=LayerNorm.IN),
    "lora_attn": presets.lora(4, "attention", 2),
    "lora_ffn": presets.lora(3, "ffn", 4),
    "lora_attn_ffn": presets.lora(4, "attention", 2) | presets.lora(2, "ffn", 4),
    "prompt_tuning": presets.prompt(5),
    "bitfit": presets.bitfit(),
    "mam": presets.mam(5, 7),
    "houlsby": presets.sequential(6, "attention") | presets.sequential(7, "ffn"),
    "attn_parallel_ffn_parallel": presets.parallel(6, "attention") | presets.parallel(7, "ffn"),
    "prefix_lora_ffn": presets.prefix_lora(5, 3, 2),
}
