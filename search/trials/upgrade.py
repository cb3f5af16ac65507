"""Names and defaults of earlier versions: names are refused where a user writes them; a stored study is read with both.

A stored configuration has a `version`; what has none is of version 0, as commit ba3158e wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from petl.configuration import BEFORE
from petl.errors import UserError
from petl.head import OWN_HEAD

KEYS: Final[Mapping[str, str]] = {  # of a study file
    "sampler.teaching": "sampler.unfinished",
    "scheduler.first": "scheduler.first_rung",
    "scheduler.least": "scheduler.min_full",
    "replicates.seeds": "replicates.per_trial",
}
VALUES: Final[Mapping[str, Mapping[str, str]]] = {  # of a key that has its new name
    "sampler.unfinished": {"raw": "last", "corrected": "extrapolated", "pruned": "ignored", "model": "predicted"},
}
# Of a version, where the next one has others: a study keeps those that it began with.
DEFAULTS: Final[Mapping[int, Mapping[str, Any]]] = {
    1: {f"training.{name}": value for name, value in BEFORE.items()},
    2: {f"head.{name}": value for name, value in OWN_HEAD.to_dict().items()},
    3: {"space.parts": None},
}
OPTIONS: Final[Mapping[str, str]] = {  # of commands
    "--most-false": "--fdr",
    "--eta": "--set eta=",
    "--first": "--set first_rung=",
    "--waves": "--set waves=",
    "--least": "--set min_full=",
}


class VersionError(UserError, ValueError):
    """A study that was stored by a later version."""


def renamed(key: str, value: Any = None) -> str:
    """Return what is said of an old key, "" for any other."""
    if (name := KEYS.get(key)) is None:
        return ""
    values = VALUES.get(name, {})
    now = f": {values[value]}" if isinstance(value, str) and value in values else ""
    return f"is called {name}{now} now"


def _names_of_version_1(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration of version 0 with the names of version 1."""
    config = {section: dict(value) if isinstance(value, Mapping) else value for section, value in config.items()}
    for old, new in KEYS.items():
        section, key = old.split(".")
        if isinstance(config.get(section), dict) and key in config[section]:
            value = config[section].pop(key)
            config[section][new.split(".")[1]] = VALUES.get(new, {}).get(value, value)
    return config


def _with_defaults(version: int, config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration of a version that says what was the default then, where it is another one now."""
    config = dict(config)
    for place, value in DEFAULTS[version].items():
        section, key = place.split(".")
        if section == "space" and (config.get(section) or {}).get("name") != "unified":
            continue  # no other space has the option, and a list of designs has no space
        config[section] = {key: value, **(config.get(section) or {})}
    return config


_UPGRADES: Final[tuple[Callable[[dict[str, Any]], dict[str, Any]], ...]] = (  # from 0 to 1, from 1 to 2, ...
    _names_of_version_1,
    partial(_with_defaults, 1),
    partial(_with_defaults, 2),
    partial(_with_defaults, 3),
)
VERSION: Final = len(_UPGRADES)


def versioned(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as it is stored."""
    return {"version": VERSION, **config}


def upgraded(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration with today's names, without its version. Raises VersionError for a later one."""
    config = dict(stored)
    version = config.pop("version", 0)
    if version not in range(VERSION + 1):
        raise VersionError(
            f"this petl-search reads studies of version {VERSION} and earlier; received one of version {version!r}. "
            "Read it with the petl-search that wrote it, or a later one"
        )
    for upgrade in _UPGRADES[version:]:
        config = upgrade(config)
    return config


def upgraded_entry(kind: str, values: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return a journal's entry, its kind and its values, as they are written today."""
    if kind not in _FACTS:
        return kind, values
    name, key = _FACTS[kind]
    return "facts", {"number": values["number"], "facts": {name: values[key]}}


_FACTS: Final[Mapping[str, tuple[str, str]]] = {  # entries of version 0 that are facts now: their name, and their key
    "tested": ("final", "scores"),
    "believed": ("believed", "what"),
}
