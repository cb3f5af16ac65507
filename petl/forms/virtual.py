"""Rows in front of a sequence, prompts and prefixes, as PEFT's files have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from petl.forms.exchange import PROMPT_EMBEDDINGS, Target
from petl.forms.peft_fields import COMMON_FIELDS, WHOLE_OR_NONE

if TYPE_CHECKING:
    from torch import Tensor

VIRTUAL_FIELDS: Final = COMMON_FIELDS | dict.fromkeys(
    ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
     "encoder_hidden_size", "prefix_projection", "init_weights"), ()
) | dict.fromkeys(
    ("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules"),
    WHOLE_OR_NONE,
)  # fmt: skip


def virtual_tokens(target: Target, length: int, width: int) -> dict[str, Any]:
    """Return the fields that PEFT's prompts and prefixes share."""
    config = target.model.config
    return {
        "num_virtual_tokens": length,
        "token_dim": width,
        "num_layers": target.depth,
        "num_attention_heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "num_transformer_submodules": 1,
    }


def matrix(rows: Tensor) -> Tensor:
    """Return the rows of a prompt or prefix. Raises ValueError for a tensor that has none."""
    if rows.ndim != 2 or not rows.numel():
        raise ValueError(f"{PROMPT_EMBEDDINGS} has rows and columns; received the shape {tuple(rows.shape)}")
    return rows


def require_same(config: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise ValueError where the configuration says otherwise than what its tensors and the model have."""
    wrong = [name for name, value in found.items() if config.get(name) not in (None, value)]
    if wrong:
        said = ", ".join(f"{name} {config[name]}, not {found[name]}" for name in wrong)
        raise ValueError(f"the adapter's configuration does not fit its tensors and the model: it has {said}")
