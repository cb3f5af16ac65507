"""Prefix: softmax(x W_q P_kᵀ) P_v, trained keys and values in front of the attention's own (Li and Liang, 2021).

A prefix may be trained through an MLP that all layers of a stack's attentions share; it is stored as its keys and
values either way.

PEFT's PREFIX_TUNING: prompt_embeddings (l, layers x 2 x key width): key and value of each layer in turn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

from petl.forms.exchange import PROMPT_EMBEDDINGS, Found, PeftLayout, Target, Tensors
from petl.forms.form import IN_LAYERS, FunctionalForm
from petl.forms.virtual import VIRTUAL_FIELDS, matrix, require_same, virtual_tokens
from petl.forms.vocabulary import SCALED, Composition, Delta, LayerNorm, Settings, Shapes, Site

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from petl.forms.modules import Heads

STORED: Final = ("key", "value")


def _shapes(delta: Delta) -> Shapes:
    size = delta.modification.size
    return {"key": (size, delta.reads), "value": (size, delta.adds)}


@dataclass(frozen=True)
class Reparameterisation:
    """One MLP through which the prefixes of all layers of one stack's attentions are trained.

    embedding E (l, width of a key) -> tanh(E W_in + b_in) W_out + b_out: key and value of a layer, with
    a W_out and b_out for each. Folded away for storage.
    """

    name: str
    deltas: tuple[Delta, ...]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name, without its own, -> shape of each tensor that trains."""
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


def reparameterisations(deltas: Iterable[Delta]) -> tuple[Reparameterisation, ...]:
    """Return the MLPs of those prefixes that are trained through one."""
    groups: dict[tuple[str, Settings], list[Delta]] = {}
    for delta in deltas:
        if delta.modification.reparameterisation:
            name = f"reparameterisation.{delta.stack}_{delta.attention}"
            groups.setdefault((name, delta.modification), []).append(delta)
    seen: Counter[str] = Counter()
    mlps = []
    for (name, _), group in groups.items():
        seen[name] += 1
        mlps.append(Reparameterisation(name if seen[name] == 1 else f"{name}_{seen[name]}", tuple(group)))
    return tuple(mlps)


@cache
def _class() -> type[Heads]:
    from petl.forms.modules import Heads

    class Prefix(Heads):
        """With an `mlp`, its keys and values are the `index`-th of that."""

        def __init__(self, delta: Delta, mlp: nn.Module | None = None, index: int = 0) -> None:
            super().__init__(delta, direct=mlp is None)
            self._mlp = (mlp, index)  # in a tuple, since the holder registers it, once for all layers

        def rows(self) -> tuple[Tensor, Tensor]:
            mlp, index = self._mlp
            return super().rows() if mlp is None else mlp(index)

        def weights(self, scores: Tensor) -> Tensor:
            return scores.softmax(-1)

        def reset(self, generator: torch.Generator) -> None:
            if self._mlp[0] is None:
                super().reset(generator)
            else:
                super(Heads, self).reset(generator)

    return Prefix


@cache
def _mlp_class() -> type[nn.Module]:
    import torch
    from torch import nn

    from petl.forms.modules import UndrawnLinear

    class PrefixMLP(nn.Module):
        """tanh(E W_in + b_in) W_out + b_out: (l, key width + value width) for each layer.

        W_out is one matrix in the paper; here each layer's block is a linear of its own, since the gradient of a slice
        is as large as the whole.
        """

        def __init__(self, plan: Reparameterisation) -> None:
            super().__init__()
            self.plan = plan
            shapes = plan.shapes()
            self.widths = (plan.deltas[0].reads, plan.deltas[0].adds)
            self.embedding = nn.Parameter(torch.empty(shapes["embedding"]))
            width, into = shapes["hidden.weight"]
            self.hidden = UndrawnLinear(into, width)
            self.out = nn.ModuleList(UndrawnLinear(width, sum(self.widths)) for _ in plan.deltas)

        def __reduce__(self) -> tuple[Any, ...]:
            return mlp, (self.plan,), self.__getstate__()  # type: ignore[no-untyped-call]

        def forward(self, index: int) -> tuple[Tensor, Tensor]:
            """Return (P_k, P_v) of the `index`-th layer covered."""
            key, value = self.out[index](torch.tanh(self.hidden(self.embedding))).split(self.widths, -1)
            return key, value

        def reset(self, generator: torch.Generator) -> None:
            """Draw PyTorch's own first values, as the paper's code does."""
            nn.init.normal_(self.embedding, generator=generator)
            for linear in (self.hidden, *cast(Iterable[nn.Linear], self.out)):
                nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5), generator=generator)
                bound = 1 / math.sqrt(linear.in_features)
                nn.init.uniform_(linear.bias, -bound, bound, generator=generator)

    return PrefixMLP


def module(delta: Delta, mlp: nn.Module | None = None, index: int = 0) -> Heads:
    """Build the module, without first values; its keys and values are the `index`-th of `mlp` where that is given."""
    return _class()(delta, mlp, index)  # type: ignore[call-arg, arg-type]


def mlp(plan: Reparameterisation) -> nn.Module:
    """Build the MLP, without first values."""
    return _mlp_class()(plan)


_SHIFTS: Final = (
    "PEFT puts a prefix into a decoder's cache, which shifts the tokens by its length, and only for rotary positions "
    "can the keys be turned with them"
)


def _faults(modifications: Sequence[Settings], target: Target) -> Iterator[str]:
    config = target.model.config
    if not target.rotary:
        yield f"{_SHIFTS}; received {target.family_name}"
        return
    if target.task not in ("CAUSAL_LM", "SEQ_CLS"):
        yield f"PEFT has prefixes for causal and classifying models; received {type(target.model).__name__}"
    if rotation := _changing_rotation(config):
        yield f"rotary frequencies of type {rotation} change with the length, and PEFT's prefix adds to it"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        yield "a sliding window moves past PEFT's prefix"
    for m in modifications:
        if m.composition is not Composition.GATE or m.layer_norm is not LayerNorm.NONE:
            yield "PEFT's prefixes are gated, without a layer norm"
    lengths: Counter[str] = Counter()
    for delta in target.deltas(*modifications):
        lengths[delta.layer] += delta.modification.size
    if len(lengths) < target.depth or len(set(lengths.values())) > 1:
        yield f"PEFT's prefix has one length in all {target.depth} layers"


def _changing_rotation(config: Any) -> str:
    """Return the type of rotary frequencies, where they depend on the length of the sequence, else ""."""
    kind = str((getattr(config, "rope_parameters", None) or {}).get("rope_type", "default"))
    return kind if kind in ("dynamic", "longrope") else ""


def _write(target: Target, deltas: Sequence[Delta], stored: Mapping[str, Tensor]) -> tuple[dict[str, Any], Tensors]:
    import torch

    layers: dict[int, list[Delta]] = {}
    for delta in deltas:
        layers.setdefault(int(delta.layer.rpartition(".")[2]), []).append(delta)
    keys, values = (
        [torch.cat([stored[f"{delta.name}.{leaf}"] for delta in layers[layer]]) for layer in sorted(layers)]
        for leaf in STORED
    )
    length = len(keys[0])
    pairs = [(_turned(key, length, target), value) for key, value in zip(keys, values, strict=True)]
    rows = torch.cat([row for pair in pairs for row in pair], 1)
    return virtual_tokens(target, length, keys[0].shape[1]), {PROMPT_EMBEDDINGS: rows}


def _read(target: Target, config: Mapping[str, Any], tensors: Tensors) -> Found:
    if not target.rotary:
        raise ValueError(f"{_SHIFTS}; received {target.family_name}")
    rows = matrix(tensors.pop(PROMPT_EMBEDDINGS))
    length = len(rows)
    m = Settings(form="prefix", site=Site.HEADS, composition=Composition.GATE, size=length)
    deltas = target.deltas(m)
    if rows.shape[1] != sum(delta.reads + delta.adds for delta in deltas):
        raise ValueError(f"the prefix of shape {tuple(rows.shape)} does not fit the model's {len(deltas)} layers")
    said = virtual_tokens(target, length, deltas[0].reads)
    require_same(config, {name: value for name, value in said.items() if name != "num_transformer_submodules"})
    changes: Found = {}
    for delta, pair in zip(deltas, rows.chunk(len(deltas), 1), strict=True):
        key, value = pair[:, : delta.reads], pair[:, delta.reads :]
        changes[delta.place] = (m, {"key": _turned(key, -length, target), "value": value})
    return changes


def _turned(key: Tensor, by: int, target: Target) -> Tensor:
    """Turn prefix keys, (l, key width), on by that many positions.

    A prefix of ours is what the rotated queries meet: score R(i) q · k for the token at i. In PEFT's
    cache the token stands at i + l, and R(i + l) q · R(l) k is the same.
    """
    import torch

    rotary = target.model.get_submodule(".".join(filter(None, (target.base, "rotary_emb"))))
    angle = by * rotary.get_buffer("inv_freq").double().to(key.device)
    cos, sin = angle.cos(), angle.sin()
    first, second = key.double().view(len(key), -1, 2, len(angle)).unbind(2)  # a head's halves make the pairs
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), 2)
    return turned.view(key.shape).to(key.dtype)


PREFIX = FunctionalForm(
    sites=(Site.HEADS,),
    compositions=(Composition.GATE, *SCALED),
    options=(*IN_LAYERS, "attentions", "layer_norm", "dropout", "reparameterisation"),
    shapes=_shapes,
    module=module,
    unmergeable="its keys and values stand in the sequence, where no weight is",
    peft="PREFIX_TUNING",
    layout=PeftLayout("PrefixTuningConfig", "base_model.", _faults, _write, _read, VIRTUAL_FIELDS),
    size_name="length",
)
