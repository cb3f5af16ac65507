"""One type for every parameter-efficient method: a change Δh of a frozen representation h.

He et al. (ICLR 2022, section 3.2) describe each method by four choices: the functional form of Δh,
the representation that it modifies, where Δh is inserted, and how it is composed with h. A
`Modification` holds these four and a size; a `Design` is a set of modifications. Every method of
the paper's Table 1, and every mixture of them, is a value of this type (see `presets`).

Modifications that land at one place read the same values, the frozen network's own, and their changes
are summed; a change of a linear counts as part of it, and what lies further on sees what came before.
So their order in a design means nothing, and it keeps them sorted.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from enum import StrEnum
from itertools import product
from typing import Any, Final, NamedTuple, TypeAlias

SCHEMA: Final = 1  # enters every key: raise it when the meaning of a field changes


class DesignError(ValueError):
    """A design that means nothing, or that cannot be built on the backbone at hand."""


class Form(StrEnum):
    """Functional form of Δh (section 3.2, "functional form")."""

    BOTTLENECK = "bottleneck"  # ReLU(z W_down) W_up
    LOW_RANK = "low_rank"  # x A B
    PREFIX = "prefix"  # softmax(x W_q P_k) P_v
    MULTI_HEAD = "multi_head"  # ReLU(x W_q P_k) P_v, per head
    RESCALE = "rescale"  # h ⊙ (v - 1), v a learned vector of ones at first: (IA)³
    BIAS = "bias"  # a constant: the biases that the model has (BitFit)
    PROMPT = "prompt"  # vectors in front of the input
    FULL = "full"  # x ΔW of full rank, everywhere


class Site(StrEnum):
    """The frozen sub-module whose output is changed."""

    HEADS = "heads"  # per head, before concatenation
    ATTENTION = "attention"  # the sub-layer
    FFN = "ffn"  # the sub-layer
    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    ATTENTION_OUT = "attention_out"
    FFN_UP = "ffn_up"
    FFN_GATE = "ffn_gate"  # of a gated FFN, act(gate(x)) up(x)
    FFN_HIDDEN = "ffn_hidden"  # the activations between the FFN's linears
    FFN_DOWN = "ffn_down"
    INPUT = "input"  # the embedded sequence
    MODEL = "model"  # every module


LINEARS: Final = (
    Site.QUERY,
    Site.KEY,
    Site.VALUE,
    Site.ATTENTION_OUT,
    Site.FFN_UP,
    Site.FFN_GATE,
    Site.FFN_DOWN,
)
FEED_FORWARD: Final = (Site.FFN, Site.FFN_UP, Site.FFN_GATE, Site.FFN_HIDDEN, Site.FFN_DOWN)


class Insertion(StrEnum):
    """Where Δh reads and lands relative to the frozen sub-module."""

    SEQUENTIAL = "sequential"
    PARALLEL = "parallel"
    AFTER_RESIDUAL = "after_residual"


class Composition(StrEnum):
    """How Δh is combined with h: h + Δh, h + sΔh, h + sΔh with s learned, (1-λ)h + λΔh."""

    ADD = "add"
    SCALE = "scale"
    LEARNED_SCALE = "learned_scale"
    GATE = "gate"


class LayerNorm(StrEnum):
    """Δh's own layer norm: on what it reads (for prefixes, on the way to their queries), or on its scaled output."""

    NONE = "none"
    IN = "in"
    OUT = "out"


class Init(StrEnum):
    """`bert`: N(0, 0.02) for all matrices. `lora`: Kaiming-uniform down, zero up, so Δh starts at 0."""

    BERT = "bert"
    LORA = "lora"


class Positions(StrEnum):
    """Where a prompt stands. `kept`: it has no position, the tokens keep theirs (the paper's code).

    `shifted`: it takes the first positions, the tokens the following ones (Hugging Face PEFT).
    """

    KEPT = "kept"
    SHIFTED = "shifted"


class StackShape(NamedTuple):
    """One stack of a model, as far as a design can tell: its number of layers, and the attentions of each."""

    depth: int
    attentions: tuple[str, ...]


Layout: TypeAlias = Mapping[str, StackShape]


@dataclass(frozen=True)
class Place:
    """The input that Δh reads, and the place where it is added."""

    reads: str
    added: str


# site x insertion -> place. The paper's "attn" covers three of these; its code tells them apart.
PLACES: Final[Mapping[tuple[Site, Insertion], Place]] = {
    (Site.HEADS, Insertion.PARALLEL): Place("the queries of each head", "each head's output, before concatenation"),
    (Site.ATTENTION, Insertion.PARALLEL): Place(
        "the query-side input of the sub-layer", "the concatenated heads, before the output projection"
    ),
    (Site.ATTENTION, Insertion.SEQUENTIAL): Place(
        "the output projection's result", "the same, before dropout and residual"
    ),
    (Site.FFN, Insertion.PARALLEL): Place(
        "the residual stream that enters the sub-layer (un-normalised in pre-norm models)",
        "the sub-layer's output after dropout, before the residual",
    ),
    (Site.FFN, Insertion.SEQUENTIAL): Place("the sub-layer's output after dropout", "the same, before the residual"),
    (Site.FFN, Insertion.AFTER_RESIDUAL): Place(
        "the sub-layer's output after residual (and norm, in post-norm models)", "the same"
    ),
    **{(site, Insertion.PARALLEL): Place("the linear's input", "the linear's output") for site in LINEARS},
    **{(site, Insertion.SEQUENTIAL): Place("the linear's output", "the same") for site in LINEARS},
    (Site.FFN_HIDDEN, Insertion.SEQUENTIAL): Place("the activations", "the same, before the down projection"),
    (Site.INPUT, Insertion.PARALLEL): Place("nothing", "rows in front of the embedded sequence"),
    (Site.MODEL, Insertion.PARALLEL): Place("each module's input", "each module's output"),
}


@dataclass(frozen=True)
class Rule:
    """What one functional form allows. `sized`: whether it has a size (r or l)."""

    sites: tuple[Site, ...]
    insertions: tuple[Insertion, ...]
    compositions: tuple[Composition, ...]
    sized: bool = True
    options: tuple[str, ...] = ()  # further fields of a Modification that mean something to the form


_SCALED: Final = (Composition.ADD, Composition.SCALE, Composition.LEARNED_SCALE)
_PARALLEL: Final = (Insertion.PARALLEL,)
_PLACED: Final = ("layers", "stacks")

RULES: Final[Mapping[Form, Rule]] = {
    Form.BOTTLENECK: Rule(
        (Site.ATTENTION, Site.FFN),
        tuple(Insertion),
        _SCALED,
        options=(*_PLACED, "attentions", "layer_norm", "init", "dropout"),
    ),
    Form.LOW_RANK: Rule(LINEARS, _PARALLEL, _SCALED, options=(*_PLACED, "attentions", "init", "dropout")),
    Form.PREFIX: Rule(
        (Site.HEADS,),
        _PARALLEL,
        (Composition.GATE, *_SCALED),
        options=(*_PLACED, "attentions", "layer_norm", "dropout", "reparameterisation"),
    ),
    Form.MULTI_HEAD: Rule((Site.HEADS,), _PARALLEL, _SCALED, options=(*_PLACED, "attentions", "layer_norm", "dropout")),
    Form.RESCALE: Rule(
        (*LINEARS, Site.FFN_HIDDEN),
        (Insertion.SEQUENTIAL,),
        (Composition.ADD,),
        sized=False,
        options=(*_PLACED, "attentions"),
    ),
    Form.BIAS: Rule((Site.MODEL,), _PARALLEL, (Composition.ADD,), sized=False),
    Form.PROMPT: Rule((Site.INPUT,), _PARALLEL, (Composition.ADD,), options=("dropout", "positions")),
    Form.FULL: Rule((Site.MODEL,), _PARALLEL, (Composition.ADD,), sized=False),
}
_OPTIONS: Final = (*_PLACED, "attentions", "layer_norm", "init", "dropout", "reparameterisation", "positions")
# Why a choice is no matter of taste, where the rule alone would not say it.
_REASONS: Final[Mapping[tuple[Form, str], str]] = {
    **{
        (form, "composition"): ": the gate λ is a share of a softmax (equation 7)"
        for form in Form
        if form is not Form.PREFIX
    },
    (Form.PROMPT, "layers"): ": it stands in front of the input, not inside a layer (that is a prefix)",
    (Form.PROMPT, "site"): ": it stands in front of the input, not inside a layer (that is a prefix)",
}
_SAID: Final = ("stacks", "attentions", "positions", "reparameterisation")  # by `describe`, where not the default
_NO_ATTENTION: Final = tuple(("attentions", site) for site in FEED_FORWARD)
_LAYERS: Final = re.compile(r"all|top [1-9]\d*|\d+(,\d+)*")


@dataclass(frozen=True, kw_only=True)
class Modification:
    """One Δh.

    `size` is the bottleneck width or rank r, or the number l of prefix or prompt vectors; 0 for the
    forms that have none. `scale` is s, where it is learned its first value. `layers` is "all", "top K"
    (the K layers nearest the output) or a list like "0,2,5"; `stacks` "all", "encoder" or "decoder";
    `attentions` "all", "self" or "cross". `reparameterisation` is the width of the prefix MLP, 0 for
    direct keys and values.

    Raises DesignError, naming the rule, where the combination means nothing.
    """

    form: Form
    site: Site
    insertion: Insertion = Insertion.PARALLEL
    composition: Composition = Composition.ADD
    size: int = 0
    scale: float = 1.0
    layers: str = "all"
    stacks: str = "all"
    attentions: str = "all"
    layer_norm: LayerNorm = LayerNorm.NONE
    init: Init = Init.LORA
    dropout: float = 0.0
    reparameterisation: int = 0
    positions: Positions = Positions.KEPT

    def __post_init__(self) -> None:
        for name, kind in _ENUMS.items():
            object.__setattr__(self, name, _enum(kind, name, getattr(self, name)))
        object.__setattr__(self, "scale", float(self.scale))
        object.__setattr__(self, "dropout", float(self.dropout))
        if self.composition is Composition.SCALE and self.scale == 1.0:
            object.__setattr__(self, "composition", Composition.ADD)  # the same function, so one value
        rule = RULES[self.form]
        for name, allowed in (
            ("site", rule.sites),
            ("insertion", rule.insertions),
            ("composition", rule.compositions),
        ):
            if getattr(self, name) not in allowed:
                received = getattr(self, name)
                gated = name != "composition" or received is Composition.GATE
                why = _REASONS.get((self.form, name), "") if gated else ""
                raise DesignError(f"{self.form} takes {name} {' or '.join(allowed)}{why}; received {received}")
        if (self.site, self.insertion) not in PLACES:
            at = [insertion for site, insertion in PLACES if site is self.site]
            raise DesignError(f"{self.site} takes insertion {' or '.join(at)}; received {self.insertion}")
        if rule.sized and self.size < 1:
            raise DesignError(f"the size of {self.form} is at least 1; received {self.size}")
        if not rule.sized and self.size:
            raise DesignError(f"{self.form} has no size; received {self.size}")
        for name in _OPTIONS:
            if name not in rule.options and getattr(self, name) != _DEFAULTS[name]:
                why = _REASONS.get((self.form, name), "")
                raise DesignError(f"{self.form} has no {name}{why}; received {getattr(self, name)!r}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise DesignError(f"scale is a positive number; received {self.scale}")
        if self.composition in (Composition.ADD, Composition.GATE) and self.scale != 1.0:
            raise DesignError(f"composition {self.composition} has no scale; received {self.scale}")
        if self.site is Site.HEADS and self.layer_norm is LayerNorm.OUT:
            raise DesignError(f"{self.form} takes layer_norm none or in; received {self.layer_norm}")
        if not 0 <= self.dropout < 1:
            raise DesignError(f"dropout lies in [0, 1); received {self.dropout}")
        if self.reparameterisation < 0:
            raise DesignError(f"reparameterisation is a width, or 0; received {self.reparameterisation}")
        if not _LAYERS.fullmatch(self.layers):
            raise DesignError(f'layers is "all", "top K" or a list like "0,2,5"; received {self.layers!r}')
        if self.attentions != "all" and self.site in FEED_FORWARD:
            raise DesignError(f"{self.site} belongs to no attention; received attentions {self.attentions!r}")
        for name, choices in (("stacks", ("all", "encoder", "decoder")), ("attentions", ("all", "self", "cross"))):
            if getattr(self, name) not in choices:
                raise DesignError(f"{name} is one of {', '.join(choices)}; received {getattr(self, name)!r}")

    def layers_of(self, depth: int) -> tuple[int, ...]:
        """The layers covered in a stack of `depth`, ascending; what a shallow stack lacks covers nothing there."""
        return _numbers(self.layers, depth)

    def _layers_wanted(self) -> int:
        """The least depth of a stack that has the layers named."""
        if self.layers == "all":
            return 0
        if self.layers.startswith("top "):
            return int(self.layers[4:])
        return 1 + max(map(int, self.layers.split(",")))

    def covers(self, layout: Layout) -> tuple[tuple[str, int, str], ...]:
        """(stack, layer, attention) of each place, "" for the attention of a feed-forward site.

        Raises DesignError for layers that not even the deepest of its stacks has.
        """
        deepest = max((stack.depth for name, stack in layout.items() if self.stacks in ("all", name)), default=0)
        if deepest and self._layers_wanted() > deepest:
            there = f"the stack has {deepest} layers, 0 to {deepest - 1}"
            raise DesignError(f"{there}; received layers {self.layers!r}")
        return self._places(layout, self.stacks, self.attentions, self.layers)

    def _places(self, layout: Layout, stacks: str, attentions: str, layers: str) -> tuple[tuple[str, int, str], ...]:
        found: list[tuple[str, int, str]] = []
        for name, stack in layout.items():
            if stacks in ("all", name):
                there = ("",) if self.site in FEED_FORWARD else stack.attentions
                kinds = [kind for kind in there if attentions in ("all", kind)]
                found += [(name, layer, kind) for layer in _numbers(layers, stack.depth) for kind in kinds]
        return tuple(found)

    def canonical(self, layout: Layout) -> Modification:
        """The same change with `stacks`, `attentions` and `layers` in their one spelling for that layout."""
        if "layers" not in RULES[self.form].options:
            return self
        here = self.covers(layout)
        chosen = sorted({layer for _, layer, _ in here})
        spellings = product(
            ("all", *layout),
            ("all", "self", "cross") if self.site not in FEED_FORWARD else ("all",),
            ("all", f"top {len(chosen)}", ",".join(map(str, chosen))) if here else (self.layers,),
        )
        own = (self.stacks, self.attentions, self.layers)
        stacks, attentions, layers = next((each for each in spellings if self._places(layout, *each) == here), own)
        if (stacks, attentions, layers) == own:
            return self
        return replace(self, stacks=stacks, attentions=attentions, layers=layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; fields at their default are left out."""
        return {
            field.name: str(value) if isinstance(value, StrEnum) else value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default or field.default is MISSING
        }


_ENUMS: Final[Mapping[str, type[StrEnum]]] = {
    "form": Form,
    "site": Site,
    "insertion": Insertion,
    "composition": Composition,
    "layer_norm": LayerNorm,
    "init": Init,
    "positions": Positions,
}
_DEFAULTS: Final = {field.name: field.default for field in fields(Modification)}


@dataclass(frozen=True)
class Design:
    """A set of modifications, and whether the task head trains.

    Without modifications and with a trained head it is `head_only`. A design that would change
    nothing raises DesignError.
    """

    modifications: tuple[Modification, ...] = ()
    head: bool = True

    def __post_init__(self) -> None:
        # The reparameterisation comes last, so that folding it away keeps the order, and with it the tensors' names.
        ordered = sorted(self.modifications, key=lambda m: (_canonical(_folded(m).to_dict()), m.reparameterisation))
        object.__setattr__(self, "modifications", tuple(ordered))
        if not ordered and not self.head:
            raise DesignError("a design changes something; received no modification and a frozen head")
        if len(set(map(_folded, ordered))) < len(ordered):
            raise DesignError("a design holds each modification once; received the same one twice")
        if len(ordered) > 1 and any(modification.form is Form.FULL for modification in ordered):
            raise DesignError("full fine-tuning already trains everything; it is not combined")

    def canonical(self, layout: Layout) -> Design:
        """The same design with every modification in its one spelling for that layout."""
        parts = tuple(m.canonical(layout) for m in self.modifications)
        return self if parts == self.modifications else replace(self, modifications=parts)

    def folded(self) -> Design:
        """The design of the stored tensors: prefixes as direct keys and values."""
        return replace(self, modifications=tuple(map(_folded, self.modifications)))

    def only(self, **where: str) -> Design:
        """The same design at these `layers`, `stacks` or `attentions` only, as far as each part has them.

        Raises DesignError where no part has one of them.
        """
        parts = self.modifications
        for name, value in where.items():
            takes = [m for m in parts if name in RULES[m.form].options and (name, m.site) not in _NO_ATTENTION]
            if not takes:
                raise DesignError(f"no part of {self.describe()} has {name}; received {value!r}")
            parts = tuple(replace(m, **{name: value}) if m in takes else m for m in parts)  # type: ignore[arg-type]
        return replace(self, modifications=parts)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, defaults left out; `from_dict` reads it back."""
        return {
            "schema": SCHEMA,
            "modifications": [modification.to_dict() for modification in self.modifications],
            "head": self.head,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Design:
        """Raises DesignError for another schema, or fields that a design does not have."""
        if data.get("schema") != SCHEMA:
            raise DesignError(f"this release reads designs of schema {SCHEMA}; received {data.get('schema')!r}")
        parts = []
        for part in data.get("modifications", ()):
            unknown = set(part) - set(_DEFAULTS)
            if unknown:
                raise DesignError(f"a modification has no field {', '.join(sorted(unknown))}")
            parts.append(Modification(**part))
        return cls(tuple(parts), head=bool(data.get("head", True)))

    @property
    def key(self) -> str:
        """A stable short hash: equal for designs that mean the same."""
        return hashlib.sha256(_canonical(self.to_dict()).encode()).hexdigest()[:12]

    def __or__(self, other: Design) -> Design:
        """The union of two designs; the head trains if it does in either."""
        return Design((*self.modifications, *other.modifications), head=self.head or other.head)

    def describe(self) -> str:
        """One line for tables, such as `prefix 16 + ffn parallel 64 x4, top 3; bias`."""
        groups: dict[str, dict[Modification, list[Modification]]] = {}
        for m in self.modifications:
            alike = replace(m, site=LINEARS[0]) if m.form in (Form.LOW_RANK, Form.RESCALE) else m
            groups.setdefault(m.layers, {}).setdefault(alike, []).append(m)
        texts = []
        for layers, group in groups.items():
            where = {"all": ""}.get(layers, f", {layers}" if layers.startswith("top") else f", layers {layers}")
            texts.append(" + ".join(map(_describe, group.values())) + where)
        return "; ".join(texts) or "head only"

    def __str__(self) -> str:
        return self.describe()


def table() -> str:
    """PLACES as text: site, insertion, what Δh reads, where it is added."""
    rows = [(str(site), str(insertion), place.reads, place.added) for (site, insertion), place in PLACES.items()]
    head = ("site", "insertion", "reads", "is added to")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    )


def _describe(group: Sequence[Modification]) -> str:
    """Modifications that are alike but for their sites, as one phrase; their layers are said elsewhere."""
    m = group[0]
    sites = ",".join(str(modification.site) for modification in group)
    words = {
        Form.BOTTLENECK: [sites, str(m.insertion)],
        Form.LOW_RANK: ["lora", sites],
        Form.MULTI_HEAD: ["multi-head"],
        Form.RESCALE: ["rescale", sites],
    }.get(m.form, [str(m.form)])
    if m.size:
        words.append(str(m.size))
    if m.composition is Composition.SCALE:
        words.append(f"x{m.scale:g}")
    elif m.composition is Composition.LEARNED_SCALE:
        words.append("x learned")
    if m.form is Form.PREFIX and m.composition is not Composition.GATE:
        words.append("ungated")
    words += [f"{name} {value}" for name in _SAID if (value := getattr(m, name)) != _DEFAULTS[name]]
    return " ".join(words)


def _numbers(layers: str, depth: int) -> tuple[int, ...]:
    if layers == "all":
        return tuple(range(depth))
    if layers.startswith("top "):
        return tuple(range(max(0, depth - int(layers[4:])), depth))
    return tuple(sorted({number for number in map(int, layers.split(",")) if number < depth}))


def _folded(m: Modification) -> Modification:
    return replace(m, reparameterisation=0) if m.reparameterisation else m


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _enum(kind: type[StrEnum], name: str, value: str) -> StrEnum:
    try:
        return kind(value)
    except ValueError:
        raise DesignError(f"{name} is one of {', '.join(kind)}; received {value!r}") from None
