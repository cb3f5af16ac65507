"""What a resume may change of a study."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, Final

from search.config.study import StudyConfig
from search.storage.locations import StudyHome
from search.trials.upgrade import DEFAULTS

CHANGEABLE: Final[Mapping[str, tuple[str, ...]]] = {  # sections, with those of their keys that stay
    "budget": ("epochs", "steps"),
    "replicates": (),
    "resources": ("workers_per_trial",),
    "tracking": (),
    "storage": ("path",),
}


def as_begun(config: StudyConfig, before: StudyConfig) -> StudyConfig:
    """Return `config` with what its study began with, where it leaves the default and that has changed since."""
    kept: dict[str, dict[str, Any]] = {}
    for place in chain(*DEFAULTS.values()):
        section, key = place.split(".")
        settings, stored = getattr(config, section), getattr(before, section)
        if key in stored and key not in settings:
            kept[section] = {key: stored[key], **kept.get(section, settings)}
    return config.model_copy(update=kept)


def refusal(config: StudyConfig, before: StudyConfig) -> str:
    """Return why `config` cannot take the place of the configuration that its study has; "" where it can."""
    now, then = config.model_dump(mode="json"), before.model_dump(mode="json")
    changed = [section for section in now if now[section] != then[section]]
    if strange := [section for section in changed if section not in CHANGEABLE]:
        return (
            f"a resume may change {', '.join(CHANGEABLE)}; received another {', '.join(strange)}. "
            "Start another study for that, or replace this one with --fresh"
        )
    if config.storage.path != before.storage.path:
        return (
            f"the trials of {config.study!r} are kept at {before.storage.path or StudyHome(config.study).folder}, "
            f"where a resume finds them; received storage.path {config.storage.path}"
        )
    for section, keys in CHANGEABLE.items():
        for key in keys:
            if now[section][key] != then[section][key]:
                return f"{section}.{key} decides what a score means, so it stays; start another study for other {key}"
    return ""
