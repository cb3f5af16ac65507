"""Prefixes and multi-head adapters inside the frozen attention, through transformers' interface.

A gated prefix is one joint softmax,

    softmax(q [P_k; K]ᵀ / √d_h + M) [P_v; V],

which equals the gated form (1-λ) Attn(q, K, V) + λ softmax(q P_kᵀ) P_v (equations 5 to 7). Prefix columns
are never masked, and token positions are not shifted. Ungated prefixes and multi-head adapters are
added to each head's output.

Each implementation that a model may have gets a twin (`petl_sdpa`, `petl_eager`), which extends keys,
values and mask and then calls it. Sub-layers without such changes pass through it unchanged. One twin
each, rather than one for all, keeps the function free of state: the name says which one to call, also
where two models share a configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from petl.attach.hooks import HookGroup
from petl.design import DesignError
from petl.forms.modules import Heads
from petl.forms.vocabulary import Block

IMPLEMENTATIONS: Final = ("sdpa", "eager")
_CHANGES: Final = "petl_changes"


def switch(model: PreTrainedModel) -> str:
    """Let `model` attend through the twin of its implementation, and return the name of that; "" if it did already.

    Raises DesignError for an implementation that takes no extended mask.
    """
    before: str = model.config._attn_implementation
    if before.removeprefix("petl_") in IMPLEMENTATIONS and before.startswith("petl_"):
        return ""
    if before not in IMPLEMENTATIONS:
        raise DesignError(
            f"changes of the heads need attention implementation {' or '.join(IMPLEMENTATIONS)}; received {before}"
        )
    model.set_attn_implementation(f"petl_{before}")
    return before


@dataclass
class HeadChanges(HookGroup[Heads]):
    """The changes of one attention module, which finds them as an attribute.

    The module does not register them: the model owns them elsewhere.
    """

    module: nn.Module

    def put(self) -> None:
        """Make the module find the changes."""
        setattr(self.module, _CHANGES, self)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Raise RuntimeError where nothing would look for the changes; a forward pre-hook of the module."""
        used: str = module.config._attn_implementation  # type: ignore[union-attr, assignment]
        if not used.startswith("petl_"):
            raise RuntimeError(
                f"the model has changes of its heads, which need attention implementation petl_{used} while they are "
                f"attached; received {used}: it was set since, or by a model that shares the configuration"
            )

    def remove(self) -> None:
        """Take the changes away from the module."""
        delattr(self.module, _CHANGES)


@dataclass
class NormedQuery(HookGroup[Heads]):
    """Forward hook of a query linear that also computes the query of the normed input, for each change with a norm.

    The queries, (batch, tokens, query width), are left with the changes.
    """

    block: Block | None = None
    inside: bool = False

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self.inside:
            return
        self.inside = True  # the linear is called whole, with its low-rank change, so this hook runs again
        try:
            for change in self.changes:
                query = module(change.norm(inputs[0]))
                if self.block is not None:
                    query = query[..., self.block.start : self.block.start + self.block.width]
                change.normed_query = query
        finally:
            self.inside = False


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    implementation: str,
    **arguments: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend with the module's changes. query, key, value: (batch, heads, tokens, head width)."""
    frozen = _frozen(implementation, module)
    group: HeadChanges | None = getattr(module, _CHANGES, None)
    if group is None:
        return frozen(module, query, key, value, attention_mask, **arguments)
    scaling, dropout = arguments.get("scaling"), arguments.get("dropout", 0.0)
    if scaling is None:
        scaling = arguments["scaling"] = query.shape[-1] ** -0.5  # joined queries may be wider
    added = [change(query, scaling=scaling, dropout=dropout)[0] for change in group.changes if not change.joined]
    joined = [change for change in group.changes if change.joined]
    if joined:
        causal = arguments.pop("is_causal", None)
        if causal is None:
            causal = getattr(module, "is_causal", False)
        if implementation == "sdpa" and attention_mask is None and causal and query.shape[2] > 1:
            # It would crop the longer keys to the queries' length. (Eager always gets a mask.)
            square = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
            attention_mask = square.tril(key.shape[2] - query.shape[2])[None, None]
        arguments["is_causal"] = False
        tokens = key.shape[2]
        for change in joined:
            query, key, value = change(query, key, value)
        length = key.shape[2] - tokens
        if attention_mask is not None:
            see = attention_mask.new_full((*attention_mask.shape[:-1], length), attention_mask.dtype == torch.bool)
            attention_mask = torch.cat((see, attention_mask), -1)
        bias = arguments.get("position_bias")
        if bias is not None:
            arguments["position_bias"] = torch.cat((bias.new_zeros((*bias.shape[:-1], length)), bias), -1)
    output, weights = frozen(module, query, key, value, attention_mask, **arguments)
    for change in added:
        output = output + change.transpose(1, 2)
    return output, weights


def _frozen(implementation: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if implementation == "eager":  # each model's file has its own
        function: Callable[..., tuple[Tensor, Tensor | None]] = vars(sys.modules[type(module).__module__])[
            "eager_attention_forward"
        ]
        return function
    function = ALL_ATTENTION_FUNCTIONS[implementation]
    return function


for _name in IMPLEMENTATIONS:
    AttentionInterface.register(f"petl_{_name}", partial(attend, implementation=_name))
    AttentionMaskInterface.register(f"petl_{_name}", ALL_MASK_ATTENTION_FUNCTIONS[_name])
