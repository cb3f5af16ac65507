"""Pre-norm models against twins in plain torch, from the formulas of the fixtures' README.

The files of mBART are kept apart: this stands in for them. A twin shares the frozen weights with the
model, has its own loop over the layers, and its own Δh.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import tiny
import torch
from designs import FIXTURES as DESIGNS
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from petl import presets
from petl.attach.attachment import attach
from petl.design import Design
from petl.presets import parse

TOLERANCE = 1e-10
EPS = 1e-5  # of an adapter's own norm
HEADS = 4


@dataclass(frozen=True)
class Spec:
    """What a design does, in the README's words. `ffn`: (place, s, where the norm is), s None where it is learned."""

    heads: str = ""
    attention: str = ""
    ffn: tuple[str, float | None, str] | None = None
    lora_attention: float = 0.0
    lora_ffn: float = 0.0


SPECS: Mapping[str, Spec] = {
    "prefix_concat": Spec(heads="concat"),
    "prefix_gated_explicit": Spec(heads="gated"),
    "prefix_gated_ln": Spec(heads="gated, normed"),
    "prefix_nogate": Spec(heads="added"),
    "prefix_nogate_ln": Spec(heads="added, normed"),
    "mh_parallel_adapter": Spec(heads="relu"),
    "attn_parallel": Spec(attention="parallel"),
    "attn_sequential": Spec(attention="sequential"),
    "ffn_sequential_ln_none": Spec(ffn=("sequential", 1, "none")),
    "ffn_sequential_ln_in": Spec(ffn=("sequential", 1, "in")),
    "ffn_sequential_s4_ln_none": Spec(ffn=("sequential", 4, "none")),
    "ffn_parallel_s1_ln_none": Spec(ffn=("parallel", 1, "none")),
    "ffn_parallel_s1_ln_in": Spec(ffn=("parallel", 1, "in")),
    "ffn_parallel_s4_ln_none": Spec(ffn=("parallel", 4, "none")),
    "ffn_parallel_s4_ln_in": Spec(ffn=("parallel", 4, "in")),
    "ffn_parallel_s4_ln_out": Spec(ffn=("parallel", 4, "out")),
    "ffn_parallel_learned_s_ln_none": Spec(ffn=("parallel", None, "none")),
    "ffn_pfeiffer_ln_none": Spec(ffn=("pfeiffer", 1, "none")),
    "ffn_pfeiffer_ln_in": Spec(ffn=("pfeiffer", 1, "in")),
    "lora_attn": Spec(lora_attention=2),
    "lora_ffn": Spec(lora_ffn=4),
    "lora_attn_ffn": Spec(lora_attention=2, lora_ffn=4),
    "prompt_tuning": Spec(),
    "bitfit": Spec(),
    "mam": Spec(heads="concat", ffn=("parallel", 4, "none")),
    "houlsby": Spec(attention="sequential", ffn=("sequential", 1, "none")),
    "attn_parallel_ffn_parallel": Spec(attention="parallel", ffn=("parallel", 1, "none")),
    "prefix_lora_ffn": Spec(heads="concat", lora_ffn=2),
}


@dataclass
class Twin:
    """`own` are the adapter's tensors by our names; `model` gives the frozen weights, by path."""

    model: PreTrainedModel
    spec: Spec
    own: Mapping[str, Tensor]

    def weight(self, name: str) -> Tensor:
        """A frozen tensor, or BitFit's in its place."""
        mine = self.own.get(name.removeprefix("model."))
        return self.model.get_parameter(name) if mine is None else mine

    def linear(self, path: str, x: Tensor) -> Tensor:
        return x @ self.weight(f"{path}.weight").T + self.weight(f"{path}.bias")

    def norm(self, path: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.weight(f"{path}.weight"), self.weight(f"{path}.bias"), eps)

    def bottleneck(self, site: str, z: Tensor, s: float | None, norm: str) -> Tensor:
        """A(z)."""
        t = {leaf: self.own.get(f"{site}.bottleneck.{leaf}") for leaf in ("norm.weight", "norm.bias", "scale")}
        if norm == "in":
            z = functional.layer_norm(z, z.shape[-1:], t["norm.weight"], t["norm.bias"], EPS)
        down, up = (
            (self.own[f"{site}.bottleneck.{leaf}.weight"], self.own[f"{site}.bottleneck.{leaf}.bias"])
            for leaf in ("down", "up")
        )
        change = torch.relu(z @ down[0].T + down[1]) @ up[0].T + up[1]
        change = change * (t["scale"] if s is None else s)
        if norm == "out":
            change = functional.layer_norm(change, change.shape[-1:], t["norm.weight"], t["norm.bias"], EPS)
        return change

    def low_rank(self, site: str, x: Tensor, factor: float) -> Tensor:
        if not factor:
            return torch.zeros((), dtype=x.dtype)
        return factor * (x @ self.own[f"{site}.low_rank.a"].T) @ self.own[f"{site}.low_rank.b"].T

    def prefix(self, site: str) -> tuple[Tensor, Tensor]:
        """(P_k, P_v), given or through the MLP."""
        stack, layer, kind, *_ = site.split(".")
        mlp = f"reparameterisation.{stack}_{kind}"
        if f"{mlp}.embedding" not in self.own:
            form = "multi_head" if self.spec.heads.startswith("relu") else "prefix"
            return self.own[f"{site}.heads.{form}.key"], self.own[f"{site}.heads.{form}.value"]
        e, w_in, b_in = (self.own[f"{mlp}.{leaf}"] for leaf in ("embedding", "hidden.weight", "hidden.bias"))
        layers = sum(name.startswith(f"{mlp}.out.") for name in self.own) // 2
        w_out, b_out = (
            torch.cat([self.own[f"{mlp}.out.{index}.{leaf}"] for index in range(layers)]) for leaf in ("weight", "bias")
        )
        z = (torch.tanh(e @ w_in.T + b_in) @ w_out.T + b_out).view(len(e), -1, 2, e.shape[1])
        return z[:, int(layer), 0], z[:, int(layer), 1]

    def at_heads(
        self,
        site: str,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        scale: float,
        normed: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """The heads' output with the spec's change, head by head. All (batch, heads, tokens, width)."""
        heads = []
        repeats = q.shape[1] // k.shape[1]
        width = q.shape[-1]
        for i in range(q.shape[1]):
            group = i // repeats
            q_i, k_i, v_i = q[:, i], k[:, group], v[:, group]
            scores = q_i @ k_i.mT * scale + mask
            plain = scores.softmax(-1) @ v_i
            if not self.spec.heads:
                heads.append(plain)
                continue
            p_k, p_v = (p[:, group * width : (group + 1) * width] for p in self.prefix(site))
            q_own = normed()[:, i] if normed and "normed" in self.spec.heads else q_i
            own_scores = q_own @ p_k.T * scale
            own = own_scores.softmax(-1) @ p_v
            match self.spec.heads.partition(",")[0]:
                case "concat":
                    values = torch.cat((p_v.expand(len(v_i), -1, -1), v_i), 1)
                    heads.append(torch.cat((own_scores, scores), -1).softmax(-1) @ values)
                case "gated":
                    mine, theirs = own_scores.exp().sum(-1, keepdim=True), scores.exp().sum(-1, keepdim=True)
                    share = mine / (mine + theirs)
                    heads.append((1 - share) * plain + share * own)
                case "added":
                    heads.append(plain + own)
                case "relu":
                    heads.append(plain + torch.relu(own_scores) @ p_v)
        return torch.cat(heads, -1)

    def feed_forward(self, site: str, x: Tensor, f: Tensor) -> Tensor:
        """The layer's output from the residual stream x and the sub-layer's output f."""
        if self.spec.ffn is None:
            return x + f
        place, s, norm = self.spec.ffn
        read = {"sequential": f, "parallel": x, "pfeiffer": x + f}[place]
        return x + f + self.bottleneck(site, read, s, norm)


def split(x: Tensor, heads: int) -> Tensor:
    return torch.stack(x.chunk(heads, -1), 1)


def causal(tokens: int) -> Tensor:
    return torch.full((tokens, tokens), -math.inf, dtype=torch.float64).triu(1)


def visible(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask == 0, -math.inf)[:, None]


def mbart(twin: Twin, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits."""
    spec, width = twin.spec, twin.model.config.d_model

    def attention(path: str, site: str, x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        """x is the normalised query-side input."""
        q = twin.linear(f"{path}.q_proj", x) + twin.low_rank(f"{site}.query", x, spec.lora_attention)
        k = twin.linear(f"{path}.k_proj", source)
        v = twin.linear(f"{path}.v_proj", source) + twin.low_rank(f"{site}.value", source, spec.lora_attention)

        def normed() -> Tensor:
            name = f"{site}.heads.prefix.norm"
            x_a = functional.layer_norm(x, x.shape[-1:], twin.own[f"{name}.weight"], twin.own[f"{name}.bias"], EPS)
            return split(twin.linear(f"{path}.q_proj", x_a), HEADS)

        scale = 1 / math.sqrt(width / HEADS)
        heads = twin.at_heads(site, *(split(part, HEADS) for part in (q, k, v)), mask, scale, normed)
        if spec.attention == "parallel":
            heads = heads + twin.bottleneck(f"{site}.attention", x, 1, "in")
        out = twin.linear(f"{path}.out_proj", heads)
        return out + twin.bottleneck(f"{site}.attention", out, 1, "in") if spec.attention == "sequential" else out

    def embedded(stack: str, ids: Tensor) -> Tensor:
        words = twin.weight("model.shared.weight")[ids] * math.sqrt(width)
        rows = words + twin.weight(f"model.{stack}.embed_positions.weight")[2 : 2 + ids.shape[1]]
        if stack == "encoder" and "encoder.prompt.weight" in twin.own:
            rows = torch.cat((twin.own["encoder.prompt.weight"].expand(len(ids), -1, -1), rows), 1)
        return twin.norm(f"model.{stack}.layernorm_embedding", rows)

    def stack(name: str, h: Tensor, mask: Tensor, source: Tensor | None, source_mask: Tensor) -> Tensor:
        for number in range(len(twin.model.get_submodule(f"model.{name}.layers"))):
            path, site = f"model.{name}.layers.{number}", f"{name}.{number}"
            x = twin.norm(f"{path}.self_attn_layer_norm", h)
            h = h + attention(f"{path}.self_attn", f"{site}.self", x, x, mask)
            if source is not None:
                x = twin.norm(f"{path}.encoder_attn_layer_norm", h)
                h = h + attention(f"{path}.encoder_attn", f"{site}.cross", x, source, source_mask)
            u = twin.norm(f"{path}.final_layer_norm", h)
            z = twin.linear(f"{path}.fc1", u) + twin.low_rank(f"{site}.ffn_up", u, spec.lora_ffn)
            z = 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))
            f = twin.linear(f"{path}.fc2", z) + twin.low_rank(f"{site}.ffn_down", z, spec.lora_ffn)
            h = twin.feed_forward(f"{site}.ffn", h, f)
        return twin.norm(f"model.{name}.layer_norm", h)

    h = embedded("encoder", inputs["input_ids"])
    mask = functional.pad(inputs["attention_mask"], (h.shape[1] - inputs["attention_mask"].shape[1], 0), value=1)
    source = stack("encoder", h, visible(mask), None, mask)
    ids = inputs["decoder_input_ids"]
    h = stack("decoder", embedded("decoder", ids), causal(ids.shape[1]), source, visible(mask))
    return h @ twin.weight("model.shared.weight").T + twin.model.get_buffer("final_logits_bias")


def check(
    model: PreTrainedModel, design: Design, twin: Callable[[dict[str, Tensor]], Tensor], **inputs: Tensor
) -> None:
    """Logits and the gradients of a random function of them."""
    generator = torch.Generator().manual_seed(3)
    with attach(model, replace(design, head=False)) as attachment:
        parameters = dict(attachment.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                one = 1.0 if name.endswith(("norm.weight", "scale")) else 0.0
                parameter.normal_(one, 0.3, generator=generator)
        own = {name: parameter.detach().clone().requires_grad_() for name, parameter in parameters.items()}
        ours = model(**inputs).logits
        probe = torch.empty_like(ours).normal_(generator=generator)
        found = torch.autograd.grad((ours * probe).sum(), list(parameters.values()))
    plain = model(**inputs).logits
    theirs = twin(own)
    expected = torch.autograd.grad((theirs * probe).sum(), list(own.values()))
    assert float((ours - plain).detach().abs().max()) > 1e-3
    assert float((ours - theirs).detach().abs().max()) < TOLERANCE * max(1, float(theirs.detach().abs().max()))
    largest = max(float(gradient.abs().max()) for gradient in expected)
    assert largest > 0
    for name, one, other in zip(own, found, expected, strict=True):
        assert float((one - other).abs().max()) < TOLERANCE * largest, name


@pytest.fixture(scope="module")
def frozen() -> PreTrainedModel:
    model = tiny.model("mbart", generates=True).double()
    with torch.no_grad():
        model.get_buffer("final_logits_bias").normal_(generator=torch.Generator().manual_seed(2))
        model.get_parameter("model.shared.weight")[model.config.pad_token_id] = 0  # as in a pretrained model
    return model


def decoding() -> dict[str, Tensor]:
    return {**tiny.batch(), "decoder_input_ids": torch.tensor([[2, 11, 1, 13, 14], [2, 1, 1, 7, 8], [3, 4, 5, 6, 7]])}


def test_every_design_of_the_fixtures_has_a_twin() -> None:
    assert set(SPECS) == set(DESIGNS)
    assert len(SPECS) == 28


@pytest.mark.parametrize("name", [*SPECS, "prefix_concat through its MLP"])
def test_mbart(frozen: PreTrainedModel, name: str) -> None:
    spec = SPECS[name.partition(" ")[0]]
    design = presets.prefix(5, 11) if "MLP" in name else DESIGNS[name]
    inputs = decoding()
    check(frozen, design, lambda own: mbart(Twin(frozen, spec, own), inputs), **inputs)


def test_mbarts_bitfit_takes_every_bias(frozen: PreTrainedModel) -> None:
    names = {name for name, _ in frozen.named_parameters() if "bias" in name}
    with attach(frozen, replace(presets.bitfit(), head=False)) as attachment:
        assert {f"model.{name}" for name, _ in attachment.named_parameters()} == names
        # An attention has 4 and a norm, the FFN 2 and a norm; each stack a norm of its embeddings and a last one.
        assert len(names) == 3 * (4 + 1 + 2 + 1) + 2 * (2 * 5 + 3) + 4


# -- decoder-only models and t5


def gpt2(twin: Twin, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits."""
    model, ids = twin.model, inputs["input_ids"]
    mask = visible(inputs["attention_mask"]) + causal(ids.shape[1])

    def linear(path: str, x: Tensor) -> Tensor:
        return x @ twin.weight(f"{path}.weight") + twin.weight(f"{path}.bias")  # stored as (in, out)

    h = twin.weight("transformer.wte.weight")[ids] + twin.weight("transformer.wpe.weight")[: ids.shape[1]]
    for number in range(3):
        path, site = f"transformer.h.{number}", f"decoder.{number}"
        x = twin.norm(f"{path}.ln_1", h)
        q, k, v = linear(f"{path}.attn.c_attn", x).chunk(3, -1)
        heads = twin.at_heads(f"{site}.self", *(split(part, HEADS) for part in (q, k, v)), mask, 8**-0.5)
        out = linear(f"{path}.attn.c_proj", heads)
        if twin.spec.attention == "sequential":
            out = out + twin.bottleneck(f"{site}.self.attention", out, 1, "in")
        h = h + out
        z = linear(f"{path}.mlp.c_fc", twin.norm(f"{path}.ln_2", h))
        z = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        h = twin.feed_forward(f"{site}.ffn", h, linear(f"{path}.mlp.c_proj", z))
    assert model.config.tie_word_embeddings
    return twin.norm("transformer.ln_f", h) @ twin.weight("transformer.wte.weight").T


def llama(twin: Twin, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits. The norms and rotations, which are computed in float32, are the model's own."""
    model: Any = twin.model
    ids = inputs["input_ids"]
    mask = visible(inputs["attention_mask"]) + causal(ids.shape[1])
    h = twin.weight("model.embed_tokens.weight")[ids]
    cos, sin = model.model.rotary_emb(h, torch.arange(ids.shape[1])[None])

    def rotated(x: Tensor) -> Tensor:
        one, other = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat((-other, one), -1) * sin[:, None]

    for number, layer in enumerate(model.model.layers):
        site = f"decoder.{number}"
        x = layer.input_layernorm(h)
        q, k, v = (x @ layer.self_attn.get_parameter(f"{name}_proj.weight").T for name in "qkv")
        q, k, v = rotated(split(q, HEADS)), rotated(split(k, 2)), split(v, 2)
        out = twin.at_heads(f"{site}.self", q, k, v, mask, 8**-0.5) @ layer.self_attn.o_proj.weight.T
        if twin.spec.attention == "sequential":
            out = out + twin.bottleneck(f"{site}.self.attention", out, 1, "in")
        h = h + out
        u = layer.post_attention_layernorm(h)
        gate, up = u @ layer.mlp.gate_proj.weight.T, u @ layer.mlp.up_proj.weight.T
        h = twin.feed_forward(f"{site}.ffn", h, (gate * torch.sigmoid(gate) * up) @ layer.mlp.down_proj.weight.T)
    return model.model.norm(h) @ model.lm_head.weight.T


def t5(twin: Twin, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits. Norms, which are computed in float32, and position biases are the model's own."""
    model: Any = twin.model

    def attention(module: Any, site: str, x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        q, k, v = x @ module.q.weight.T, source @ module.k.weight.T, source @ module.v.weight.T
        heads = []
        for i in range(HEADS):  # the position bias differs by head
            one = mask[:, i] if mask.ndim == 4 else mask
            parts = (split(part, HEADS)[:, i : i + 1] for part in (q, k, v))
            heads.append(Twin.at_heads(Head(twin, i), site, *parts, one, 1.0))
        out = torch.cat(heads, -1) @ module.o.weight.T
        if twin.spec.attention == "sequential":
            out = out + twin.bottleneck(f"{site}.attention", out, 1, "in")
        return out

    def stack(name: str, ids: Tensor, mask: Tensor, source: Tensor | None, source_mask: Tensor) -> Tensor:
        blocks = model.get_submodule(f"{name}.block")
        bias = blocks[0].layer[0].SelfAttention.compute_bias(ids.shape[1], ids.shape[1])
        mask = mask.expand(-1, ids.shape[1], -1)[:, None] + bias
        h = model.shared.weight[ids]
        for number, block in enumerate(blocks):
            site = f"{name}.{number}"
            x = block.layer[0].layer_norm(h)
            h = h + attention(block.layer[0].SelfAttention, f"{site}.self", x, x, mask)
            if source is not None:
                x = block.layer[1].layer_norm(h)
                h = h + attention(block.layer[1].EncDecAttention, f"{site}.cross", x, source, source_mask)
            last = block.layer[-1]
            z = torch.relu(last.layer_norm(h) @ last.DenseReluDense.wi.weight.T)
            h = twin.feed_forward(f"{site}.ffn", h, z @ last.DenseReluDense.wo.weight.T)
        return model.get_submodule(name).final_layer_norm(h)

    mask, ids = visible(inputs["attention_mask"]), inputs["decoder_input_ids"]
    source = stack("encoder", inputs["input_ids"], mask, None, mask)
    h = stack("decoder", ids, causal(ids.shape[1])[None], source, mask)
    assert model.config.tie_word_embeddings
    return h * model.config.d_model**-0.5 @ model.shared.weight.T


class Head(Twin):
    """One head of a twin, whose prefix is that block."""

    def __init__(self, twin: Twin, number: int) -> None:
        super().__init__(twin.model, twin.spec, twin.own)
        self.number = number

    def prefix(self, site: str) -> tuple[Tensor, Tensor]:
        p_k, p_v = super().prefix(site)
        return p_k.chunk(HEADS, -1)[self.number], p_v.chunk(HEADS, -1)[self.number]


OTHERS = {
    "mam:length=5,size=7": SPECS["mam"],
    "houlsby:size=7": SPECS["houlsby"],
    "multihead_parallel:size=5": SPECS["mh_parallel_adapter"],
    "pfeiffer:size=7": SPECS["ffn_pfeiffer_ln_none"],
}


@pytest.mark.parametrize("text", OTHERS)
@pytest.mark.parametrize("twin", [gpt2, llama, t5], ids=lambda twin: twin.__name__)
def test_other_families(twin: Callable[..., Tensor], text: str) -> None:
    model = tiny.model(twin.__name__, generates=True).double()
    inputs = decoding() if model.config.is_encoder_decoder else tiny.batch()
    check(model, parse(text), lambda own: twin(Twin(model, OTHERS[text], own), inputs), **inputs)
