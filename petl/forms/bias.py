"""Bias: a constant, the biases that the model has (BitFit, Ben Zaken et al., 2022).

PEFT has it beside a LORA, as bias="all".
"""

from __future__ import annotations

from collections.abc import Sequence

from petl.forms.form import FunctionalForm
from petl.forms.vocabulary import Site


def is_bias(name: str) -> bool:
    """Judge by the last word alone: t5's `relative_attention_bias.weight` is an embedding."""
    return name.rpartition(".")[2] == "bias"


def _owns(base: Sequence[str], pooler: Sequence[str], head: Sequence[str]) -> list[str]:
    """Take every bias outside the pooler; a head that trains owns its biases itself."""
    return [name for name in (*base, *head) if is_bias(name) and name not in pooler]


BIAS = FunctionalForm(sites=(Site.MODEL,), sized=False, owned="biases", owns=_owns, unmergeable="", peft="LORA")
