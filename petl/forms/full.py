"""Full: x ΔW of full rank, everywhere, which is full fine-tuning; the pooler is part of it."""

from __future__ import annotations

from collections.abc import Sequence

from petl.forms.form import FunctionalForm
from petl.forms.vocabulary import Site


def _owns(base: Sequence[str], pooler: Sequence[str], head: Sequence[str]) -> list[str]:
    return list(base)


FULL = FunctionalForm(
    sites=(Site.MODEL,),
    sized=False,
    owned="parameters",
    owns=_owns,
    unmergeable="",
    not_in_peft="a fully trained model is no adapter: merge() it and save the model",
)
