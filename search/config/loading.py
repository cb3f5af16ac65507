"""Load a study file: its text, overrides, old names, and every fault at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import (
    ValidationError,
)

from petl.errors import faults
from search.config.sections import (
    STORED,
)
from search.config.study import StudyConfig, long_form
from search.config.text import NAMES, ConfigError, parse, read
from search.storage import address
from search.trials.upgrade import upgraded


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> StudyConfig:
    """Return the study of a file (YAML), or of the same as a mapping, with `key.key=value` overrides.

    Raises ConfigError with every fault: where, the rule, and the value received.
    """
    if isinstance(source, Mapping):
        return _validated(source, overrides, "the study")
    return _validated(parse(read(source), str(source)), overrides, str(source))


def load_stored(stored: Mapping[str, Any], overrides: Sequence[str] = ()) -> StudyConfig:
    """Return the configuration that `StudyConfig.to_dict` gave, of this version or an earlier one.

    Raises VersionError for a later one, and ConfigError as `load_config` does.
    """
    return _validated(upgraded(stored), overrides, "the study", STORED)


def _validated(data: Any, overrides: Sequence[str], name: str, context: str | None = None) -> StudyConfig:
    if not isinstance(data, Mapping):
        received = address.redacted(repr(data))
        raise ConfigError(f"a study file is a mapping of sections such as study and backbone; received {received}")
    data = _deep_copy(data)
    for override in overrides:
        _override(data, override)
    try:
        return StudyConfig.model_validate(data, context=context)
    except ValidationError as error:
        found = faults(error, redact=address.redacted, keys=_keys)
        raise ConfigError("\n  ".join([f"{name} has {len(found)} fault(s):", *found])) from None


def _override(data: dict[str, Any], override: str) -> None:
    """Set a key of the data. A section that has its short form gets the long one first."""
    path, equals, text = override.partition("=")
    *sections, key = path.split(".")
    if not equals or not all((*sections, key)):
        raise ConfigError(f"--set takes key=value, such as budget.trials=48; received {address.redacted(override)!r}")
    top = data
    for section in sections:
        value = data.get(section)
        if data is top:
            value = long_form(section, value)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise ConfigError(f"--set {address.redacted(override)}: {section} is a value, not a section")
        data[section] = data = value
    named = f"--set {override}"
    data[key] = parse(f"{key}: {text}", named)[key] if path in NAMES else parse(text, named)


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _deep_copy(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _keys(place: Sequence[str | int]) -> list[str]:
    """Return the keys that a study file may have at a place; none where a section takes any."""
    model: Any = StudyConfig
    keys = iter(place)
    for key in keys:
        hint = model.model_fields[key].annotation
        model = next((part for part in (hint, *get_args(hint)) if hasattr(part, "model_fields")), None)
        if model is None:
            return []
        if get_origin(hint) is dict:
            next(keys, None)  # the name of a row
    return [*model.model_fields]
