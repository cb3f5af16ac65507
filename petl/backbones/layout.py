"""The stacks of a model, and the linears in them that a design may change."""

from __future__ import annotations

import re
from typing import Final

from petl.backbones.families import Family, LinearRow
from petl.design import LINEARS, Layout, Site, StackShape
from petl.forms.vocabulary import Shapes

_TABLES: Final = ("position_embeddings.weight", "embed_positions.weight", "wpe.weight")


def layout(family: Family, shapes: Shapes) -> Layout:
    """Return the stacks and attentions that a model with these parameters has."""
    stacks = {}
    for stack in family.stacks:
        pattern = re.compile(rf"{re.escape(stack.layers)}\.(\d+)\.")
        numbers = [int(match[1]) for name in shapes if (match := pattern.match(name))]
        if numbers:
            first = f"{stack.layers}.0"
            kinds = [kind for kind, row in stack.attentions.items() if full_name(row.query, first, shapes)]
            stacks[stack.name] = StackShape(1 + max(numbers), tuple(kinds))
    return stacks


def reserved(family: Family, padding: int | None) -> int:
    """Return how many rows of the position table are not for tokens: those up to the padding's, where it has one."""
    return family.reserved if padding is None or not family.counts_tokens else padding + 1


def most_tokens(family: Family, shapes: Shapes, padding: int | None) -> int | None:
    """Return the longest input that has positions; None where they are not a table."""
    tables = [shape for name, shape in shapes.items() if name.endswith(_TABLES)]
    return tables[0][0] - reserved(family, padding) if tables else None


def linears(family: Family, shapes: Shapes) -> tuple[Site, ...]:
    """Return the linears that a model with these parameters has, in the order of LINEARS."""
    stack = family.stacks[0]
    rows = {**stack.ffn.linears, **next(iter(stack.attentions.values())).linears}
    return tuple(site for site in LINEARS if full_name(rows[site], f"{stack.layers}.0", shapes))


def full_name(row: LinearRow, layer: str, shapes: Shapes) -> str:
    """Return the path of the linear from its layer, "" where the model has none."""
    return next((path for path in row.paths if f"{layer}.{path}.weight" in shapes), "")
