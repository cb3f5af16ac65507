"""Where the sites of a design live in the Hugging Face module trees: one row per family.

A new family is one row of `FAMILIES` and one tiny configuration in `tests/helpers/tiny.py`; the contract
tests run over both tables. A row lists all that a family may have: what a model lacks (a gated FFN,
a decoder) is found out from its parameters. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from petl.backbones.locate import BackboneError
from petl.forms.vocabulary import Delta, Site

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LinearRow:
    """A linear of a layer: the first of `paths`, from the layer, that the model has.

    With `parts` above 1 it is the `part`-th of that many equal blocks of a fused linear's output.
    """

    paths: tuple[str, ...]
    part: int = 0
    parts: int = 1


def _linear(*paths: str) -> LinearRow:
    return LinearRow(paths)


@dataclass(frozen=True)
class Attention:
    """One attention sub-layer. All paths start at its layer.

    `module` calls the attention function, and its first argument is the query-side input of the
    sub-layer; the input of `out` is the concatenated heads. `rotary`: queries and keys are rotated
    by their position after their linears.
    """

    module: str
    query: LinearRow
    key: LinearRow
    value: LinearRow
    out: LinearRow
    rotary: bool = False

    @property
    def linears(self) -> Mapping[Site, LinearRow]:
        """Return the linears that a design can name."""
        return {Site.QUERY: self.query, Site.KEY: self.key, Site.VALUE: self.value, Site.ATTENTION_OUT: self.out}


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward sub-layer. All paths start at its layer, which is "".

    `stream` is the module whose input is the residual stream that enters the sub-layer (its norm in
    pre-norm families). `end` is the one whose output is the sub-layer's, after dropout and before the
    residual; "" where that dropout is a function call. `total` is where the residual sum shows: the
    input of that module, the layer's last norm, in post-norm families, its output in pre-norm ones.
    """

    up: LinearRow
    down: LinearRow
    stream: str
    end: str
    total: str
    post_norm: bool
    gate: LinearRow = LinearRow(())

    @property
    def linears(self) -> Mapping[Site, LinearRow]:
        """Return the linears that a design can name; the activations are the input of `down`."""
        return {
            Site.FFN_UP: self.up,
            Site.FFN_GATE: self.gate,
            Site.FFN_HIDDEN: self.down,
            Site.FFN_DOWN: self.down,
        }


@dataclass(frozen=True)
class Stack:
    """A pile of equal layers. `layers` is the path of their list from the base model."""

    name: str
    layers: str
    ffn: FeedForward
    attentions: Mapping[str, Attention] = field(hash=False)


@dataclass(frozen=True)
class Input:
    """Where the embedded input enters. Paths start at the base model, which is "".

    `module` takes the token ids and the mask. `entry` is the module that reads the sum of token and
    position embeddings, "" where there is no table of positions; `table` is that table, where
    `module` does not take position_ids. The rows of a prompt are cut off again behind `leave`, where
    something in `module` reads its output, and behind `module`; but where the model has the `decoder`,
    they stay, since that attends to them.
    """

    module: str
    entry: str = ""
    table: str = ""
    leave: str = ""
    decoder: str = ""


@dataclass(frozen=True)
class Family:
    """One row, named as `config.model_type` is.

    `pooler`, a path from the base model, is pretrained but belongs to the head's side: it trains
    under full fine-tuning only. `reserved` rows of the position table are not for tokens; where
    `counts_tokens`, positions count the tokens that are no padding. `transposed`: the weights of
    linears are (in, out).
    """

    name: str
    stacks: tuple[Stack, ...]
    input: Input
    pooler: str = ""
    reserved: int = 0
    counts_tokens: bool = False
    transposed: bool = False

    @property
    def encodes(self) -> bool:
        """Return whether it has an encoder: the others are decoders alone, whose head reads the last token."""
        return self.stacks[0].name == "encoder"

    def stack(self, name: str) -> Stack:
        """Return the stack of that name."""
        return next(stack for stack in self.stacks if stack.name == name)

    def attention(self, delta: Delta) -> Attention:
        """Return the row of the attention that a delta is in."""
        return self.stack(delta.stack).attentions[delta.attention]

    def in_pooler(self, name: str) -> bool:
        """Return whether the parameter, named from the base model, is the pooler's."""
        return bool(self.pooler) and name.startswith(f"{self.pooler}.")


_BERT: Final = Stack(
    name="encoder",
    layers="encoder.layer",
    ffn=FeedForward(
        up=_linear("intermediate.dense"),
        down=_linear("output.dense"),
        stream="intermediate",
        end="output.dropout",
        total="output.LayerNorm",
        post_norm=True,
    ),
    attentions={
        "self": Attention(
            module="attention.self",
            query=_linear("attention.self.query"),
            key=_linear("attention.self.key"),
            value=_linear("attention.self.value"),
            out=_linear("attention.output.dense"),
        )
    },
)
_BERT_INPUT: Final = Input(module="", entry="embeddings.LayerNorm", leave="encoder")

_DISTILBERT: Final = Stack(
    name="encoder",
    layers="transformer.layer",
    ffn=FeedForward(
        up=_linear("ffn.lin1"),
        down=_linear("ffn.lin2"),
        stream="ffn",
        end="ffn",
        total="output_layer_norm",
        post_norm=True,
    ),
    attentions={
        "self": Attention(
            module="attention",
            query=_linear("attention.q_lin"),
            key=_linear("attention.k_lin"),
            value=_linear("attention.v_lin"),
            out=_linear("attention.out_lin"),
        )
    },
)


def _projections(module: str, out: str, rotary: bool = False) -> Attention:
    query, key, value = (_linear(f"{module}.{name}_proj") for name in "qkv")
    return Attention(module, query, key, value, _linear(f"{module}.{out}"), rotary)


def _bart(*, post_norm: bool) -> tuple[Stack, Stack]:
    ffn = FeedForward(
        up=_linear("fc1"),
        down=_linear("fc2"),
        stream="fc1" if post_norm else "final_layer_norm",
        end="",
        total="final_layer_norm" if post_norm else "",
        post_norm=post_norm,
    )
    encoder = {"self": _projections("self_attn", "out_proj")}
    decoder = encoder | {"cross": _projections("encoder_attn", "out_proj")}
    return Stack("encoder", "encoder.layers", ffn, encoder), Stack("decoder", "decoder.layers", ffn, decoder)


_BART_INPUT: Final = Input(
    module="encoder",
    entry="encoder.layernorm_embedding",
    table="encoder.embed_positions",
    decoder="decoder",
)


def _t5(name: str, attentions: Mapping[str, str]) -> Stack:
    last = f"layer.{len(attentions)}"  # the FFN comes after the attentions
    dense = f"{last}.DenseReluDense"
    return Stack(
        name,
        f"{name}.block",
        FeedForward(
            up=_linear(f"{dense}.wi", f"{dense}.wi_1"),
            gate=_linear(f"{dense}.wi_0"),
            down=_linear(f"{dense}.wo"),
            stream=last,
            end=f"{last}.dropout",
            total=last,
            post_norm=False,
        ),
        {
            kind: Attention(
                module,
                query=_linear(f"{module}.q"),
                key=_linear(f"{module}.k"),
                value=_linear(f"{module}.v"),
                out=_linear(f"{module}.o"),
            )
            for kind, module in attentions.items()
        },
    )


_T5_SELF: Final = {"self": "layer.0.SelfAttention"}

_GPT2: Final = Stack(
    name="decoder",
    layers="h",
    ffn=FeedForward(
        up=_linear("mlp.c_fc"), down=_linear("mlp.c_proj"), stream="ln_2", end="mlp", total="", post_norm=False
    ),
    attentions={
        "self": Attention(
            "attn",
            query=LinearRow(("attn.c_attn",), 0, 3),
            key=LinearRow(("attn.c_attn",), 1, 3),
            value=LinearRow(("attn.c_attn",), 2, 3),
            out=_linear("attn.c_proj"),
        )
    },
)

_LLAMA: Final = Family(
    "llama",
    stacks=(
        Stack(
            name="decoder",
            layers="layers",
            ffn=FeedForward(
                up=_linear("mlp.up_proj"),
                gate=_linear("mlp.gate_proj"),
                down=_linear("mlp.down_proj"),
                stream="post_attention_layernorm",
                end="mlp",
                total="",
                post_norm=False,
            ),
            attentions={"self": _projections("self_attn", "o_proj", rotary=True)},
        ),
    ),
    input=Input(module=""),
)

FAMILIES: Final[Mapping[str, Family]] = {
    family.name: family
    for family in (
        Family("bert", (_BERT,), _BERT_INPUT, pooler="pooler"),
        Family("roberta", (_BERT,), _BERT_INPUT, reserved=2, counts_tokens=True),
        Family("distilbert", (_DISTILBERT,), replace(_BERT_INPUT, leave="transformer")),
        Family("bart", _bart(post_norm=True), _BART_INPUT, reserved=2),
        Family("mbart", _bart(post_norm=False), _BART_INPUT, reserved=2),
        Family(
            "t5",
            (_t5("encoder", _T5_SELF), _t5("decoder", _T5_SELF | {"cross": "layer.1.EncDecAttention"})),
            Input(module="encoder", decoder="decoder"),
        ),
        Family("gpt2", (_GPT2,), Input(module="", entry="drop"), transposed=True),
        _LLAMA,
        replace(_LLAMA, name="qwen2"),
        replace(_LLAMA, name="qwen3"),
    )
}


def family_of(model: nn.Module) -> Family:
    """Return the row of a loaded model. Raises BackboneError where the table has none."""
    config = getattr(model, "config", None)
    return family_named(str(getattr(config, "model_type", type(model).__name__)))


def family_named(name: str) -> Family:
    if name not in FAMILIES:
        raise BackboneError(
            f"families supported: {', '.join(FAMILIES)}; received {name!r}: a family is one row of FAMILIES "
            "(petl/backbones/families.py) and one configuration in tests/helpers/tiny.py"
        )
    return FAMILIES[name]
