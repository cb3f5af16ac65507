"""Prompt: trained rows in front of the embedded input (Lester et al., 2021).

PEFT's PROMPT_TUNING: prompt_embeddings (l, width).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from petl.forms.exchange import PROMPT_EMBEDDINGS, Found, PeftLayout, Target, Tensors
from petl.forms.form import FunctionalForm
from petl.forms.virtual import VIRTUAL_FIELDS, matrix, require_same, virtual_tokens
from petl.forms.vocabulary import Delta, Positions, Settings, Shapes, Site

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from petl.forms.modules import Change


def _shapes(delta: Delta) -> Shapes:
    return {"weight": (delta.modification.size, delta.adds)}


@cache
def _class() -> type[Change]:
    import torch
    from torch import nn

    from petl.forms.modules import Change

    class Prompt(Change):
        """A batch's size -> rows, (batch, l, width). Dropout acts on them."""

        def __init__(self, delta: Delta) -> None:
            super().__init__(delta)
            self.weight = nn.Parameter(torch.empty(delta.modification.size, delta.adds))

        def forward(self, batch: int) -> Tensor:
            return self.drop(self.weight).expand(batch, -1, -1)

        def reset(self, generator: torch.Generator) -> None:
            nn.init.normal_(self.weight, std=0.02, generator=generator)

    return Prompt


def module(delta: Delta) -> Change:
    """Build the module, without first values."""
    return _class()(delta)


def _faults(modifications: Sequence[Settings], target: Target) -> Iterator[str]:
    if not target.generates:
        yield (
            "PEFT leaves a prompt's rows before the head and gives it no ids, so that a classifier reads another row: "
            f"prompts go to models that generate; received {type(target.model).__name__}"
        )
    if target.has_positions and any(m.positions is Positions.KEPT for m in modifications):
        yield "PEFT gives a prompt the first positions and shifts the tokens: positions=shifted; received kept"


def _write(target: Target, deltas: Sequence[Delta], stored: Mapping[str, Tensor]) -> tuple[dict[str, Any], Tensors]:
    import torch

    rows = torch.cat([stored[f"{delta.name}.weight"] for delta in deltas])
    return virtual_tokens(target, len(rows), rows.shape[1]), {PROMPT_EMBEDDINGS: rows}


def _read(target: Target, config: Mapping[str, Any], tensors: Tensors) -> Found:
    rows = matrix(tensors.pop(PROMPT_EMBEDDINGS))
    length = config.get("num_virtual_tokens") or len(rows)
    if len(rows) not in (length, 2 * length):
        raise ValueError(f"the configuration has {length} virtual tokens; the prompt has shape {tuple(rows.shape)}")
    require_same(config, {"token_dim": rows.shape[1]})
    rows = rows[:length]  # an encoder-decoder's file may hold as many again, which its forward pass leaves aside
    positions = Positions.SHIFTED if target.has_positions else Positions.KEPT
    m = Settings(form="prompt", site=Site.INPUT, size=len(rows), positions=positions)
    return {target.stack: (m, {"weight": rows})}


_BEFORE_LAYERS = ": it stands in front of the input, not inside a layer (that is a prefix)"

PROMPT = FunctionalForm(
    sites=(Site.INPUT,),
    options=("dropout", "positions"),
    reasons={"layers": _BEFORE_LAYERS, "site": _BEFORE_LAYERS},
    shapes=_shapes,
    module=module,
    unmergeable="its rows stand in the sequence, where no weight is",
    peft="PROMPT_TUNING",
    layout=PeftLayout("PromptTuningConfig", "base_model.", _faults, _write, _read, VIRTUAL_FIELDS),
    size_name="length",
)
