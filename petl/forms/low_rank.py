"""Low rank: s x Aᵀ Bᵀ, the change of a linear (LoRA, Hu et al., 2022). It folds into the weight as W + s B A.

PEFT's LORA: {linear}.lora_A.weight (r, in), {linear}.lora_B.weight (out, r), scaled by alpha / r.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from petl.forms.exchange import PATHS, Found, PeftLayout, Target, Tensors, by_linear, linears_with, padded
from petl.forms.form import IN_LAYERS, FunctionalForm
from petl.forms.patterns import Patterns
from petl.forms.peft_fields import COMMON_FIELDS, NUMBER, NUMBER_BY_PATTERN, SHARE, SWITCH, WHOLE, WHOLE_BY_PATTERN
from petl.forms.vocabulary import LINEARS, SCALED, Composition, Delta, Settings, Shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from petl.forms.modules import Change


def _shapes(delta: Delta) -> Shapes:
    size = delta.modification.size
    return {"a": (size, delta.reads), "b": (delta.adds, size)}


@cache
def _class() -> type[Change]:
    import torch
    from torch import nn
    from torch.nn import functional

    from petl.forms.modules import Change, draw_matrices

    class LowRank(Change):
        """x: (..., reads) -> (..., adds). Dropout acts on x."""

        def __init__(self, delta: Delta) -> None:
            super().__init__(delta)
            self.a = nn.Parameter(torch.empty(delta.modification.size, delta.reads))
            self.b = nn.Parameter(torch.empty(delta.adds, delta.modification.size))

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(self.scaled(functional.linear(self.drop(x), self.a)), self.b)

        def reset(self, generator: torch.Generator) -> None:
            super().reset(generator)
            draw_matrices(self.a, self.b, self.modification.init, generator)

        def weight_change(self) -> Tensor:
            return self.double_scale() * (self.b.detach().double() @ self.a.detach().double())

    return LowRank


def module(delta: Delta) -> Change:
    """Build the module, without first values."""
    return _class()(delta)


_A, _B = "lora_A.weight", "lora_B.weight"


def _faults(modifications: Sequence[Settings], target: Target) -> Iterator[str]:
    if all(m.form == "bias" for m in modifications):
        yield "PEFT trains biases beside a LoRA only"


def _write(target: Target, deltas: Sequence[Delta], stored: Mapping[str, Tensor]) -> tuple[dict[str, Any], Tensors]:
    import torch

    tensors: Tensors = {}
    sizes: dict[str, tuple[int, float]] = {}
    for path, parts in by_linear(target, deltas).items():
        scales = [_scale(delta, stored) for delta in parts]
        # One constant scale stays PEFT's alpha; others go into B.
        constant = len(set(scales)) == 1 and f"{parts[0].name}.scale" not in stored
        shared = scales[0] if constant else 1.0
        a = torch.cat([stored[f"{delta.name}.a"] for delta in parts])
        b = torch.cat(
            [
                padded(delta, stored[f"{delta.name}.b"] * (scale / shared))
                for delta, scale in zip(parts, scales, strict=True)
            ],
            1,
        )
        tensors |= {f"{path}.{_A}": a, f"{path}.{_B}": b}
        sizes[path] = (len(a), shared * len(a))
    (rank, alpha), _ = Counter(sizes.values()).most_common(1)[0]
    others = {f"^{re.escape(path)}": size for path, size in sizes.items() if size != (rank, alpha)}
    dropouts = {delta.modification.dropout for delta in deltas}
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: size[0] for path, size in others.items()},
        "alpha_pattern": {path: size[1] for path, size in others.items()},
        "lora_dropout": dropouts.pop() if len(dropouts) == 1 else 0.0,
        "target_modules": sorted(sizes),
        "fan_in_fan_out": target.transposed,
    }, tensors


def _read(target: Target, config: Mapping[str, Any], tensors: Tensors) -> Found:
    import torch

    changes: Found = {}
    ranks_of, alphas_of = Patterns(config.get("rank_pattern")), Patterns(config.get("alpha_pattern"))
    linears = target.at_linears("low_rank")
    for path in linears_with(_A, tensors, linears):
        a, b = tensors.pop(f"{path}.{_A}"), tensors.pop(f"{path}.{_B}", None)
        deltas = linears[path]
        if b is None or a.ndim != 2 or b.shape != (deltas[0].total, len(a)) or a.shape[1] != deltas[0].reads:
            raise ValueError(f"the LoRA of {path} does not fit the model's linear")
        rank, alpha = ranks_of.of(path, config.get("r", 8)), alphas_of.of(path, config.get("lora_alpha", 8))
        if rank != len(a):
            raise ValueError(f"the configuration has rank {rank} for {path}, whose tensors have {len(a)}")
        scale = _tidy(alpha, rank**0.5 if config.get("use_rslora") else rank)
        blocks = [b[delta.rows] for delta in deltas]
        used = [block.ne(0).any(0) for block in blocks]
        nowhere = ~torch.stack(used).any(0)
        for delta, block, ranks in zip(deltas, blocks, used, strict=True):
            # of a fused linear, the ranks that reach this block; ones that reach none may learn to reach any
            columns = (ranks | nowhere).nonzero()[:, 0]
            if len(columns):
                m = replace(
                    delta.modification,
                    size=len(columns),
                    scale=scale,
                    composition=Composition.SCALE,
                    dropout=config.get("lora_dropout") or 0.0,
                )
                changes[delta.place] = (m, {"a": a[columns], "b": block[:, columns]})
    return changes


def _scale(delta: Delta, stored: Mapping[str, Tensor]) -> float:
    learned = stored.get(f"{delta.name}.scale")
    return delta.modification.scale if learned is None else learned.item()


def _tidy(alpha: float, rank: float) -> float:
    """Return alpha / r; where rounding hides it, the short number that has this alpha."""
    short = float(f"{alpha / rank:.12g}")
    return short if short * rank == alpha else alpha / rank


# Other first values come with other frozen weights.
_INITS: Final = (True, False, "gaussian", "orthogonal", "eva", "mica")
_FIELDS: Final = {
    "r": WHOLE,
    "lora_alpha": NUMBER,
    "rank_pattern": WHOLE_BY_PATTERN,
    "alpha_pattern": NUMBER_BY_PATTERN,
    "use_rslora": SWITCH,
    "lora_dropout": SHARE,
} | dict.fromkeys(
    ("layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size", "runtime_config", "loftq_config",
     "eva_config", "ensure_weight_tying"), ()
)  # fmt: skip

LOW_RANK = FunctionalForm(
    sites=LINEARS,
    compositions=SCALED,
    options=(*IN_LAYERS, "attentions", "init", "dropout"),
    shapes=_shapes,
    module=module,
    unmergeable="",
    peft="LORA",
    layout=PeftLayout(
        "LoraConfig",
        PATHS,
        _faults,
        _write,
        _read,
        COMMON_FIELDS | _FIELDS | {"bias": ("none", "all"), "init_lora_weights": _INITS},
    ),
    phrase="lora {sites}",
    label="{site}",
    size_name="rank",
)
