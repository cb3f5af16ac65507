"""Fields of the configurations of Hugging Face PEFT: which may be set in a file that is read, and what they may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final


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
