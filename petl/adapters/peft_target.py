"""The model that a PEFT adapter is for, and the design that an adapter's tensors are on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Final

from transformers import PreTrainedModel

from petl.backbones.families import Family, family_of
from petl.backbones.layout import layout, linears
from petl.backbones.model import ModelParameters, parameters_of
from petl.backbones.plan import deltas
from petl.design import FEED_FORWARD, Design, Layout, Modification, Site
from petl.forms.exchange import Found
from petl.forms.table import FORMS, Form
from petl.forms.vocabulary import Delta, Settings, Shapes

# The end of a model's class -> PEFT's word for what it does.
_TASKS: Final[Mapping[str, str]] = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}


@dataclass(frozen=True)
class TargetModel:
    """A model with all that a layout asks of it; it is a `petl.forms.exchange.Target`, which explains the fields."""

    model: PreTrainedModel

    @cached_property
    def family(self) -> Family:
        return family_of(self.model)

    @cached_property
    def parameters(self) -> ModelParameters:
        return parameters_of(self.model)

    @property
    def base(self) -> str:
        return self.parameters.prefix

    @cached_property
    def shapes(self) -> Shapes:
        """Return those of the base model's parameters."""
        return {name: tuple(parameter.shape) for name, parameter in self.parameters.base.items()}

    @cached_property
    def layout(self) -> Layout:
        return layout(self.family, self.shapes)

    @cached_property
    def head(self) -> tuple[str, ...]:
        """Return the modules, children of the model, that hold its head."""
        return tuple(dict.fromkeys(name.partition(".")[0] for name in self.parameters.head))

    @cached_property
    def paths(self) -> frozenset[str]:
        """Return those of all its parameters, tied ones under each name."""
        return frozenset(name for name, _ in self.model.named_parameters(remove_duplicate=False))

    @property
    def family_name(self) -> str:
        return self.family.name

    @property
    def transposed(self) -> bool:
        return self.family.transposed

    @property
    def has_positions(self) -> bool:
        return bool(self.family.input.entry)

    @property
    def rotary(self) -> bool:
        return self.family.stacks[-1].attentions["self"].rotary

    @property
    def stack(self) -> str:
        return self.family.stacks[0].name

    @property
    def depth(self) -> int:
        return self.layout[self.family.stacks[-1].name].depth

    @property
    def task(self) -> str:
        name = type(self.model).__name__
        return next((task for end, task in _TASKS.items() if name.endswith(end)), "")

    @property
    def generates(self) -> bool:
        """Return whether it is a decoder, or has one, and a language-model head."""
        return self.task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") and self.family.stacks[-1].name == "decoder"

    def deltas(self, *modifications: Settings) -> tuple[Delta, ...]:
        design = Design(tuple(map(_modification, modifications)))
        return deltas(design, self.family, self.shapes)

    def linear(self, delta: Delta) -> str:
        return ".".join(filter(None, (self.base, delta.layer, delta.linear)))

    def at_linears(self, form: str) -> dict[str, list[Delta]]:
        rule, own = FORMS[form], (*linears(self.family, self.shapes), Site.FFN_HIDDEN)
        size, insertion = int(rule.sized), rule.insertions[0]
        settings = (
            Settings(form=form, site=site, insertion=insertion, size=size) for site in rule.sites if site in own
        )
        paths: dict[str, list[Delta]] = {}
        for delta in self.deltas(*settings):
            paths.setdefault(self.linear(delta), []).append(delta)
        return paths


def united(target: TargetModel, changes: Found) -> Design:
    """Return the design of these changes, in as few modifications as its layers, stacks and attentions allow."""
    groups: dict[Modification, set[tuple[str, int, str]]] = {}
    for place, (settings, _) in changes.items():
        m = _modification(settings)
        stack, layer, *kind = place.split(".")[:-1] if m.form is not Form.PROMPT else (place, "0")
        groups.setdefault(m, set()).add((stack, int(layer), kind[0] if kind else ""))
    modifications: list[Modification] = []
    for m, places in groups.items():
        modifications += [m] if m.form is Form.PROMPT else spelled(m, places, target.layout)
    return Design(tuple(modifications))


def spelled(m: Modification, places: set[tuple[str, int, str]], stacks: Layout) -> Iterator[Modification]:
    """Yield the modification at these places: the widest one that covers no other, then what remains."""
    remaining = set(places)
    while remaining:
        candidates = [
            (len(covered), other) for other, covered in _candidates(m, remaining, stacks) if covered <= remaining
        ]
        best = max(candidates, key=lambda pair: pair[0])[1].canonical(stacks)
        yield best
        remaining -= set(best.covers(stacks))


def _candidates(
    m: Modification, remaining: set[tuple[str, int, str]], layout: Layout
) -> Iterator[tuple[Modification, set[tuple[str, int, str]]]]:
    kinds = ("all",) if m.site in FEED_FORWARD else ("all", "self", "cross")
    for stacks, attentions in product(("all", *layout), kinds):
        wide = replace(m, stacks=stacks, attentions=attentions)
        places = wide.covers(layout)
        numbers = sorted({n for _, n, _ in places} - {place[1] for place in places if place not in remaining})
        depth = max((layout[stack].depth for stack, _, _ in places), default=0)
        layers = [f"top {k}" for k in range(1, depth + 1)] + ([",".join(map(str, numbers))] if numbers else [])
        for other in (wide, *(replace(wide, layers=text) for text in layers)):
            if covered := set(other.covers(layout)):
                yield other, covered


def _modification(settings: Settings) -> Modification:
    return Modification(**vars(settings))
