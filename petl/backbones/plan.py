"""What a design adds to a backbone: the list that `attach` builds and `count` counts.

One `Delta` is one Δh at one place of one layer. Its name is stable: stack, layer, attention, site and
form, such as `encoder.0.self.query.low_rank` or `encoder.0.ffn.bottleneck`; a second delta of the
same form at the same place is `bottleneck_2`, in the design's own order. Parameters are named from
the base model, so that it is the same whatever head is on it. No torch here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from petl.backbones.families import Attention, Family, Linear, Stack
from petl.design import (
    LINEARS,
    Composition,
    Design,
    DesignError,
    Form,
    Insertion,
    LayerNorm,
    Layout,
    Modification,
    Positions,
    Site,
    StackShape,
)

Shapes = Mapping[str, tuple[int, ...]]

_WHOLE: Final = (Form.BIAS, Form.FULL)  # they own parameters of the model, and add none


@dataclass(frozen=True)
class Block:
    """Where a delta's change lies in the output of a fused linear: `start`, `width`, of `total`."""

    start: int
    width: int
    total: int


@dataclass(frozen=True)
class Delta:
    """One Δh at one place.

    `layer` is the path of the layer from the base model, `attention` the row of its attention
    sub-layer (None in the feed-forward one); `stack` is None for a prompt. `linear` is the path, from
    the layer, of the linear at the place: the one that the site names, an attention's output
    projection, for a form at the heads the query; `block` is its part where it is fused. `reads` and
    `adds` are the widths of what Δh reads and of what it is added to (for the forms at the heads,
    those of the keys and the values), `normed` that of its layer norm.
    """

    name: str
    modification: Modification
    layer: str = ""
    stack: Stack | None = None
    attention: Attention | None = None
    reads: int = 0
    adds: int = 0
    normed: int = 0
    linear: str = ""
    block: Block | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name (without the delta's own) -> shape of each tensor that is stored."""
        m, size = self.modification, self.modification.size
        shapes: dict[str, tuple[int, ...]]
        match m.form:
            case Form.LOW_RANK:
                shapes = {"a": (size, self.reads), "b": (self.adds, size)}
            case Form.PREFIX | Form.MULTI_HEAD:
                shapes = {"key": (size, self.reads), "value": (size, self.adds)}
            case Form.RESCALE:
                shapes = {"vector": (self.adds,)}
            case Form.PROMPT:
                shapes = {"weight": (size, self.adds)}
            case _:
                shapes = {
                    "down.weight": (size, self.reads),
                    "down.bias": (size,),
                    "up.weight": (self.adds, size),
                    "up.bias": (self.adds,),
                }
        if m.layer_norm is not LayerNorm.NONE:
            shapes |= {"norm.weight": (self.normed,), "norm.bias": (self.normed,)}
        if m.composition is Composition.LEARNED_SCALE:
            shapes["scale"] = (1,)
        return shapes


@dataclass(frozen=True)
class Reparameterisation:
    """One MLP through which the prefixes of all layers of one stack's attentions are trained.

    embedding E (l, width of a key) -> tanh(E W_in + b_in) W_out + b_out: key and value of a layer, with
    a W_out and b_out for each. Folded away for storage.
    """

    name: str
    deltas: tuple[Delta, ...]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name (without its own) -> shape of each tensor that trains."""
        first, m = self.deltas[0], self.deltas[0].modification
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (m.size, first.reads),
            "hidden.weight": (m.reparameterisation, first.reads),
            "hidden.bias": (m.reparameterisation,),
        }
        for index in range(len(self.deltas)):
            shapes[f"out.{index}.weight"] = (first.reads + first.adds, m.reparameterisation)
            shapes[f"out.{index}.bias"] = (first.reads + first.adds,)
        return shapes


def layout(family: Family, shapes: Shapes) -> Layout:
    """The stacks and attentions that a model with these parameters has."""
    there = {}
    for stack in family.stacks:
        pattern = re.compile(rf"{re.escape(stack.layers)}\.(\d+)\.")
        numbers = [int(match[1]) for name in shapes if (match := pattern.match(name))]
        if numbers:
            first = f"{stack.layers}.0"
            kinds = [kind for kind, row in stack.attentions.items() if _find(row.query, first, shapes)]
            there[stack.name] = StackShape(1 + max(numbers), tuple(kinds))
    return there


def linears(family: Family, shapes: Shapes) -> tuple[Site, ...]:
    """The linears that a model with these parameters has, in the order of LINEARS."""
    stack = family.stacks[0]
    rows = {**stack.ffn.linears, **next(iter(stack.attentions.values())).linears}
    return tuple(site for site in LINEARS if _find(rows[site], f"{stack.layers}.0", shapes))


def deltas(design: Design, family: Family, shapes: Shapes) -> tuple[Delta, ...]:
    """Every delta of `design` on a model whose base has parameters of these shapes.

    Raises DesignError for layers that are not there, for a modification that would change nothing,
    and for one that means nothing on this family.
    """
    there = layout(family, shapes)
    found: list[Delta] = []
    seen: Counter[str] = Counter()
    for m in design.canonical(there).modifications:
        if m.form is Form.BIAS and not any(map(is_bias, shapes)):
            raise DesignError(f"this {family.name} model has no biases: nothing to change for {m.form}")
        if m.form is Form.PROMPT and family.stacks[0].name not in there:
            raise DesignError(f"this {family.name} model has no {family.stacks[0].name}, which a prompt would enter")
        before = len(found)
        for delta in _prompt(m, family, shapes) if m.form is Form.PROMPT else _places(m, family, there, shapes):
            seen[delta.name] += 1
            found.append(_numbered(delta, seen[delta.name]))
        if len(found) == before and m.form not in _WHOLE:
            has = "; ".join(f"{name} with attentions {', '.join(s.attentions)}" for name, s in there.items())
            raise DesignError(f"nothing to change for {m.to_dict()}: this {family.name} model has {has}")
    return tuple(found)


def reparameterisations(found: Iterable[Delta]) -> tuple[Reparameterisation, ...]:
    """The MLPs of those prefixes that are trained through one."""
    groups: dict[tuple[str, Modification], list[Delta]] = {}
    for delta in found:
        if delta.modification.reparameterisation:
            stack, _, kind, *_ = delta.name.split(".")
            groups.setdefault((f"reparameterisation.{stack}_{kind}", delta.modification), []).append(delta)
    seen: Counter[str] = Counter()
    result = []
    for (name, _), group in groups.items():
        seen[name] += 1
        result.append(Reparameterisation(name if seen[name] == 1 else f"{name}_{seen[name]}", tuple(group)))
    return tuple(result)


def unfrozen(design: Design, family: Family, base: Iterable[str], head: Iterable[str]) -> list[str]:
    """Which of the model's own parameters belong to the adapter: BitFit's, or all.

    `base` are those of the pretrained model, `head` those of the task head, which trains by itself
    where the design says so. BitFit takes every parameter called `bias` outside the pooler; those of
    the head only where the head does not train, for then nothing else owns them.
    """
    forms = {m.form for m in design.modifications}
    if Form.FULL in forms:
        return list(base)
    if Form.BIAS not in forms:
        return []
    mine = [name for name in base if is_bias(name) and not family.in_pooler(name)]
    return mine if design.head else mine + [name for name in head if is_bias(name)]


def is_bias(name: str) -> bool:
    """By the last word alone: t5's `relative_attention_bias.weight` is an embedding."""
    return name.rpartition(".")[2] == "bias"


def _prompt(m: Modification, family: Family, shapes: Shapes) -> Iterator[Delta]:
    if m.positions is Positions.SHIFTED and not family.input.entry:
        raise DesignError(
            f"{family.name} has relative positions, no table of them: prompts stand before the tokens, "
            "which nothing shifts; leave positions at kept"
        )
    stack = family.stacks[0]
    width = _width(stack.ffn.down, f"{stack.layers}.0", family, shapes)[1]
    yield Delta(f"{stack.name}.{m.form}", m, adds=width)


def _places(m: Modification, family: Family, there: Layout, shapes: Shapes) -> Iterator[Delta]:
    if m.form in _WHOLE:
        return
    stacks = {stack.name: stack for stack in family.stacks}
    for name, index, kind in m.covers(there):
        stack = stacks[name]
        layer = f"{stack.layers}.{index}"
        attention = stack.attentions[kind] if kind else None
        place = ".".join(filter(None, (name, str(index), kind, m.site, m.form)))
        delta = Delta(place, m, layer, stack, attention)
        if m.site in LINEARS or m.site is Site.FFN_HIDDEN:
            yield from _at_linear(delta, (attention or stack.ffn).linears[m.site], family, shapes)
        else:
            yield _at_sub_layer(delta, family, shapes)


def _at_linear(delta: Delta, row: Linear, family: Family, shapes: Shapes) -> Iterator[Delta]:
    if not _find(row, delta.layer, shapes):
        return  # no gate in this FFN
    delta = _located(delta, row, family, shapes)
    into, out = _width(row, delta.layer, family, shapes)
    if delta.modification.site is Site.FFN_HIDDEN:
        yield replace(delta, reads=into, adds=into, block=None)
    else:
        yield replace(delta, reads=into, adds=out)


def _at_sub_layer(delta: Delta, family: Family, shapes: Shapes) -> Delta:
    m, attention = delta.modification, delta.attention

    def width(row: Linear) -> tuple[int, int]:
        return _width(row, delta.layer, family, shapes)

    if attention is None:
        assert delta.stack is not None
        reads = adds = width(delta.stack.ffn.down)[1]
    elif m.site is Site.HEADS:
        if attention.rotary and m.layer_norm is not LayerNorm.NONE:
            raise DesignError(
                f"{family.name} rotates its queries after their linear, so {m.form} has no layer norm on the way to "
                f"them; received layer_norm {m.layer_norm}"
            )
        delta = _located(delta, attention.query, family, shapes)
        reads, adds = width(attention.key)[1], width(attention.value)[1]
        return replace(delta, reads=reads, adds=adds, normed=width(attention.query)[0])
    else:
        delta = _located(delta, attention.out, family, shapes)
        into, out = width(attention.out)
        reads, adds = (width(attention.query)[0], into) if m.insertion is Insertion.PARALLEL else (out, out)
    return replace(delta, reads=reads, adds=adds, normed=reads if m.layer_norm is LayerNorm.IN else adds)


def _located(delta: Delta, row: Linear, family: Family, shapes: Shapes) -> Delta:
    out = _width(row, delta.layer, family, shapes)[1]
    block = Block(row.part * out, out, row.parts * out) if row.parts > 1 else None
    return replace(delta, linear=_find(row, delta.layer, shapes), block=block)


def _find(row: Linear, layer: str, shapes: Shapes) -> str:
    """The path of the linear from its layer, "" where the model has none."""
    return next((path for path in row.paths if f"{layer}.{path}.weight" in shapes), "")


def _width(row: Linear, layer: str, family: Family, shapes: Shapes) -> tuple[int, int]:
    """(in, out) of the linear, or of its part."""
    shape = shapes[f"{layer}.{_find(row, layer, shapes)}.weight"]
    into, out = shape if family.transposed else reversed(shape)
    return into, out // row.parts


def _numbered(delta: Delta, number: int) -> Delta:
    return delta if number == 1 else replace(delta, name=f"{delta.name}_{number}")
