"""Fields of the configurations of Hugging Face PEFT: which may be set in a file that is read, and what they may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Value:
    """What a field of PEFT's configuration may be: in words, and a test of it."""

    words: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _by_pattern(value: Any, holds: Callable[[Any], bool]) -> bool:
    return value is None or (isinstance(value, Mapping) and all(map(holds, value.values())))


WHOLE: Final = Value("a whole number of at least 1", _is_whole)
WHOLE_OR_NONE: Final = Value(f"{WHOLE.words}, or null", lambda value: value is None or _is_whole(value))
NUMBER: Final = Value("a finite number", _is_number)
SHARE: Final = Value("a number in [0, 1)", lambda value: value is None or (_is_number(value) and 0 <= value < 1))
SWITCH: Final = Value("true or false", lambda value: value is None or isinstance(value, bool))
WHOLE_BY_PATTERN: Final = Value("whole numbers by pattern", lambda value: _by_pattern(value, _is_whole))
NUMBER_BY_PATTERN: Final = Value("finite numbers by pattern", lambda value: _by_pattern(value, _is_number))

COMMON_FIELDS: Final[dict[str, tuple[Any, ...] | Value]] = dict.fromkeys(
    ("auto_mapping", "base_model_name_or_path", "inference_mode", "modules_to_save", "peft_type", "peft_version",
     "revision", "task_type", "target_modules", "exclude_modules", "fan_in_fan_out"), ()
)  # fmt: skip
VIRTUAL_FIELDS: Final = COMMON_FIELDS | dict.fromkeys(
    ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
     "encoder_hidden_size", "prefix_projection", "init_weights"), ()
) | dict.fromkeys(
    ("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules"),
    WHOLE_OR_NONE,
)  # fmt: skip


def virtual_tokens(model: PreTrainedModel, depth: int, length: int, width: int) -> dict[str, Any]:
    """Return the fields that PEFT's prompts and prefixes share."""
    config = model.config
    return {
        "num_virtual_tokens": length,
        "token_dim": width,
        "num_layers": depth,
        "num_attention_heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "num_transformer_submodules": 1,
    }


def require_same(config: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise ValueError where the configuration says otherwise than what its tensors and the model have."""
    wrong = [name for name, value in found.items() if config.get(name) not in (None, value)]
    if wrong:
        said = ", ".join(f"{name} {config[name]}, not {found[name]}" for name in wrong)
        raise ValueError(f"the adapter's configuration does not fit its tensors and the model: it has {said}")
