"""Named designs: each a function that returns a `Design`, and their text form.

Places, norms and initialisations follow the code of He et al. (ICLR 2022): attention adapters have a
layer norm on their input, FFN adapters have none; adapters with s = 1 start from N(0, 0.02), scaled
ones from zero. Scales are s itself, never LoRA's alpha (s = alpha / r).

    >>> parse("mam:length=16,size=64").describe()
    'ffn parallel 64 x4 + prefix 16'
    >>> parse("lora:rank=4,layers=top 2 + bitfit").describe()
    'bias; lora query,value 4 x2, top 2'
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from petl.design import (
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


def full() -> Design:
    """Full fine-tuning: everything trains."""
    return Design((Modification(form=Form.FULL, site=Site.MODEL),))


def head_only() -> Design:
    """The frozen model with a trained task head."""
    return Design()


def bitfit() -> Design:
    """The biases that the model has (Ben Zaken et al., 2022)."""
    return Design((Modification(form=Form.BIAS, site=Site.MODEL),))


def prompt(length: int = 20, positions: str = "kept") -> Design:
    """Trained vectors in front of the embedded input (Lester et al., 2021); see `design.Positions`."""
    return Design((Modification(form=Form.PROMPT, site=Site.INPUT, size=length, positions=positions),))  # type: ignore[arg-type]


def prefix(length: int = 30, reparameterisation: int = 0, gated: bool = True) -> Design:
    """Trained keys and values in front of every attention's own (Li and Liang, 2021).

    `reparameterisation` is the width of the MLP that they are trained through (the paper's code:
    800), 0 for none. Without the gate their attention is added to the model's (section 4.4).
    """
    return Design((_prefix(length, reparameterisation, gated),))


def lora(rank: int = 8, where: str = "attention", scale: float = 2.0) -> Design:
    """Low-rank changes of the query and value, of the FFN's up and down linears, or both (Hu et al., 2022)."""
    linears = {"attention": (Site.QUERY, Site.VALUE), "ffn": (Site.FFN_UP, Site.FFN_DOWN)}
    return Design(
        tuple(
            Modification(form=Form.LOW_RANK, site=site, size=rank, scale=scale, composition=Composition.SCALE)
            for part in _parts(where)
            for site in linears[part]
        )
    )


def houlsby(size: int = 64) -> Design:
    """Sequential adapters after attention and FFN (Houlsby et al., 2019)."""
    return sequential(size, "both")


def pfeiffer(size: int = 64) -> Design:
    """One sequential adapter a layer, after the FFN's residual and norm (Pfeiffer et al., 2021)."""
    return Design((_bottleneck(Site.FFN, Insertion.AFTER_RESIDUAL, size),))


def sequential(size: int = 64, where: str = "ffn") -> Design:
    """Adapters that read the output of the sub-layer that they change."""
    return Design(tuple(_bottleneck(Site(part), Insertion.SEQUENTIAL, size) for part in _parts(where)))


def parallel(size: int = 64, where: str = "ffn") -> Design:
    """Adapters that read the input of the sub-layer that they change (section 3.3)."""
    return Design(tuple(_bottleneck(Site(part), Insertion.PARALLEL, size) for part in _parts(where)))


def scaled_parallel(size: int = 512, scale: float = 4.0, trained: bool = False) -> Design:
    """Parallel FFN adapters, scaled by s and started from zero (section 3.3).

    With `trained` s is a scalar that training starts from `scale` (Table 5).
    """
    adapter = _scaled_parallel(size, scale)
    return Design((replace(adapter, composition=Composition.LEARNED_SCALE) if trained else adapter,))


def multihead_parallel(size: int = 30) -> Design:
    """Parallel adapters on each head, which read the frozen query (section 3.3)."""
    return Design((Modification(form=Form.MULTI_HEAD, site=Site.HEADS, size=size),))


def mam(length: int = 30, size: int = 512, scale: float = 4.0) -> Design:
    """Mix-and-match: a short prefix and wide scaled parallel FFN adapters (section 4.6)."""
    return Design((_prefix(length), _scaled_parallel(size, scale)))


def ia3() -> Design:
    """Learned vectors that rescale keys, values and the FFN's activations (Liu et al., 2022)."""
    return Design(
        tuple(
            Modification(form=Form.RESCALE, site=site, insertion=Insertion.SEQUENTIAL)
            for site in (Site.KEY, Site.VALUE, Site.FFN_HIDDEN)
        )
    )


def union(first: Design, second: Design) -> Design:
    """Both at once, as `+` does in text."""
    return first | second


def prefix_lora(length: int = 30, rank: int = 102, scale: float = 2.0) -> Design:
    """A short prefix and low-rank changes of the FFN linears (Table 6)."""
    return prefix(length) | lora(rank, "ffn", scale)


PRESETS: Final[Mapping[str, Callable[..., Design]]] = {
    preset.__name__: preset
    for preset in (
        full,
        head_only,
        bitfit,
        prompt,
        prefix,
        lora,
        houlsby,
        pfeiffer,
        sequential,
        parallel,
        scaled_parallel,
        multihead_parallel,
        mam,
        prefix_lora,
        ia3,
    )
}


# What any design takes besides its own arguments: the layers, stacks and attentions that it is at, the head.
EVERYWHERE: Final = ("layers", "stacks", "attentions", "head")


def parse(text: str) -> Design:
    """The design that `text` names: `mam:length=30,size=512,scale=4`, unions as `prefix:length=10 + bitfit`.

    Every name also takes `layers` ("top 4", or a list: `lora:layers=0,2,5`), `stacks`, `attentions`
    and `head=false`, which freezes the task head (in a union: if all its parts say so).

    Raises DesignError, listing the names, arguments or choices there are.
    """
    first, *others = (_parse_one(part.strip()) for part in text.split("+"))
    for other in others:
        first = first | other
    return first


def _parse_one(text: str) -> Design:
    name, _, rest = text.partition(":")
    name = name.strip()
    preset = PRESETS.get(name)
    if preset is None:
        raise DesignError(f"a design is one of {', '.join(PRESETS)}; received {name!r}")
    parameters = inspect.signature(preset).parameters
    given: dict[str, object] = {}
    # A comma separates arguments where another name= follows: layers=0,2,5 is one of them.
    for pair in filter(None, (pair.strip(" ,") for pair in re.split(r",(?=[^,=]*=)", rest))):
        key, equals, value = (piece.strip() for piece in pair.partition("="))
        if key not in parameters and key not in EVERYWHERE:
            raise DesignError(f"{name} takes {', '.join((*parameters, *EVERYWHERE))}; received {key!r}")
        if not equals or key in given:
            raise DesignError(f"arguments are written name=value, each once; received {pair!r}")
        kind = type(parameters[key].default) if key in parameters else bool if key == "head" else str
        given[key] = _value(name, key, value, kind)
    where = {key: str(given.pop(key)) for key in EVERYWHERE[:3] if key in given}
    head = given.pop("head", True)
    design = preset(**given).only(**where)
    return design if head else replace(design, head=False)


def _value(name: str, key: str, text: str, kind: type) -> object:
    words = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise DesignError(f"{key} of {name} is {words[kind]}; received {text!r}") from None


def _parts(where: str) -> tuple[str, ...]:
    parts = {"attention": ("attention",), "ffn": ("ffn",), "both": ("attention", "ffn")}
    if where not in parts:
        raise DesignError(f"where is one of {', '.join(parts)}; received {where!r}")
    return parts[where]


def _prefix(length: int, reparameterisation: int = 0, gated: bool = True) -> Modification:
    return Modification(
        form=Form.PREFIX,
        site=Site.HEADS,
        composition=Composition.GATE if gated else Composition.ADD,
        size=length,
        reparameterisation=reparameterisation,
    )


def _bottleneck(site: Site, insertion: Insertion, size: int) -> Modification:
    norm = LayerNorm.IN if site is Site.ATTENTION else LayerNorm.NONE
    return Modification(
        form=Form.BOTTLENECK, site=site, insertion=insertion, size=size, layer_norm=norm, init=Init.BERT
    )


def _scaled_parallel(size: int, scale: float) -> Modification:
    return Modification(
        form=Form.BOTTLENECK, site=Site.FFN, size=size, composition=Composition.SCALE, scale=scale, init=Init.LORA
    )
