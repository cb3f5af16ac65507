"""What a trial is called where people read: the name of its run, and its parameters, flat."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from petl.configuration import Configuration
from petl.design import Composition, Modification
from search.trials.record import TrialRecord


def label(record: TrialRecord) -> str:
    """What a trial is: a reference's name (`full`), what the user called an enqueued design, else the design."""
    design = record.configuration.design.describe() if record.configuration else ""
    return record.reference or record.name or design


def run_name(record: TrialRecord) -> str:
    """Such as `12 mam`, `7 prefix 16 + ffn parallel 64 x4` or `reference full`."""
    name = f"{'reference' if record.reference else record.number} {label(record)}".strip()
    return name if len(name) <= 80 else name[:79] + "…"


def cost_column(name: str) -> str:
    """The heading for a cost of a study, "" for one that every table of trials has as a column anyway."""
    return "" if name in ("stored_parameters", "seconds") else name.replace("_", " ")


def cost_text(value: float | None) -> str:
    """A cost in a table: a count or a measurement."""
    return "" if value is None else f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def flat_parameters(configuration: Configuration) -> dict[str, str]:
    """A configuration as flat, readable names: `ffn.size`, `prefix.length`, `query.rank`, `learning_rate` ...

    A part is named by its site, or by its form where that says more; a second part of one name becomes
    `ffn_2`. A part always has its size, insertion and scale where it has a choice of them (scale 1
    for plain addition), further fields where they differ from the default. `layers` has no part in
    front when all parts agree.
    """
    design = configuration.design
    flat: dict[str, str] = {}
    placed = {m.layers for m in design.modifications if "layers" in m.rule.options}
    if len(placed) == 1:
        flat["layers"] = placed.pop()
    seen: dict[str, int] = {}
    for modification in design.modifications:
        part = _part(modification)
        seen[part] = seen.get(part, 0) + 1
        prefix = part if seen[part] == 1 else f"{part}_{seen[part]}"
        for name, value in _fields(modification).items():
            if not (name == "layers" and "layers" in flat):
                flat[f"{prefix}.{name}" if name else prefix] = _word(value)
    flat["head"] = _word(design.head)
    training = asdict(configuration.training) | {"seed": configuration.seed}
    return flat | {name: _word(value) for name, value in training.items() if value is not None}


def curve(points: Iterable[Mapping[str, float]], validations: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """A worker's `points` and `validations` as what `Tracker.progress` takes.

    The loss of training batches becomes `train_loss`: `loss` is the validation split's.
    """
    renamed = [{"train_loss" if name == "loss" else name: value for name, value in point.items()} for point in points]
    return renamed + [
        {"step": v["step"], "epoch": v["epoch"], "seconds": v["seconds"], **v["scores"]} for v in validations
    ]


def _part(modification: Modification) -> str:
    return modification.rule.label.format(form=modification.form, site=modification.site)


def _fields(modification: Modification) -> dict[str, Any]:
    rule = modification.rule
    if not rule.sized:
        return {"": True}  # bias, full: there or not
    chosen: dict[str, Any] = {rule.size_name: modification.size}
    if len(rule.insertions) > 1:
        chosen["insertion"] = modification.insertion
    if Composition.GATE in rule.compositions and modification.composition is not Composition.GATE:
        chosen["composition"] = modification.composition
    if Composition.SCALE in rule.compositions and modification.composition is not Composition.GATE:
        learned = modification.composition is Composition.LEARNED_SCALE
        chosen["scale"] = "learned" if learned else modification.scale
    if "layers" in rule.options:
        chosen["layers"] = modification.layers
    set_ = modification.to_dict()
    return chosen | {name: set_[name] for name in rule.options if name in set_}


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def in_words(count: int) -> str:
    """Bytes, such as `0.25 GB`, or `12 MB` of less."""
    return f"{count / 10**9:.3g} GB" if count >= 10**8 else f"{math.ceil(count / 10**5) / 10:g} MB"
