"""Named designs: each a function that returns a `Design`, and their text form.

Places, norms and first values are those of `parts`, which follow the code of He et al. (ICLR 2022).

    >>> parse("mam:length=16,size=64").describe()
    'prefix 16 + ffn parallel 64 x4'
    >>> parse("lora:rank=4,layers=top 2 + bitfit").describe()
    'lora query,value 4 x2, top 2; bias'
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any, Final, cast

from petl import parts
from petl.design import SAID, Composition, Design, DesignError, Init, Insertion, Modification, Positions, Site
from petl.forms.table import FORMS, Form
from petl.forms.vocabulary import LOCATIONS


def full() -> Design:
    """Return full fine-tuning: everything trains."""
    return Design((Modification(form=Form.FULL, site=Site.MODEL),))


def head_only() -> Design:
    """Return the frozen model with a trained task head."""
    return Design()


def bitfit() -> Design:
    """Return the biases that the model has (Ben Zaken et al., 2022)."""
    return Design((parts.bias(),))


def prompt(length: int = 20, positions: str = "kept") -> Design:
    """Return trained vectors in front of the embedded input (Lester et al., 2021); see `design.Positions`."""
    return Design((parts.prompt(length, cast(Positions, positions)),))


def prefix(length: int = 30, reparameterisation: int = 0, gated: bool = True) -> Design:
    """Return trained keys and values in front of every attention's own (Li and Liang, 2021).

    `reparameterisation` is the width of the MLP that they are trained through (the paper's code:
    800), 0 for none. Without the gate their attention is added to the model's (section 4.4).
    """
    return Design((parts.prefix(length, reparameterisation=reparameterisation, gated=gated),))


def lora(rank: int = 8, where: str = "attention", scale: float = 2.0) -> Design:
    """Return low-rank changes of query and value, of the FFN's up and down linears, or both (Hu et al., 2022)."""
    sites = [site for sub_layer in _sub_layers(where) for site in parts.LORA_SITES[sub_layer]]
    return Design(tuple(parts.low_rank(site, rank, scale) for site in sites))


def houlsby(size: int = 64) -> Design:
    """Return sequential adapters after attention and FFN (Houlsby et al., 2019)."""
    return sequential(size, "both")


def pfeiffer(size: int = 64) -> Design:
    """Return one sequential adapter a layer, after the FFN's residual and norm (Pfeiffer et al., 2021)."""
    return Design((parts.bottleneck(Site.FFN, Insertion.AFTER_RESIDUAL, size),))


def sequential(size: int = 64, where: str = "ffn") -> Design:
    """Return adapters that read the output of the sub-layer that they change."""
    return Design(tuple(parts.bottleneck(Site(s), Insertion.SEQUENTIAL, size) for s in _sub_layers(where)))


def parallel(size: int = 64, where: str = "ffn") -> Design:
    """Return adapters that read the input of the sub-layer that they change (section 3.3)."""
    return Design(tuple(parts.bottleneck(Site(s), Insertion.PARALLEL, size) for s in _sub_layers(where)))


def scaled_parallel(size: int = 512, scale: float = 4.0, trained: bool = False) -> Design:
    """Return parallel FFN adapters, scaled by s and started from zero (section 3.3).

    With `trained` s is a scalar that training starts from `scale` (Table 5).
    """
    adapter = parts.bottleneck(Site.FFN, Insertion.PARALLEL, size, scale=scale, init=Init.LORA)
    return Design((replace(adapter, composition=Composition.LEARNED_SCALE) if trained else adapter,))


def multihead_parallel(size: int = 30) -> Design:
    """Return parallel adapters on each head, which read the frozen query (section 3.3)."""
    return Design((parts.multi_head(size),))


def mam(length: int = 30, size: int = 512, scale: float = 4.0) -> Design:
    """Return mix-and-match: a short prefix and wide scaled parallel FFN adapters (section 4.6)."""
    return prefix(length) | scaled_parallel(size, scale)


def prefix_lora(length: int = 30, rank: int = 102, scale: float = 2.0) -> Design:
    """Return a short prefix and low-rank changes of the FFN linears (Table 6)."""
    return prefix(length) | lora(rank, "ffn", scale)


def ia3() -> Design:
    """Return learned vectors that rescale keys, values and the FFN's activations (Liu et al., 2022)."""
    return Design(tuple(map(parts.rescale, parts.IA3_SITES)))


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
EVERYWHERE: Final = (*LOCATIONS, "head")
# What a form takes by its own name: the fields of a modification, each read as a number or a word.
_FIELDS: Final[Mapping[str, type]] = {
    field.name: type(field.default) if type(field.default) in (int, float) else str
    for field in fields(Modification)
    if field.name not in ("form", *LOCATIONS)
}


def parse(text: str) -> Design:
    """Return the design that `text` names: `mam:length=30,size=512,scale=4`, unions as `prefix:length=10 + bitfit`.

    A functional form goes by its own name too, with the fields of a modification:
    `low_rank:site=key,size=4`; its site is by default the first that it allows. Every name also takes
    `layers` ("top 4", or a list: `lora:layers=0,2,5`), `stacks`, `attentions` and `head=false`, which
    freezes the task head (in a union: if all its parts say so).

    What tables print of a design is read too, its parts in any order: norms, first values and dropout, which they do
    not show, are then as in `petl.parts`. A learned scale is not, since they do not show where it starts.

    Raises DesignError, listing the names, arguments or choices there are.
    """
    if printed := _printed(text.strip()):
        return printed
    first, *others = (_parse_one(part.strip()) for part in text.split("+"))
    for other in others:
        first = first | other
    return first


def _parse_one(text: str) -> Design:
    name, _, rest = text.partition(":")
    name = name.strip()
    build: Callable[..., Design]
    kinds: Mapping[str, type]
    if name in PRESETS:
        build = PRESETS[name]
        kinds = {key: type(parameter.default) for key, parameter in inspect.signature(build).parameters.items()}
    elif name in FORMS:
        build, kinds = partial(_of_form, Form(name)), _FIELDS
    else:
        forms = [form for form in FORMS if form not in PRESETS]
        raise DesignError(f"a design is one of {', '.join(PRESETS)}, or a form, {', '.join(forms)}; received {name!r}")
    arguments: dict[str, Any] = {}
    # A comma separates arguments where another name= follows: layers=0,2,5 is one of them.
    for pair in filter(None, (pair.strip(" ,") for pair in re.split(r",(?=[^,=]*=)", rest))):
        key, equals, value = (piece.strip() for piece in pair.partition("="))
        if key not in kinds and key not in EVERYWHERE:
            raise DesignError(f"{name} takes {', '.join((*kinds, *EVERYWHERE))}; received {key!r}")
        if not equals or key in arguments:
            raise DesignError(f"arguments are written name=value, each once; received {pair!r}")
        kind = bool if key == "head" else kinds.get(key, str)
        arguments[key] = _value(name, key, value, kind)
    where = {key: arguments.pop(key) for key in LOCATIONS if key in arguments}
    head = arguments.pop("head", True)
    design = build(**arguments).only(**where)
    return design if head else replace(design, head=False)


def _of_form(form: Form, **fields: Any) -> Design:
    plain = {"form": form, "site": FORMS[form].sites[0], "insertion": _insertion(form)}
    return Design((Modification(**{**plain, **fields}),))


def _insertion(form: str) -> Insertion:
    """Return the insertion of a form where nobody says another one."""
    allowed = FORMS[form].insertions
    return Insertion.PARALLEL if Insertion.PARALLEL in allowed else allowed[0]


def _value(name: str, key: str, text: str, kind: type) -> object:
    words = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise DesignError(f"{key} of {name} is {words[kind]}; received {text!r}") from None


def _sub_layers(where: str) -> tuple[str, ...]:
    choices = {"attention": ("attention",), "ffn": ("ffn",), "both": ("attention", "ffn")}
    if where not in choices:
        raise DesignError(f"where is one of {', '.join(choices)}; received {where!r}")
    return choices[where]


_WORD: Final = r"[a-z_]+"
_LAYERS: Final = re.compile(r"(.+?)(?:, (?:layers )?(top \d+|\d+(?:,\d+)*))?")
_TAIL: Final = r"(?: (?P<size>\d+))?(?: x(?P<scale>[\d.e+-]+))?(?P<ungated> ungated)?" + "".join(
    rf"(?: {name} (?P<{name}>\S+))?" for name in SAID
)
_PHRASES: Final[Mapping[str, re.Pattern[str]]] = {
    form: re.compile(
        re.escape(rule.phrase)
        .replace(r"\{form\}", re.escape(form))
        .replace(r"\{sites\}", rf"(?P<sites>{_WORD}(?:,{_WORD})*)")
        .replace(r"\{insertion\}", rf"(?P<insertion>{'|'.join(Insertion)})")
        + _TAIL
    )
    for form, rule in FORMS.items()
}


def _printed(text: str) -> Design | None:
    """Return the design that `Design.describe` prints so, or None where it prints none so."""
    if text == Design().describe():
        return Design()
    pieces = _pieces(text)
    try:
        found = [replace(m, layers=layers) for part, layers in pieces for m in _part(part)]
        design = Design(tuple(found)) if found else None
    except (DesignError, ValueError):
        return None
    return design if design and _pieces(design.describe()) == pieces else None


def _pieces(text: str) -> list[tuple[str, str]]:
    """Return the parts of a design with their layers, whatever their order."""
    groups = [match for group in text.split("; ") if (match := _LAYERS.fullmatch(group))]
    return sorted((part, match[2] or "all") for match in groups for part in match[1].split(" + "))


def _part(text: str) -> list[Modification]:
    for form, phrase in _PHRASES.items():
        if match := phrase.fullmatch(text):
            found = match.groupdict()
            sites = (found.get("sites") or FORMS[form].sites[0]).split(",")
            return [_modification(form, Site(site), found) for site in sites]
    return []


def _modification(form: str, site: Site, found: Mapping[str, Any]) -> Modification:
    size, scale = int(found["size"] or 0), float(found["scale"] or 1)
    said = {name: found[name] for name in SAID if found[name]}
    if "reparameterisation" in said:
        said["reparameterisation"] = int(said["reparameterisation"])
    match form:
        case Form.BOTTLENECK:
            m = parts.bottleneck(site, Insertion(found["insertion"]), size, scale=scale)
        case Form.LOW_RANK:
            m = parts.low_rank(site, size, scale)
        case Form.PREFIX:
            m = parts.prefix(size, gated=not found["ungated"])
            if found["ungated"] and scale != 1:
                m = replace(m, composition=Composition.SCALE, scale=scale)
        case _:
            composition = Composition.SCALE if found["scale"] else Composition.ADD
            m = Modification(
                form=Form(form),
                site=site,
                insertion=_insertion(form),
                composition=composition,
                size=size,
                scale=scale,
            )
    return replace(m, **said)
