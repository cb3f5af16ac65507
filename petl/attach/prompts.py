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

from petl.attach.hooks import HookGroup
from petl.backbones.families import Family
from petl.backbones.layout import reserved
from petl.design import DesignError, Positions
from petl.forms.modules import Change


@dataclass
class Prompts(HookGroup[Change]):
    """All prompts of a model, and the state of the present forward pass. `positions`: None where no table has them."""

    family: Family
    positions: int | None = None
    rows: dict[Positions, Tensor] = field(default_factory=dict)  # of this pass, from entrance to exit
    tokens: int = 0  # of this pass, 0 where the rows are in its cache

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what a pass that failed has left."""
        return {**vars(self), "rows": {}}

    @property
    def length(self) -> int:
        """Return the number of rows of all prompts."""
        return sum(prompt.modification.size for prompt in self.changes)

    @property
    def kept(self) -> int:
        """Return the number of rows without a position: they come first."""
        unplaced = (m for m in (prompt.modification for prompt in self.changes) if m.positions is Positions.KEPT)
        return sum(m.size for m in unplaced)

    def make(self, batch: int) -> Tensor:
        """Return the rows of this pass, (batch, length, width), those without a position first."""
        self.rows = {
            kind: torch.cat([prompt(batch) for prompt in self.changes if prompt.modification.positions is kind], 1)
            for kind in {prompt.modification.positions for prompt in self.changes}
        }
        return torch.cat([self.rows[kind] for kind in Positions if kind in self.rows], 1)


@dataclass(frozen=True, eq=False)
class PrependPrompt:
    """Forward pre-hook of the module that takes the token ids: puts the prompt in front of their embeddings.

    The mask, positions and token types are widened to match.
    """

    prompts: Prompts

    def __call__(
        self, module: Any, inputs: tuple[Any, ...], named: Mapping[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]]:
        prompts = self.prompts
        arguments = {**dict(zip(inspect.signature(module.forward).parameters, inputs, strict=False)), **named}
        ids, embedded = arguments.pop("input_ids", None), arguments.pop("inputs_embeds", None)
        if ids is not None:
            embedded = module.get_input_embeddings()(ids)
        if embedded is None:
            raise DesignError("a prompt needs input_ids or inputs_embeds; received neither")
        cache = arguments.get("past_key_values")
        seen = cache.get_seq_length() if cache is not None else 0
        first, tokens = not seen, embedded.shape[1]
        prompts.rows = {}  # of a pass that failed
        prompts.tokens = tokens if first else 0
        if first:
            self._require_positions(tokens)
            embedded = torch.cat((prompts.make(embedded.shape[0]).to(embedded.dtype), embedded), 1)
        mask = arguments.get("attention_mask")
        if seen:
            self._check(seen - prompts.length + tokens, mask, arguments.get("position_ids"))
        if mask is None and first:
            mask = embedded.new_ones(embedded.shape[0], tokens, dtype=torch.long)
        if mask is not None:
            arguments["attention_mask"] = _wider(mask, prompts.length)
        if "position_ids" in inspect.signature(module.forward).parameters and not prompts.family.input.table:
            positions = arguments.get("position_ids")
            if positions is None:
                positions = self._positions(module, ids, tokens, embedded, max(0, seen - prompts.length))
                if not prompts.family.input.entry and isinstance(mask, Tensor) and mask.ndim == 2:
                    positions = positions_without_padding(mask, tokens)
            arguments["position_ids"] = self._shifted(positions, first, _start(module, prompts.family))
        types = arguments.get("token_type_ids")
        if types is not None and first:
            arguments["token_type_ids"] = functional.pad(types, (prompts.length, 0))
        return (), {**arguments, "inputs_embeds": embedded}

    def _require_positions(self, tokens: int) -> None:
        """Raise DesignError where the rows that take positions and the tokens are more than the model has."""
        prompts = self.prompts
        rows = prompts.length - prompts.kept
        if rows and prompts.positions is not None and rows + tokens > prompts.positions:
            raise DesignError(
                f"the model has {prompts.positions} positions, of which shifted prompts take {rows}: "
                f"{prompts.positions - rows} are left for a text; received one of {tokens} tokens"
            )

    def _check(self, tokens: int, mask: Any, positions: Tensor | None) -> None:
        """Raise DesignError where a token is missing: `generate` takes the prompt's rows in a cache for tokens."""
        expected = tokens
        if isinstance(mask, Tensor) and mask.ndim == 2:
            expected = mask.shape[1]
        elif mask is None and positions is not None:
            expected = int(positions[..., -1].max()) + 1
        if expected != tokens:
            raise DesignError(
                f"the cache holds {self.prompts.length} rows of prompts, and `generate` drops as many tokens where "
                f"it continues from such a cache; received {tokens} tokens of {expected}"
            )

    def _positions(self, module: Any, ids: Tensor | None, tokens: int, embedded: Tensor, seen: int) -> Tensor:
        """Return the positions that the model would give its tokens by itself."""
        family = self.prompts.family
        if family.counts_tokens:
            padding = int(module.config.pad_token_id)
            if ids is None:
                return torch.arange(padding + 1, padding + 1 + tokens, device=embedded.device)[None]
            real = ids.ne(padding).long()
            return real.cumsum(1) * real + padding
        return torch.arange(seen, seen + tokens, device=embedded.device)[None]

    def _shifted(self, positions: Tensor, first: bool, start: int) -> Tensor:
        """Return the tokens' positions behind those of the prompts.

        What the rows without a position get from a table is overwritten later.
        """
        prompts, family = self.prompts, self.prompts.family
        kept = prompts.kept if family.input.entry else 0  # relative positions: a prompt is in front of the tokens
        positions = torch.where(positions >= start, positions + prompts.length - kept, positions)
        if not first:
            return positions
        rows = torch.arange(start, start + prompts.length - kept, device=positions.device)
        front = torch.cat((rows.new_full((kept,), start), rows))
        return torch.cat((front.expand(*positions.shape[:-1], -1), positions), -1)


@dataclass(frozen=True, eq=False)
class AddPositions:
    """Forward pre-hook of a position table whose module takes no position_ids: adds those of `PrependPrompt`."""

    prompts: Prompts

    def __call__(
        self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        prompts = self.prompts
        if not prompts.rows:
            return inputs, named
        counted = torch.arange(inputs[0].shape[1] - prompts.kept, device=inputs[0].device)
        return inputs, {**named, "position_ids": functional.pad(counted, (prompts.kept, 0))}


@dataclass(frozen=True, eq=False)
class OverwriteEmbeddings:
    """Forward pre-hook of what reads the sum of token and position embeddings.

    It makes the rows without a position the prompt again, without what the table added to them.
    """

    prompts: Prompts

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        rows = self.prompts.rows.get(Positions.KEPT)
        if rows is None:
            return inputs
        return (torch.cat((rows.to(inputs[0].dtype), inputs[0][:, rows.shape[1] :]), 1), *inputs[1:])


@dataclass(frozen=True, eq=False)
class DropPromptRows:
    """Forward hook that forgets the rows and, with `cut`, takes them off the output.

    It is put behind the last layer, since a pooler reads the first token, and on the whole, which gives the
    hidden states.
    """

    prompts: Prompts
    cut: bool

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
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
class WidenCrossMask:
    """Forward pre-hook of a decoder that lets its cross-attention see the prompt's rows."""

    prompts: Prompts

    def __call__(
        self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        mask, states = named.get("encoder_attention_mask"), named.get("encoder_hidden_states")
        if mask is None or states is None or mask.shape[-1] == states.shape[1]:
            return inputs, named
        return inputs, {**named, "encoder_attention_mask": _wider(mask, self.prompts.length)}


def _start(module: Any, family: Family) -> int:
    """Return the first position of a token."""
    return reserved(family, module.config.pad_token_id) if family.counts_tokens else 0


def positions_without_padding(mask: Tensor, tokens: int) -> Tensor:
    """Return the positions of the last `tokens` columns, counted from each row's first that is no padding."""
    first = mask.long().argmax(-1, keepdim=True)
    return (torch.arange(mask.shape[1], device=mask.device) - first).clamp(min=0)[:, -tokens:]


@dataclass
class CountWithoutPadding(HookGroup[nn.Module]):
    """Forward pre-hook of a model with rotary positions that counts them without the padding on the left.

    The model alone does not need that, since only differences of positions enter. But what is
    in front of the tokens, or is compared with the rotated queries, has no position that padding would shift.
    """

    def __call__(
        self, module: Any, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        arguments = {**dict(zip(inspect.signature(module.forward).parameters, inputs, strict=False)), **named}
        mask, rows = arguments.get("attention_mask"), arguments.get("input_ids")
        rows = arguments.get("inputs_embeds") if rows is None else rows
        if arguments.get("position_ids") is not None or not isinstance(mask, Tensor) or mask.ndim != 2 or rows is None:
            return inputs, named
        return (), {**arguments, "position_ids": positions_without_padding(mask, rows.shape[1])}


def _wider(mask: Any, length: int) -> Tensor:
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise DesignError("a prompt widens masks of shape (batch, tokens); received another (a static cache makes one)")
    return functional.pad(mask, (length, 0), value=1)
