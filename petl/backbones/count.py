"""Exact parameter counts of a design, from a `Backbone` alone: no weights, no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from petl.backbones.model import Backbone
from petl.backbones.plan import deltas, unfrozen
from petl.design import Design, Modification
from petl.forms import table
from petl.forms.prefix import STORED, reparameterisations
from petl.forms.vocabulary import Delta, Settings, Shapes
from petl.head import MODEL

# Denominators that the paper's percentages fit, where it printed any: (family, base) -> its size. It is
# BART-large's even for mBART; that model has 406.29 M, yet l = 200 at 3.6 % needs 409.6 M.
PAPER_BASE: Final[Mapping[tuple[str, int], int]] = {
    ("bart", 406_291_456): 409_600_000,
    ("mbart", 610_851_840): 409_600_000,
}


@dataclass(frozen=True)
class ModificationCounts:
    """The parameters of one modification of a design."""

    modification: Modification
    trained: int
    stored: int
    paper: int


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters, never mixed.

    `base`: the pretrained model without task head, tied weights once. `stored`: the adapter's own
    file, biases and norms included, the head not, and a prefix as its keys and values. `trained`: what
    has a gradient during training, with the head if it trains, and the prefix's MLP. `paper`: the
    convention of He et al. (ICLR 2022): matrices only, except for BitFit, (IA)³ and full fine-tuning,
    and `paper_base` the denominator of its percentages, `base` where it printed none. `head`: the task
    head, trained or not, and `trained_head` what of it trains. `parts`: the shares of the modifications,
    without the head.
    """

    base: int
    trained: int
    stored: int
    paper: int
    head: int
    trained_head: int
    paper_base: int
    parts: tuple[ModificationCounts, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, with the percentages and the share of each modification."""
        kinds = ("base", "trained", "stored", "paper", "paper_base", "head")
        percents = ("stored_percent", "trained_percent", "paper_percent")
        shares = [
            {
                "modification": part.modification.to_dict(),
                "trained": part.trained,
                "stored": part.stored,
                "paper": part.paper,
            }
            for part in self.parts
        ]
        return {name: getattr(self, name) for name in (*kinds, *percents)} | {"per_modification": shares}

    def values(self) -> dict[str, Any]:
        """Return what is known before training, by the fields of Measurements: see `Quantity.counted` there."""
        return {
            "stored_parameters": self.stored,
            "stored_percent": self.stored_percent,
            "trained_parameters": self.trained,
            "trained_percent": self.trained_percent,
            "paper_parameters": self.paper,
        }

    @property
    def stored_percent(self) -> float:
        return 100 * self.stored / self.base

    @property
    def trained_percent(self) -> float:
        return 100 * self.trained / self.base

    @property
    def paper_percent(self) -> float:
        return 100 * self.paper / self.paper_base


def stored_shapes(
    design: Design, backbone: Backbone, labels: int = 0, pooling: str = MODEL
) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor that an adapter file of `design` holds.

    With `labels` 0 the head is left out. Raises DesignError where `attach` would.
    """
    added = deltas(design, backbone.row, backbone.shapes)
    return _added_shapes(added) | _owned(design, backbone, _head_shapes(backbone, labels, pooling))


def count(design: Design, backbone: Backbone, labels: int = 0, pooling: str = MODEL) -> Counts:
    """Return the counts of `design` on `backbone` with a head for that many labels; with 0 the head counts 0.

    `pooling` is the head's, as `petl.head.Head` has it.

    Raises DesignError where `attach` would.
    """
    canonical = design.canonical(backbone.layout)
    added = deltas(canonical, backbone.row, backbone.shapes)
    head_shapes = _head_shapes(backbone, labels, pooling)
    owned = _owned(canonical, backbone, head_shapes)
    by_part: defaultdict[Settings, list[Delta]] = defaultdict(list)
    for delta in added:
        by_part[delta.modification].append(delta)
    parts = tuple(_part(m, by_part[m], owned) for m in canonical.modifications)
    base, head = _size(backbone.shapes.values()), _size(head_shapes.values())
    return Counts(
        base=base,
        trained=sum(part.trained for part in parts) + (head if design.head else 0),
        stored=sum(part.stored for part in parts),
        paper=sum(part.paper for part in parts),
        head=head,
        trained_head=head if design.head else 0,
        paper_base=PAPER_BASE.get((backbone.family, base), base),
        parts=parts,
    )


def _part(m: Modification, added: Sequence[Delta], owned: Shapes) -> ModificationCounts:
    if m.rule.owns:
        size = _size(owned.values())
        return ModificationCounts(m, size, size, size)
    stored, direct = _added_shapes(added), [delta for delta in added if not m.reparameterisation]
    mlps = [shape for mlp in reparameterisations(added) for shape in mlp.shapes().values()]
    # Beside its MLP, such a prefix may have a norm or a scale of its own.
    rest = {name: shape for name, shape in stored.items() if direct or name.rpartition(".")[2] not in STORED}
    return ModificationCounts(
        m,
        trained=_size(mlps) + _size(rest.values()),
        stored=_size(stored.values()),
        paper=_size(shape for shape in stored.values() if len(shape) > 1 or m.rule.counts_vectors),
    )


def _added_shapes(added: Iterable[Delta]) -> dict[str, tuple[int, ...]]:
    return {f"{delta.name}.{name}": shape for delta in added for name, shape in table.stored_shapes(delta).items()}


def _head_shapes(backbone: Backbone, labels: int, pooling: str) -> dict[str, tuple[int, ...]]:
    return backbone.head_shapes(labels, pooling) if labels else {}


def _owned(design: Design, backbone: Backbone, head: Shapes) -> dict[str, tuple[int, ...]]:
    whole = {**backbone.shapes, **head}
    return {name: whole[name] for name in unfrozen(design, backbone.row, backbone.shapes, head)}


def _size(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(map(prod, shapes))
