"""All functional forms by name. A new one is a file beside this one, a member of `Form` and a row of `FORMS`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from petl.forms.bias import BIAS
from petl.forms.bottleneck import BOTTLENECK
from petl.forms.form import FunctionalForm
from petl.forms.full import FULL
from petl.forms.low_rank import LOW_RANK
from petl.forms.multi_head import MULTI_HEAD
from petl.forms.prefix import PREFIX
from petl.forms.prompt import PROMPT
from petl.forms.rescale import RESCALE
from petl.forms.vocabulary import Delta


class Form(StrEnum):
    """Functional form of Δh (section 3.2, "functional form")."""

    BOTTLENECK = "bottleneck"  # ReLU(z W_down) W_up
    LOW_RANK = "low_rank"  # x A B
    PREFIX = "prefix"  # softmax(x W_q P_k) P_v
    MULTI_HEAD = "multi_head"  # ReLU(x W_q P_k) P_v, per head
    RESCALE = "rescale"  # h ⊙ (v - 1), v a learned vector of ones at first: (IA)³
    BIAS = "bias"  # a constant: the biases that the model has (BitFit)
    PROMPT = "prompt"  # vectors in front of the input
    FULL = "full"  # x ΔW of full rank, everywhere


FORMS: Final[Mapping[str, FunctionalForm]] = {
    Form.BOTTLENECK: BOTTLENECK,
    Form.LOW_RANK: LOW_RANK,
    Form.PREFIX: PREFIX,
    Form.MULTI_HEAD: MULTI_HEAD,
    Form.RESCALE: RESCALE,
    Form.BIAS: BIAS,
    Form.PROMPT: PROMPT,
    Form.FULL: FULL,
}


def stored_shapes(delta: Delta) -> dict[str, tuple[int, ...]]:
    """Return name, without the delta's own, -> shape of each tensor that is stored."""
    return FORMS[delta.modification.form].stored_shapes(delta)
