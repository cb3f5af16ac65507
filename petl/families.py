"""Where the sites of a design live in the Hugging Face module trees: one row per family.

A new family is one row of `FAMILIES` and one tiny configuration in `tests/tiny.py`; the contract
tests run over both tables. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from petl.design import Site


@dataclass(frozen=True)
class Attention:
    """One attention sub-layer. All paths start at its layer.

    `module` calls the attention function; the others are linears. The query's input is the
    query-side input of the sub-layer, the input of `out` the concatenated heads.
    """

    module: str
    query: str
    key: str
    value: str
    out: str

    def linear(self, site: Site) -> str:
        """The path of the linear at `site`: query, key, value or attention_out."""
        return {Site.QUERY: self.query, Site.KEY: self.key, Site.VALUE: self.value, Site.ATTENTION_OUT: self.out}[site]


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward sub-layer. All paths start at its layer.

    `stream` is the module whose input is the residual stream that enters the sub-layer (the norm in
    pre-norm families); `end` is the one whose output is the sub-layer's, after dropout and before
    the residual.
    """

    up: str
    down: str
    stream: str
    end: str

    def linear(self, site: Site) -> str:
        """The path of the linear at `site`: ffn_up or ffn_down."""
        return {Site.FFN_UP: self.up, Site.FFN_DOWN: self.down}[site]


@dataclass(frozen=True)
class Stack:
    """A pile of equal layers. `layers` is the path of their list from the base model."""

    name: str
    layers: str
    ffn: FeedForward
    attentions: Mapping[str, Attention] = field(hash=False)


@dataclass(frozen=True)
class Family:
    """One row. `base` is the attribute that holds the pretrained model; what lies outside it is the task head.

    `pooler`, a path from the base model, is pretrained but belongs to the head's side: it trains
    under full fine-tuning only. `reserved` rows of the position table are not for tokens.
    `ffn_width` names the configuration's field.
    """

    name: str
    base: str
    stacks: tuple[Stack, ...]
    pooler: str = ""
    reserved: int = 0
    ffn_width: str = "intermediate_size"

    def in_base(self, name: str) -> bool:
        """Whether the parameter of that full name is part of the pretrained model without task head."""
        return name.startswith(f"{self.base}.")

    def in_pooler(self, name: str) -> bool:
        """Whether the parameter of that full name is the pooler's."""
        return bool(self.pooler) and name.startswith(f"{self.base}.{self.pooler}.")


_BERT_ENCODER: Final = Stack(
    name="encoder",
    layers="encoder.layer",
    ffn=FeedForward(up="intermediate.dense", down="output.dense", stream="intermediate", end="output.dropout"),
    attentions={
        "self": Attention(
            module="attention.self",
            query="attention.self.query",
            key="attention.self.key",
            value="attention.self.value",
            out="attention.output.dense",
        )
    },
)

FAMILIES: Final[Mapping[str, Family]] = {
    family.name: family
    for family in (
        Family("bert", base="bert", stacks=(_BERT_ENCODER,), pooler="pooler"),
        Family("roberta", base="roberta", stacks=(_BERT_ENCODER,), reserved=2),
    )
}
