"""The ways in which a Δh reaches a frozen module. All are picklable, and leave the module as it is.

A `HookPoint` holds all changes, of all attachments, that land at one point of the forward pass. Changes of one stage
all read the same values and are summed, so their order means nothing. A later stage reads what the earlier ones
have left.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from itertools import groupby
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from petl.forms.vocabulary import Block

C = TypeVar("C", bound=nn.Module)


@dataclass(kw_only=True)
class HookGroup(Generic[C]):
    """The changes that one hook, or one group of hooks, serves."""

    changes: list[C] = field(default_factory=list)

    def discard(self, removed: Collection[nn.Module]) -> bool:
        """Forget these changes, and return whether none remains."""
        self.changes = [change for change in self.changes if change not in removed]
        return not self.changes


class Stage(IntEnum):
    """The order of changes at one point."""

    LINEAR = 0  # of the linear: part of it, as after merging
    RESCALE = 1  # of the linear's output
    SUB_LAYER = 2
    AFTER_RESIDUAL = 3


class Source(Enum):
    """What a Δh is computed from."""

    INPUT = "the input of the module hooked"
    VALUE = "the value changed, as the earlier stages left it"
    TAP = "what the point's tap recorded: the input of the sub-layer"
    DIFFERENCE = "the value less the tap's: the sub-layer's output, where dropout is a function call"


@dataclass
class InputTap:
    """Forward pre-hook that keeps a module's first input until `take` is called, once per forward pass.

    Where the input is taken outside the layer that holds the module, the tap waits for `OpenTap`: gradient
    checkpointing runs the layer's inside again, and what the tap kept then would never be taken.
    """

    waits: bool = False
    closed: bool = False
    value: Tensor | None = None
    recorded: bool = True  # by autograd

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what a pass that failed has left."""
        return {**vars(self), "value": None}

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self.closed:
            return
        self.closed, self.recorded = self.waits, torch.is_grad_enabled()
        self.value = inputs[0] if inputs else named["hidden_states"]

    def take(self) -> Tensor:
        """Return the input, and let go of it, so that no activation outlives the pass."""
        value, self.value = self.value, None
        if value is None:
            raise RuntimeError("the module that a parallel Δh reads did not run before the one it is added to")
        if torch.is_grad_enabled() and not self.recorded:
            raise RuntimeError(
                "re-entrant checkpointing hides the residual stream, which changes of this family's FFN read, from "
                "autograd: use gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
        return value


@dataclass(frozen=True, eq=False)
class OpenTap:
    """Forward pre-hook of a layer that lets its tap keep the next input."""

    tap: InputTap

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.tap.closed = False


@dataclass(frozen=True, eq=False)
class HookedChange:
    """One Δh at a point; with `block`, it changes that part of a fused linear's output."""

    change: nn.Module
    stage: Stage
    source: Source
    block: Block | None = None

    def __call__(self, source: Tensor) -> Tensor:
        """Return Δh, as wide as the value that it is added to."""
        block = self.block
        if block is None:
            return self.change(source)  # type: ignore[no-any-return]
        if self.source is Source.VALUE:
            source = source[..., block.start : block.start + block.width]
        return functional.pad(self.change(source), (block.start, block.total - block.start - block.width))


@dataclass
class HookPoint:
    """The changes at one point of the forward pass, and the tap that feeds the parallel ones of a sub-layer."""

    tap: InputTap | None = None
    changes: list[HookedChange] = field(default_factory=list)

    def discard(self, removed: Collection[nn.Module]) -> bool:
        """Forget these changes, and return whether none remains."""
        self.changes = [hooked for hooked in self.changes if hooked.change not in removed]
        return not self.changes

    def apply(self, value: Tensor, module_input: Tensor) -> Tensor:
        """Return the value with all changes; `module_input` is that of the module hooked."""
        tapped = self.tap.take() if self.tap else module_input
        for _, stage in groupby(sorted(self.changes, key=lambda hooked: hooked.stage), key=lambda hooked: hooked.stage):
            before = value
            for hooked in stage:
                if hooked.source is Source.DIFFERENCE:
                    source = before - tapped
                else:
                    source = {Source.INPUT: module_input, Source.VALUE: before, Source.TAP: tapped}[hooked.source]
                value = value + hooked(source)
        return value


@dataclass(frozen=True, eq=False)
class ChangeInput:
    """Forward pre-hook that changes a module's first input."""

    point: HookPoint

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.point.apply(inputs[0], inputs[0]), *inputs[1:])


@dataclass(frozen=True, eq=False)
class ChangeOutput:
    """Forward hook that changes a module's output."""

    point: HookPoint

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return self.point.apply(output, inputs[0])


@dataclass(frozen=True, eq=False)
class ChangeInNorm:
    """Forward hook of a norm: N(z + Σ Δh(N(z))), the norm used twice (Pfeiffer adapters in post-norm models)."""

    point: HookPoint

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        changes: Sequence[Tensor] = [hooked(output) for hooked in self.point.changes]
        # Not by calling the module, whose hooks have run.
        changed: Tensor = module.forward(inputs[0] + sum(changes[1:], changes[0]))
        return changed
