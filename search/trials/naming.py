"""The names that people read: of a trial, of its run, and of its parameters in one flat mapping."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from petl.configuration import Configuration
from petl.design import Composition, Design, Modification
from petl.head import OWN_HEAD
from search.trials.record import TrialRecord


def label(record: TrialRecord) -> str:
    """Return a reference's name (`full`), what the user called an enqueued design, else the design in words."""
    design = record.configuration.design.describe() if record.configuration else ""
    return record.reference or record.name or design


def run_name(record: TrialRecord) -> str:
    """Return such as `12 mam`, `7 prefix 16 + ffn 64` or `full (reference)`, of at most 80 characters.

    A table of runs shows the first twenty. So a design has its parts and sizes here, and no more.
    """
    if record.reference:
        name = f"{record.reference} (reference)"
    else:
        parts = _sizes(record.configuration.design) if record.configuration else {}
        words = [" ".join([part, ",".join(map(str, sizes))]).strip() for part, sizes in parts.items()]
        name = f"{record.number} {record.name or ' + '.join(words) or label(record)}".strip()
    return name if len(name) <= 80 else name[:79] + "…"


def method(design: Design) -> str:
    """Return which parts a design has, whatever their sizes, such as `prefix + ffn`; those of one method have one."""
    return " + ".join(_sizes(design)) or design.describe()


def _sizes(design: Design) -> dict[str, list[int]]:
    """Return the different sizes of each part of a design, none for parts without a size."""
    sizes: dict[str, list[int]] = {}
    for m in design.modifications:
        sites = "" if m.rule.at_linears else m.site
        part = m.rule.phrase.format(form=m.form, sites=sites, insertion="").strip()
        known = sizes.setdefault(part, [])
        if m.size and m.size not in known:
            known.append(m.size)
    return sizes


def flat_parameters(configuration: Configuration) -> dict[str, str]:
    """Return a configuration as flat, readable names: `ffn.size`, `prefix.length`, `query.rank`, `learning_rate` ...

    A part is named by its site, or by its form where that says more; a second part of the same name becomes
    `ffn_2`. A part always has its size, insertion and scale where it has a choice of them (scale 1 for plain
    addition), further fields where they differ from the default. `layers` names no part where all parts agree.
    """
    design = configuration.design
    flat: dict[str, str] = {}
    layers = {m.layers for m in design.modifications if "layers" in m.rule.options}
    if len(layers) == 1:
        flat["layers"] = layers.pop()
    parts: Counter[str] = Counter()
    for modification in design.modifications:
        part = _part(modification)
        parts[part] += 1
        prefix = part if parts[part] == 1 else f"{part}_{parts[part]}"
        for name, value in _fields(modification).items():
            if not (name == "layers" and "layers" in flat):
                flat[f"{prefix}.{name}" if name else prefix] = _word(value)
    flat["head"] = _word(design.head)
    if configuration.head != OWN_HEAD:
        flat |= {f"head.{name}": value for name, value in configuration.head.to_dict().items()}
    training = asdict(configuration.training) | {"seed": configuration.seed}
    return flat | {name: _word(value) for name, value in training.items() if value is not None}


def different_settings(configurations: Sequence[Configuration]) -> list[str]:
    """Return the settings of training and head that differ among configurations, by their names in a study file."""
    found = [_settings(configuration) for configuration in configurations]
    return [name for name in (found[0] if found else ()) if len({settings[name] for settings in found}) > 1]


def setting_text(configuration: Configuration | None, name: str) -> str:
    """Return a setting's value for people, "" for a baseline."""
    value = _settings(configuration)[name] if configuration else ""
    return f"{value:.3g}" if isinstance(value, float) else _word(value)


def _settings(configuration: Configuration) -> dict[str, Any]:
    head = {f"head.{name}": value for name, value in configuration.head.to_dict().items()}
    return asdict(configuration.training) | head


def _part(modification: Modification) -> str:
    return modification.rule.label.format(form=modification.form, site=modification.site)


def _fields(modification: Modification) -> dict[str, Any]:
    rule = modification.rule
    if not rule.sized:
        return {"": True}  # bias, full: they have no size
    fields: dict[str, Any] = {rule.size_name: modification.size}
    if len(rule.insertions) > 1:
        fields["insertion"] = modification.insertion
    if Composition.GATE in rule.compositions and modification.composition is not Composition.GATE:
        fields["composition"] = modification.composition
    if Composition.SCALE in rule.compositions and modification.composition is not Composition.GATE:
        learned = modification.composition is Composition.LEARNED_SCALE
        fields["scale"] = "learned" if learned else modification.scale
    if "layers" in rule.options:
        fields["layers"] = modification.layers
    stated = modification.to_dict()
    return fields | {name: stated[name] for name in rule.options if name in stated}


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
