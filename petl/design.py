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

from petl.errors import UserError
from petl.forms.form import FunctionalForm
from petl.forms.table import FORMS, Form
from petl.forms.vocabulary import (
    FEED_FORWARD,
    LINEARS,
    LOCATIONS,
    Composition,
    Init,
    Insertion,
    LayerNorm,
    Positions,
    Settings,
    Site,
)

__all__ = [
    "FEED_FORWARD",
    "LINEARS",
    "PLACES",
    "SCHEMA",
    "Composition",
    "Design",
    "DesignError",
    "Form",
    "Init",
    "Insertion",
    "LayerNorm",
    "Layout",
    "Modification",
    "Place",
    "Positions",
    "Site",
    "StackShape",
    "table",
]

SCHEMA: Final = 1  # enters every key: raise it when the meaning of a field changes


class DesignError(UserError, ValueError):
    """A design that means nothing, or that cannot be built on the backbone at hand."""


class StackShape(NamedTuple):
    """What a design knows of one stack of a model: its number of layers, and the attentions of each."""

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


_OPTIONS: Final = (*LOCATIONS, "layer_norm", "init", "dropout", "reparameterisation", "positions")
_GATED: Final = ": the gate λ is a share of a softmax (equation 7)"
SAID: Final = ("stacks", "attentions", "positions", "reparameterisation")  # by `describe`, where not the default
_NO_ATTENTION: Final = tuple(("attentions", site) for site in FEED_FORWARD)
_LAYERS: Final = re.compile(r"all|top [1-9]\d*|\d+(,\d+)*")


@dataclass(frozen=True, kw_only=True)
class Modification(Settings):
    """Hold one Δh: its fields are those of `Settings`, checked by the rules of its form and its site.

    Raises DesignError, naming the rule, where the combination means nothing.
    """

    form: Form

    def __post_init__(self) -> None:
        for name in _DEFAULTS:
            object.__setattr__(self, name, plain(getattr(self, name)))
        for name, kind in _ENUMS.items():
            object.__setattr__(self, name, _enum(kind, name, getattr(self, name)))
        object.__setattr__(self, "scale", float(self.scale))
        object.__setattr__(self, "dropout", float(self.dropout))
        if self.composition is Composition.SCALE and self.scale == 1.0:
            object.__setattr__(self, "composition", Composition.ADD)  # the same function, so one value
        rule = self.rule
        for name, allowed in (
            ("site", rule.sites),
            ("insertion", rule.insertions),
            ("composition", rule.compositions),
        ):
            received = getattr(self, name)
            if received not in allowed:
                why = _GATED if received is Composition.GATE else rule.reasons.get(name, "")
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
                why = rule.reasons.get(name, "")
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

    @property
    def rule(self) -> FunctionalForm:
        """Return the row of its form."""
        return FORMS[self.form]

    def layers_of(self, depth: int) -> tuple[int, ...]:
        """Return the layers covered in a stack of `depth`, ascending, without those that a shallow stack lacks."""
        return _numbers(self.layers, depth)

    def _layers_wanted(self) -> int:
        """Return the least depth of a stack that has the layers named."""
        if self.layers == "all":
            return 0
        if self.layers.startswith("top "):
            return int(self.layers[4:])
        return 1 + max(map(int, self.layers.split(",")))

    def covers(self, layout: Layout) -> tuple[tuple[str, int, str], ...]:
        """Return (stack, layer, attention) of each place, "" for the attention of a feed-forward site.

        Raises DesignError for layers that not even the deepest of its stacks has.
        """
        deepest = max((stack.depth for name, stack in layout.items() if self.stacks in ("all", name)), default=0)
        if deepest and self._layers_wanted() > deepest:
            raise DesignError(f"the stack has {deepest} layers, 0 to {deepest - 1}; received layers {self.layers!r}")
        return self._places(layout, self.stacks, self.attentions, self.layers)

    def _places(self, layout: Layout, stacks: str, attentions: str, layers: str) -> tuple[tuple[str, int, str], ...]:
        places: list[tuple[str, int, str]] = []
        for name, stack in layout.items():
            if stacks in ("all", name):
                sub_layers = ("",) if self.site in FEED_FORWARD else stack.attentions
                kinds = [kind for kind in sub_layers if attentions in ("all", kind)]
                places += [(name, layer, kind) for layer in _numbers(layers, stack.depth) for kind in kinds]
        return tuple(places)

    def canonical(self, layout: Layout) -> Modification:
        """Return the same change with `stacks`, `attentions` and `layers` in their one spelling for that layout."""
        if "layers" not in self.rule.options:
            return self
        places = self.covers(layout)
        numbers = sorted({layer for _, layer, _ in places})
        spellings = product(
            ("all", *layout),
            ("all", "self", "cross") if self.site not in FEED_FORWARD else ("all",),
            ("all", f"top {len(numbers)}", ",".join(map(str, numbers))) if places else (self.layers,),
        )
        spelling = (self.stacks, self.attentions, self.layers)
        equal = (candidate for candidate in spellings if self._places(layout, *candidate) == places)
        stacks, attentions, layers = next(equal, spelling)
        if (stacks, attentions, layers) == spelling:
            return self
        return replace(self, stacks=stacks, attentions=attentions, layers=layers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without fields at their default."""
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
        """Return the same design with every modification in its one spelling for that layout."""
        parts = tuple(m.canonical(layout) for m in self.modifications)
        return self if parts == self.modifications else replace(self, modifications=parts)

    def folded(self) -> Design:
        """Return the design of the stored tensors: prefixes as direct keys and values."""
        return replace(self, modifications=tuple(map(_folded, self.modifications)))

    def only(self, **where: str) -> Design:
        """Return the same design at these `layers`, `stacks` or `attentions` only, as far as each part has them.

        Raises DesignError where no part has one of them.
        """
        parts = self.modifications
        for name, value in where.items():
            takes = [m for m in parts if name in m.rule.options and (name, m.site) not in _NO_ATTENTION]
            if not takes:
                raise DesignError(f"no part of {self.describe()} has {name}; received {value!r}")
            parts = tuple(replace(m, **{name: value}) if m in takes else m for m in parts)  # type: ignore[arg-type]
        return replace(self, modifications=parts)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values without defaults, which `from_dict` reads."""
        return {
            "schema": SCHEMA,
            "modifications": [modification.to_dict() for modification in self.modifications],
            "head": self.head,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Design:
        """Read what `to_dict` writes. Raises DesignError for another schema, and for unknown fields."""
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
        """Return a stable short hash: equal for designs that mean the same."""
        return hashlib.sha256(_canonical(self.to_dict()).encode()).hexdigest()[:12]

    def __or__(self, other: Design) -> Design:
        """Return the union of two designs; the head trains if it does in either."""
        return Design((*self.modifications, *other.modifications), head=self.head or other.head)

    def describe(self) -> str:
        """Return one line for tables, such as `prefix 16 + ffn parallel 64 x4, top 3; bias`."""
        groups: dict[str, dict[Modification, list[Modification]]] = {}
        for m in self.modifications:
            alike = replace(m, site=m.rule.sites[0]) if m.rule.at_linears else m
            groups.setdefault(m.layers, {}).setdefault(alike, []).append(m)
        texts = []
        for layers, group in groups.items():
            where = {"all": ""}.get(layers, f", {layers}" if layers.startswith("top") else f", layers {layers}")
            texts.append(" + ".join(map(_describe, group.values())) + where)
        return "; ".join(texts) or "head only"

    def __str__(self) -> str:
        return self.describe()


def table() -> str:
    """Return PLACES as text: site, insertion, what Δh reads, where it is added."""
    rows = [(str(site), str(insertion), place.reads, place.added) for (site, insertion), place in PLACES.items()]
    head = ("site", "insertion", "reads", "is added to")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    )


def _describe(group: Sequence[Modification]) -> str:
    """Describe modifications that differ only in their sites by one phrase, without their layers."""
    m = group[0]
    sites = ",".join(str(modification.site) for modification in group)
    words = [m.rule.phrase.format(form=m.form, sites=sites, insertion=m.insertion)]
    if m.size:
        words.append(str(m.size))
    if m.composition is Composition.SCALE:
        words.append(f"x{m.scale:g}")
    elif m.composition is Composition.LEARNED_SCALE:
        words.append("x learned")
    if Composition.GATE in m.rule.compositions and m.composition is not Composition.GATE:
        words.append("ungated")
    words += [f"{name} {value}" for name in SAID if (value := getattr(m, name)) != _DEFAULTS[name]]
    return " ".join(words)


def plain(value: Any) -> Any:
    """Return Python's own number for one of NumPy's, which JSON does not take; any other value as it is."""
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value


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
