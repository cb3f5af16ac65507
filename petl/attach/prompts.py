"""Prompts: trained rows in front of the embedded input, on every kind of model.

The module that takes the token ids (the base model, or the encoder) is given embeddings instead, l
rows longer. Kept positions: the tokens have the positions that they would have without a prompt, and
the prompt's rows are put in past the position embeddings, which add nothing to them (the paper's
code). Shifted: the rows are embeddings like any other, and all positions count from the first of them
(Hugging Face PEFT).

The mask grows by l visible columns. Where the head reads rows (encoder-only and decoder-only models),
the prompt's rows are cut off behind the last layer; a decoder attends to them, so there they stay,
and the mask of its cross-attention grows too. In cached generation the rows are in the cache after
the first step.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from petl.attach.hooks import Serves
from petl.backbones.families import Family
from petl.design import DesignError, Positions
from petl.forms.form import Prompt


@dataclass
class Prompts(Serves[Prompt]):
    """All prompts of a model, and where the present forward pass stands with them."""

    family: Family
    rows: dict[Positions, Tensor] = field(default_factory=dict)  # of this pass, from entrance to exit
    tokens: int = 0  # of this pass, 0 where the rows are in its cache

    def __getstate__(self) -> dict[str, Any]:
        """A copy keeps nothing of a pass that failed."""
        return {**vars(self), "rows": {}}

    @property
    def length(self) -> int:
        """Rows of all prompts."""
        return sum(form.modification.size for form in self.forms)

    @property
    def kept(self) -> int:
        """Those without a position: they come first."""
        return sum(form.modification.size for form in self.forms if form.modification.positions is Positions.KEPT)

    def make(self, batch: int) -> Tensor:
        """(batch, length, width): kept ones first."""
        self.rows = {
            kind: torch.cat([form(batch) for form in self.forms if form.modification.positions is kind], 1)
            for kind in {form.modification.positions for form in self.forms}
        }
        return torch.cat([self.rows[kind] for kind in Positions if kind in self.rows], 1)


@dataclass(frozen=True, eq=False)
class Enter:
    """Forward pre-hook of the module that takes the token ids."""

    prompts: Prompts

    def __call__(
        self, module: Any, inputs: tuple[Any, ...], named: Mapping[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]]:
        """Embeddings with the prompt in front, and all that goes with them."""
        prompts = self.prompts
        given = {**dict(zip(inspect.signature(module.forward).parameters, inputs, strict=False)), **named}
        ids, embedded = given.pop("input_ids", None), given.pop("inputs_embeds", None)
        if ids is not None:
            embedded = module.get_input_embeddings()(ids)
        if embedded is None:
            raise DesignError("a prompt needs input_ids or inputs_embeds; received neither")
        cache = given.get("past_key_values")
        seen = cache.get_seq_length() if cache is not None else 0
        first, tokens = not seen, embedded.shape[1]
        prompts.rows = {}  # of a pass that failed
        prompts.tokens = tokens if first else 0
        if first:
            embedded = torch.cat((prompts.make(embedded.shape[0]).to(embedded.dtype), embedded), 1)
        mask = given.get("attention_mask")
        if seen:
            self._check(seen - prompts.length + tokens, mask, given.get("position_ids"))
        if mask is None and first:
            mask = embedded.new_ones(embedded.shape[0], tokens, dtype=torch.long)
        if mask is not None:
            given["attention_mask"] = _wider(mask, prompts.length)
        if "position_ids" in inspect.signature(module.forward).parameters and not prompts.family.input.table:
            own = given.get("position_ids")
            if own is None:
                own = self._positions(module, ids, tokens, embedded, max(0, seen - prompts.length))
                if not prompts.family.input.entry and isinstance(mask, Tensor) and mask.ndim == 2:
                    own = count(mask, tokens)
            given["position_ids"] = self._shifted(own, first)
        types = given.get("token_type_ids")
        if types is not None and first:
            given["token_type_ids"] = functional.pad(types, (prompts.length, 0))
        return (), {**given, "inputs_embeds": embedded}

    def _check(self, tokens: int, mask: Any, positions: Tensor | None) -> None:
        """That no token is missing: `generate` takes the prompt's rows in a cache for some."""
        told = tokens
        if isinstance(mask, Tensor) and mask.ndim == 2:
            told = mask.shape[1]
        elif mask is None and positions is not None:
            told = int(positions[..., -1].max()) + 1
        if told != tokens:
            raise DesignError(
                f"the cache holds {self.prompts.length} rows of prompts, and `generate` drops as many tokens where "
                f"it goes on from such a cache; received {tokens} tokens of {told}"
            )

    def _positions(self, module: Any, ids: Tensor | None, tokens: int, embedded: Tensor, seen: int) -> Tensor:
        """The positions that the model would give its tokens by itself."""
        family = self.prompts.family
        if family.counts_tokens:
            padding = int(module.config.pad_token_id)
            if ids is None:
                return torch.arange(padding + 1, padding + 1 + tokens, device=embedded.device)[None]
            there = ids.ne(padding).long()
            return there.cumsum(1) * there + padding
        return torch.arange(seen, seen + tokens, device=embedded.device)[None]

    def _shifted(self, own: Tensor, first: bool) -> Tensor:
        """The tokens' positions behind those of the prompts. What the kept rows get in a table is overwritten later."""
        prompts, family = self.prompts, self.prompts.family
        kept = prompts.kept if family.input.entry else 0  # relative positions: a prompt is in front of the tokens
        start = family.reserved if family.counts_tokens else 0
        own = torch.where(own >= start, own + prompts.length - kept, own)
        if not first:
            return own
        rows = torch.arange(start, start + prompts.length - kept, device=own.device)
        front = torch.cat((rows.new_full((kept,), start), rows))
        return torch.cat((front.expand(*own.shape[:-1], -1), own), -1)


@dataclass(frozen=True, eq=False)
class Count:
    """Forward pre-hook of a position table whose module is given no position_ids: positions as `Enter` gives them."""

    prompts: Prompts

    def __call__(
        self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same call with position_ids."""
        prompts = self.prompts
        if not prompts.rows:
            return inputs, named
        counted = torch.arange(inputs[0].shape[1] - prompts.kept, device=inputs[0].device)
        return inputs, {**named, "position_ids": functional.pad(counted, (prompts.kept, 0))}


@dataclass(frozen=True, eq=False)
class Overwrite:
    """Forward pre-hook of what reads the sum of token and position embeddings: kept rows are the prompt, no more."""

    prompts: Prompts

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The sum with the kept rows replaced."""
        rows = self.prompts.rows.get(Positions.KEPT)
        if rows is None:
            return inputs
        return (torch.cat((rows.to(inputs[0].dtype), inputs[0][:, rows.shape[1] :]), 1), *inputs[1:])


@dataclass(frozen=True, eq=False)
class Leave:
    """Forward hook behind the last layer and of the whole: forgets the rows and, with `cut`, takes them off the output.

    Behind the last layer, since a pooler reads the first token; of the whole, which gives the hidden states.
    """

    prompts: Prompts
    cut: bool

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """The output of the tokens."""
        prompts = self.prompts
        prompts.rows = {}
        if not (self.cut and prompts.tokens):
            return output
        if isinstance(output, tuple):
            return self._of_tokens(output)
        for key in {"last_hidden_state", "hidden_states"} & output.keys():
            output[key] = self._of_tokens(output[key])
        return output

    def _of_tokens(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._of_tokens, value))
        length, tokens = self.prompts.length, self.prompts.tokens
        states = isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] == length + tokens
        return value[:, length:] if states else value


@dataclass(frozen=True, eq=False)
class Cross:
    """Forward pre-hook of a decoder: its cross-attention sees the prompt's rows."""

    prompts: Prompts

    def __call__(
        self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same call with the wider mask."""
        mask, states = named.get("encoder_attention_mask"), named.get("encoder_hidden_states")
        if mask is None or states is None or mask.shape[-1] == states.shape[1]:
            return inputs, named
        return inputs, {**named, "encoder_attention_mask": _wider(mask, self.prompts.length)}


def count(mask: Tensor, tokens: int) -> Tensor:
    """Positions of the last `tokens` columns, counted from each row's first that is no padding."""
    first = mask.long().argmax(-1, keepdim=True)
    return (torch.arange(mask.shape[1], device=mask.device) - first).clamp(min=0)[:, -tokens:]


@dataclass
class Rotary(Serves[nn.Module]):
    """Forward pre-hook of a model with rotary positions: they count no padding on the left.

    By itself such a model has no use for that, since only differences of positions enter. But what is
    in front of the tokens, or is compared with the rotated queries, has none that padding would shift.
    """

    def __call__(
        self, module: Any, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same call with position_ids."""
        given = {**dict(zip(inspect.signature(module.forward).parameters, inputs, strict=False)), **named}
        mask, rows = given.get("attention_mask"), given.get("input_ids")
        rows = given.get("inputs_embeds") if rows is None else rows
        if given.get("position_ids") is not None or not isinstance(mask, Tensor) or mask.ndim != 2 or rows is None:
            return inputs, named
        return (), {**given, "position_ids": count(mask, rows.shape[1])}


def _wider(mask: Any, length: int) -> Tensor:
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise DesignError("a prompt widens masks of shape (batch, tokens); received another (a static cache makes one)")
    return functional.pad(mask, (length, 0), value=1)
