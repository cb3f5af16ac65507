"""What a design adds to a backbone: the list that `attach` builds and `count` counts.

One `Delta` is one Δh at one place of one layer. Its name is stable: stack, layer, attention, site and
form, such as `encoder.0.self.query.low_rank` or `encoder.0.ffn.bottleneck`; a second delta of the
same form at the same place is `bottleneck_2`, in the design's own order. Parameters are named from
the base model, so that it is the same whatever head is on it. No torch here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from petl.backbones.families import Attention, Family, FeedForward, LinearRow
from petl.backbones.layout import full_name, layout, most_tokens
from petl.design import LINEARS, Design, DesignError, Insertion, LayerNorm, Layout, Modification, Positions, Site
from petl.forms.table import Form, stored_shapes
from petl.forms.vocabulary import Block, Delta, Shapes

_BEYOND: Final = 16  # sides: on a small model people try the ranks of large ones


def deltas(design: Design, family: Family, shapes: Shapes) -> tuple[Delta, ...]:
    """Return every delta of `design` on a model whose base has parameters of these shapes.

    Raises DesignError for layers that are not there, for a modification that would change nothing,
    and for one that means nothing on this family.
    """
    stacks = layout(family, shapes)
    result: list[Delta] = []
    seen: Counter[str] = Counter()
    for m in design.canonical(stacks).modifications:
        if m.rule.owns:
            if not m.rule.owns(list(shapes), [], []):
                raise DesignError(f"this {family.name} model has no {m.rule.owned}: nothing to change for {m.form}")
            continue
        prompt = m.site is Site.INPUT
        if prompt and family.stacks[0].name not in stacks:
            raise DesignError(f"this {family.name} model has no {family.stacks[0].name}, which a prompt would enter")
        before = len(result)
        for delta in _prompt(m, family, shapes) if prompt else _in_layers(m, family, stacks, shapes):
            _require_fit(delta)
            seen[delta.name] += 1
            result.append(_numbered(delta, seen[delta.name]))
        _require_rank(m, result[before:])
        if len(result) == before:
            has = "; ".join(f"{name} with attentions {', '.join(s.attentions)}" for name, s in stacks.items())
            raise DesignError(f"nothing to change for {m.to_dict()}: this {family.name} model has {has}")
    return tuple(result)


def _require_fit(delta: Delta) -> None:
    """Raise DesignError for widths that the form cannot have."""
    try:
        stored_shapes(delta)
    except ValueError as error:
        raise DesignError(str(error)) from error


def _require_rank(m: Modification, added: Sequence[Delta]) -> None:
    """Raise DesignError for ranks far above all that a matrix can have."""
    if m.form is not Form.LOW_RANK or not added:
        return
    longest = max(max(delta.reads, delta.adds) for delta in added)
    if m.size > _BEYOND * longest:
        raise DesignError(
            f"a rank beyond the sides of a matrix adds nothing: the longest side here is {longest:,}; received rank "
            f"{m.size:,}"
        )


def unfrozen(design: Design, family: Family, base: Iterable[str], head: Iterable[str]) -> list[str]:
    """Return which of the model's own parameters belong to the adapter: BitFit's, or all.

    `base` are those of the pretrained model, `head` those of the task head, which trains by itself
    where the design says so.
    """
    names, frozen_head = list(base), [] if design.head else list(head)
    pooler = [name for name in names if family.in_pooler(name)]
    rules = [m.rule for m in design.modifications]
    return [name for rule in rules if rule.owns for name in rule.owns(names, pooler, frozen_head)]


def _prompt(m: Modification, family: Family, shapes: Shapes) -> Iterator[Delta]:
    if m.positions is Positions.SHIFTED and not family.input.entry:
        raise DesignError(
            f"{family.name} has relative positions, no table of them: prompts stand before the tokens, "
            "which nothing shifts; leave positions at kept"
        )
    most = most_tokens(family, shapes, None)
    if most is not None and m.size >= most:
        raise DesignError(f"a prompt is shorter than the model's {most} positions; received length {m.size}")
    stack = family.stacks[0]
    width = _width(stack.ffn.down, f"{stack.layers}.0", family, shapes)[1]
    yield Delta(f"{stack.name}.{m.form}", m, stack.name, adds=width)


def _in_layers(m: Modification, family: Family, stacks: Layout, shapes: Shapes) -> Iterator[Delta]:
    rows = {stack.name: stack for stack in family.stacks}
    for name, index, kind in m.covers(stacks):
        stack = rows[name]
        place = ".".join(filter(None, (name, str(index), kind, m.site, m.form)))
        delta = Delta(place, m, name, f"{stack.layers}.{index}", kind)
        attention = stack.attentions[kind] if kind else None
        if m.site in LINEARS or m.site is Site.FFN_HIDDEN:
            yield from _at_linear(delta, (attention or stack.ffn).linears[m.site], family, shapes)
        else:
            yield _at_sub_layer(delta, attention or stack.ffn, family, shapes)


def _at_linear(delta: Delta, row: LinearRow, family: Family, shapes: Shapes) -> Iterator[Delta]:
    if not full_name(row, delta.layer, shapes):
        return  # no gate in this FFN
    delta = _located(delta, row, family, shapes)
    into, out = _width(row, delta.layer, family, shapes)
    if delta.modification.site is Site.FFN_HIDDEN:
        yield replace(delta, reads=into, adds=into, block=None)
    else:
        yield replace(delta, reads=into, adds=out)


def _at_sub_layer(delta: Delta, sub_layer: Attention | FeedForward, family: Family, shapes: Shapes) -> Delta:
    m = delta.modification

    def width(row: LinearRow) -> tuple[int, int]:
        return _width(row, delta.layer, family, shapes)

    if isinstance(sub_layer, FeedForward):
        reads = adds = width(sub_layer.down)[1]
    elif m.site is Site.HEADS:
        if sub_layer.rotary and m.layer_norm is not LayerNorm.NONE:
            raise DesignError(
                f"{family.name} rotates its queries after their linear, so {m.form} has no layer norm on the way to "
                f"them; received layer_norm {m.layer_norm}"
            )
        delta = _located(delta, sub_layer.query, family, shapes)
        reads, adds = width(sub_layer.key)[1], width(sub_layer.value)[1]
        return replace(delta, reads=reads, adds=adds, normed=width(sub_layer.query)[0])
    else:
        delta = _located(delta, sub_layer.out, family, shapes)
        into, out = width(sub_layer.out)
        reads, adds = (width(sub_layer.query)[0], into) if m.insertion is Insertion.PARALLEL else (out, out)
    return replace(delta, reads=reads, adds=adds, normed=reads if m.layer_norm is LayerNorm.IN else adds)


def _located(delta: Delta, row: LinearRow, family: Family, shapes: Shapes) -> Delta:
    out = _width(row, delta.layer, family, shapes)[1]
    block = Block(row.part * out, out, row.parts * out) if row.parts > 1 else None
    return replace(delta, linear=full_name(row, delta.layer, shapes), block=block)


def _width(row: LinearRow, layer: str, family: Family, shapes: Shapes) -> tuple[int, int]:
    """Return (in, out) of the linear, or of its part."""
    shape = shapes[f"{layer}.{full_name(row, layer, shapes)}.weight"]
    into, out = shape if family.transposed else reversed(shape)
    return into, out // row.parts


def _numbered(delta: Delta, number: int) -> Delta:
    return delta if number == 1 else replace(delta, name=f"{delta.name}_{number}")
