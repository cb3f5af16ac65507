"""Prefixes inside the frozen attention: one joint softmax over [P_k; K], through transformers' interface.

    softmax(q [P_k; K]ᵀ / √d_h + M) [P_v; V]

equals the gated form (1-λ) Attn(q, K, V) + λ softmax(q P_kᵀ) P_v (equations 5 to 7). Prefix columns are
never masked, and token positions are not shifted.

Each implementation that a model may have gets a twin (`petl_sdpa`, `petl_eager`), which extends keys,
values and mask and then calls it. Sub-layers without prefix pass through it unchanged. One twin each,
rather than one for all, keeps the function free of state: the name says which one to call, also where
two models share a configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from petl.design import DesignError
from petl.forms import Prefix

IMPLEMENTATIONS: Final = ("sdpa", "eager")
_PREFIXES: Final = "petl_prefixes"


def switch(model: PreTrainedModel) -> Callable[[], None]:
    """Let `model` attend through the twin of its implementation; the result called takes it back.

    Raises DesignError for an implementation that takes no extended mask.
    """
    before = model.config._attn_implementation
    if before not in IMPLEMENTATIONS:
        raise DesignError(f"a prefix needs attention implementation {' or '.join(IMPLEMENTATIONS)}; received {before}")
    model.set_attn_implementation(f"petl_{before}")
    return partial(model.set_attn_implementation, before)


def put(module: nn.Module, prefixes: Iterable[Prefix]) -> Callable[[], None]:
    """Give the attention module these prefixes; the result called takes them away.

    They sit in a tuple, so that the module does not register them: the model owns them elsewhere.
    """
    setattr(module, _PREFIXES, tuple(prefixes))
    return partial(delattr, module, _PREFIXES)


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    implementation: str,
    **arguments: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with the module's prefixes. query, key, value: (batch, heads, tokens, head width)."""
    attend = _attend(implementation, module)
    prefixes: tuple[Prefix, ...] = getattr(module, _PREFIXES, ())
    if not prefixes:
        return attend(module, query, key, value, attention_mask, **arguments)
    keys, values = zip(*(prefix() for prefix in prefixes), strict=True)
    length = sum(rows.shape[0] for rows in keys)
    causal = arguments.pop("is_causal", None)
    if causal is None:
        causal = getattr(module, "is_causal", False)
    if implementation == "sdpa" and attention_mask is None and causal and query.shape[2] > 1:
        # It would crop the longer keys to the queries' length. (Eager always gets a mask.)
        square = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        attention_mask = square.tril(key.shape[2] - query.shape[2])[None, None]
    if attention_mask is not None:
        see = attention_mask.new_full((*attention_mask.shape[:-1], length), attention_mask.dtype == torch.bool)
        attention_mask = torch.cat((see, attention_mask), -1)
    bias = arguments.get("position_bias")
    if bias is not None:
        arguments["position_bias"] = torch.cat((bias.new_zeros((*bias.shape[:-1], length)), bias), -1)
    key, value = _extend(keys, key), _extend(values, value)
    return attend(module, query, key, value, attention_mask, is_causal=False, **arguments)


def _extend(rows: Iterable[Tensor], own: Tensor) -> Tensor:
    """(length, width) rows as heads, in front of `own`: (batch, heads, tokens, head width)."""
    batch, heads, _, width = own.shape
    blocks = (part.to(own.dtype).view(-1, heads, width).transpose(0, 1).expand(batch, -1, -1, -1) for part in rows)
    return torch.cat((*blocks, own), 2)


def _attend(implementation: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if implementation == "eager":  # each model's file has its own
        function: Callable[..., tuple[Tensor, Tensor | None]] = vars(sys.modules[type(module).__module__])[
            "eager_attention_forward"
        ]
        return function
    function = ALL_ATTENTION_FUNCTIONS[implementation]
    return function


for _name in IMPLEMENTATIONS:
    AttentionInterface.register(f"petl_{_name}", partial(prefix_attention, implementation=_name))
    AttentionMaskInterface.register(f"petl_{_name}", ALL_MASK_ATTENTION_FUNCTIONS[_name])
