"""What a design adds to a backbone: the list that `attach` builds and `count` counts.

One `Delta` is one Δh at one place of one layer. Its name is stable: stack, layer, attention, site and
form, such as `encoder.0.self.query.low_rank` or `encoder.0.ffn.bottleneck`; a second delta of the
same form at the same place is `bottleneck_2`, in the design's own order. No torch here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from petl.design import (
    LINEARS,
    Composition,
    Design,
    DesignError,
    Form,
    Insertion,
    LayerNorm,
    Modification,
    Site,
)
from petl.families import Attention, Family, Stack

Shapes = Mapping[str, tuple[int, ...]]

ATTENTION_SITES: Final = (Site.HEADS, Site.ATTENTION, Site.QUERY, Site.KEY, Site.VALUE, Site.ATTENTION_OUT)
BUILT: Final = (Form.BOTTLENECK, Form.LOW_RANK, Form.PREFIX, Form.BIAS, Form.FULL)


@dataclass(frozen=True)
class Delta:
    """One Δh at one place.

    `layer` is the full path of the layer, `attention` the row of its attention sub-layer (None in
    the feed-forward one). `reads` and `adds` are the widths of what it reads and of what it is
    added to; for a prefix, those of the keys and the values.
    """

    name: str
    modification: Modification
    layer: str
    stack: Stack
    attention: Attention | None
    reads: int
    adds: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name (without the delta's own) -> shape of each tensor, as `forms.build` makes them."""
        m, size = self.modification, self.modification.size
        if m.form is Form.LOW_RANK:
            return {"a": (size, self.reads), "b": (self.adds, size)}
        if m.form is Form.PREFIX:
            return {"key": (size, self.reads), "value": (size, self.adds)}
        shapes: dict[str, tuple[int, ...]] = {
            "down.weight": (size, self.reads),
            "down.bias": (size,),
            "up.weight": (self.adds, size),
            "up.bias": (self.adds,),
        }
        if m.layer_norm is not LayerNorm.NONE:
            width = self.reads if m.layer_norm is LayerNorm.IN else self.adds
            shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
        return shapes


def check(design: Design) -> None:
    """Raise DesignError, naming what is supported, where a part of `design` cannot be built yet."""
    for m in design.modifications:
        for holds, rule in (
            (m.form in BUILT, f"form {', '.join(BUILT)}"),
            (m.insertion is not Insertion.AFTER_RESIDUAL, "insertion sequential, parallel"),
            (m.composition is not Composition.LEARNED_SCALE, "composition add, scale; gate for prefix"),
            (m.form is not Form.PREFIX or m.composition is Composition.GATE, "composition gate for prefix"),
            (not m.reparameterisation, "reparameterisation 0: prefix keys and values themselves"),
        ):
            if not holds:
                raise DesignError(f"supported so far: {rule}; received {m.to_dict()}")


def deltas(design: Design, family: Family, depth: int, shapes: Shapes) -> tuple[Delta, ...]:
    """Every delta of `design` on stacks of `depth` layers whose parameters have these shapes.

    Raises DesignError for what is not supported, for layers that are not there, and for a
    modification that would change nothing.
    """
    check(design)
    found: list[Delta] = []
    seen: Counter[str] = Counter()
    for m in design.in_depth(depth).modifications:
        if m.form in (Form.BIAS, Form.FULL):
            continue
        before = len(found)
        for delta in _places(m, family, depth, shapes):
            seen[delta.name] += 1
            found.append(_numbered(delta, seen[delta.name]))
        if len(found) == before:
            has = "; ".join(f"stack {s.name} with attentions {', '.join(s.attentions)}" for s in family.stacks)
            raise DesignError(f"{family.name} has {has}: nothing to change for {m.to_dict()}")
    return tuple(found)


def unfrozen(design: Design, family: Family, names: Mapping[str, object]) -> list[str]:
    """Which of the model's own parameters (`names`, in full) belong to the adapter: BitFit's, or all.

    BitFit takes every parameter called `bias` outside the pooler; those of the head only where the
    head does not train, for then nothing else owns them.
    """
    forms = {m.form for m in design.modifications}
    if Form.FULL in forms:
        return [name for name in names if family.in_base(name)]
    if Form.BIAS not in forms:
        return []
    return [
        name
        for name in names
        if name.rpartition(".")[2] == "bias"
        and not family.in_pooler(name)
        and (family.in_base(name) or not design.head)
    ]


def _places(m: Modification, family: Family, depth: int, shapes: Shapes) -> Iterator[Delta]:
    for stack in family.stacks:
        if m.stacks not in ("all", stack.name):
            continue
        for index in m.layers_of(depth):
            layer = f"{family.base}.{stack.layers}.{index}"
            if m.site not in ATTENTION_SITES:
                name = f"{stack.name}.{index}.{m.site}.{m.form}"
                yield Delta(name, m, layer, stack, None, *_widths(m, layer, stack, None, shapes))
                continue
            for kind, attention in stack.attentions.items():
                if m.attentions in ("all", kind):
                    name = f"{stack.name}.{index}.{kind}.{m.site}.{m.form}"
                    yield Delta(name, m, layer, stack, attention, *_widths(m, layer, stack, attention, shapes))


def _widths(m: Modification, layer: str, stack: Stack, attention: Attention | None, shapes: Shapes) -> tuple[int, int]:
    def out_in(path: str) -> tuple[int, int]:
        out, into = shapes[f"{layer}.{path}.weight"]
        return out, into

    if attention is None:
        if m.site in LINEARS:
            out, into = out_in(stack.ffn.linear(m.site))
            return into, out
        width = out_in(stack.ffn.down)[0]
        return width, width
    if m.site in LINEARS:
        out, into = out_in(attention.linear(m.site))
        return into, out
    if m.site is Site.HEADS:
        return out_in(attention.key)[0], out_in(attention.value)[0]
    if m.insertion is Insertion.PARALLEL:
        return out_in(attention.query)[1], out_in(attention.out)[1]
    width = out_in(attention.out)[0]
    return width, width


def _numbered(delta: Delta, number: int) -> Delta:
    return delta if number == 1 else replace(delta, name=f"{delta.name}_{number}")
