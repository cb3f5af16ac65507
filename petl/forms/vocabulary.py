"""The words in which one Δh is written down, and the records that a functional form computes from.

He et al. (ICLR 2022, section 3.2) describe a Δh by its functional form, the representation that it modifies (here a
site), where it is inserted, and how it is composed with that representation. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


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


SCALED: Final = (Composition.ADD, Composition.SCALE, Composition.LEARNED_SCALE)


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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The fields of a `petl.design.Modification`, which checks them.

    `size` is the bottleneck width or rank r, or the number l of prefix or prompt vectors; 0 for the
    forms that have none. `scale` is s; where s is learned, its first value. `layers` is "all", "top K"
    (the K layers nearest the output) or a list like "0,2,5"; `stacks` "all", "encoder" or "decoder";
    `attentions` "all", "self" or "cross". `reparameterisation` is the width of the prefix MLP, 0 for
    direct keys and values.
    """

    form: str
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


# Those that say where in the model a modification is; the sites of the FFN have no `attentions`.
LOCATIONS: Final = ("layers", "stacks", "attentions")


@dataclass(frozen=True)
class Block:
    """Where a delta's change lies in the output of a fused linear: `start`, `width`, of `total`."""

    start: int
    width: int
    total: int


@dataclass(frozen=True)
class Delta:
    """One Δh at one place of one layer.

    `stack` and `attention` name the rows of the family that it is in: `attention` is "" in the feed-forward
    sub-layer. `layer` is the path of the layer from the base model, "" for a prompt. `linear` is the path, from
    the layer, of the linear at the place: the one that the site names, an attention's output
    projection, for a form at the heads the query; `block` is its part where it is fused. `reads` and
    `adds` are the widths of what Δh reads and of what it is added to (for the forms at the heads,
    those of the keys and the values), `normed` that of its layer norm.
    """

    name: str
    modification: Settings
    stack: str = ""
    layer: str = ""
    attention: str = ""
    reads: int = 0
    adds: int = 0
    normed: int = 0
    linear: str = ""
    block: Block | None = None

    @property
    def place(self) -> str:
        """Return the name without its form, such as `encoder.0.self.query`."""
        return self.name.rpartition(".")[0]

    @property
    def rows(self) -> slice:
        """Return the rows of the linear's output that it changes."""
        return slice(None) if self.block is None else slice(self.block.start, self.block.start + self.block.width)

    @property
    def total(self) -> int:
        """Return the width of the whole linear's output."""
        return self.adds if self.block is None else self.block.total
