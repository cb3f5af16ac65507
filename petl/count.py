"""Exact parameter counts of a design, from a `Backbone` alone: no weights, no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from petl.backbones import Backbone
from petl.design import Design
from petl.plan import deltas, unfrozen


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters, never mixed.

    `base`: the pretrained model without task head, tied weights once. `stored`: the adapter's own
    file, biases and norms included, the head not. `trained`: what has a gradient during training,
    with the head if it trains. `paper`: the convention of He et al. (ICLR 2022): matrices only,
    except for BitFit and full fine-tuning. `head`: the task head, trained or not. The percentages are of `base`.
    """

    base: int
    trained: int
    stored: int
    paper: int
    head: int

    @property
    def stored_percent(self) -> float:
        """`stored` in percent of `base`."""
        return 100 * self.stored / self.base

    @property
    def trained_percent(self) -> float:
        """`trained` in percent of `base`."""
        return 100 * self.trained / self.base

    @property
    def paper_percent(self) -> float:
        """`paper` in percent of `base`."""
        return 100 * self.paper / self.base


def stored_shapes(design: Design, backbone: Backbone, labels: int = 0) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that an adapter file of `design` holds.

    With `labels` 0 the head is left out. Raises DesignError where `attach` would.
    """
    own = {**backbone.shapes, **(backbone.head_shapes(labels) if labels else {})}
    return {
        f"{delta.name}.{name}": shape
        for delta in deltas(design, backbone.row, backbone.depth, backbone.shapes)
        for name, shape in delta.shapes().items()
    } | {name: own[name] for name in unfrozen(design, backbone.row, own)}


def count(design: Design, backbone: Backbone, labels: int = 0) -> Counts:
    """The counts of `design` on `backbone` with a head for that many labels; with 0 the head counts 0.

    Raises DesignError where `attach` would.
    """
    shapes = stored_shapes(design, backbone, labels)
    head = backbone.head_shapes(labels) if labels else {}
    stored = _size(shapes.values())
    rest_of_head = _size(shape for name, shape in head.items() if name not in shapes)
    whole = {**backbone.shapes, **head}
    return Counts(
        base=_size(backbone.shapes.values()),
        trained=stored + (rest_of_head if design.head else 0),
        stored=stored,
        paper=_size(shape for name, shape in shapes.items() if len(shape) > 1 or name in whole),
        head=_size(head.values()),
    )


def _size(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(map(prod, shapes))
