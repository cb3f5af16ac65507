"""The ways in which a Δh reaches a frozen module. All are picklable, and leave the module as it is.

A `Place` holds all deltas of all attachments that land at one point of the forward pass, whoever came
first. Deltas of one stage all read the same values, and their changes are summed: their order means
nothing. A later stage reads what the earlier ones have left.
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

from petl.backbones.plan import Block

F = TypeVar("F", bound=nn.Module)


@dataclass(kw_only=True)
class Serves(Generic[F]):
    """The forms that one hook, or one group of them, serves."""

    forms: list[F] = field(default_factory=list)

    def discard(self, gone: Collection[nn.Module]) -> bool:
        """Forget these forms; whether none is left."""
        self.forms = [form for form in self.forms if form not in gone]
        return not self.forms


class Stage(IntEnum):
    """The order of changes at one place."""

    LINEAR = 0  # of the linear: part of it, as after merging
    RESCALE = 1  # of the linear's output
    SUB_LAYER = 2
    AFTER_RESIDUAL = 3


class Reads(Enum):
    """What a Δh is computed from."""

    INPUT = "the input of the module hooked"
    VALUE = "the value changed, as the earlier stages left it"
    TAP = "what the place's tap kept: the input of the sub-layer"
    DIFFERENCE = "the value less the tap's: the sub-layer's output, where dropout is a function call"


@dataclass
class Tap:
    """Forward pre-hook: keeps a module's first input until `take` is called, once per forward pass.

    Where the input is taken outside the layer that holds the module, it waits for `Open`: gradient
    checkpointing runs the layer's inside again, and what that kept would be held in vain.
    """

    waits: bool = False
    closed: bool = False
    value: Tensor | None = None
    recorded: bool = True

    def __getstate__(self) -> dict[str, Any]:
        """A copy keeps nothing of a pass that failed."""
        return {**vars(self), "value": None}

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Keep the first input."""
        if self.closed:
            return
        self.closed, self.recorded = self.waits, torch.is_grad_enabled()
        self.value = inputs[0] if inputs else named["hidden_states"]

    def take(self) -> Tensor:
        """The kept input, let go of so that no activation outlives the pass."""
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
class Open:
    """Forward pre-hook of a layer: its tap keeps the next input."""

    tap: Tap

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Open the tap."""
        self.tap.closed = False


@dataclass(frozen=True, eq=False)
class Entry:
    """One Δh at a place; with `block`, it changes that part of a fused linear's output."""

    delta: nn.Module
    stage: Stage
    reads: Reads
    block: Block | None = None

    def change(self, source: Tensor) -> Tensor:
        """Δh, as wide as the value that it is added to."""
        block = self.block
        if block is None:
            return self.delta(source)  # type: ignore[no-any-return]
        if self.reads is Reads.VALUE:
            source = source[..., block.start : block.start + block.width]
        return functional.pad(self.delta(source), (block.start, block.total - block.start - block.width))


@dataclass
class Place:
    """The deltas at one point, and the tap that feeds the parallel ones of a sub-layer."""

    tap: Tap | None = None
    entries: list[Entry] = field(default_factory=list)

    def discard(self, gone: Collection[nn.Module]) -> bool:
        """Forget these deltas; whether none is left."""
        self.entries = [entry for entry in self.entries if entry.delta not in gone]
        return not self.entries

    def apply(self, value: Tensor, given: Tensor) -> Tensor:
        """The value with all changes; `given` is the input of the module hooked."""
        tapped = self.tap.take() if self.tap else given
        for _, stage in groupby(sorted(self.entries, key=lambda entry: entry.stage), key=lambda entry: entry.stage):
            before = value
            for entry in stage:
                if entry.reads is Reads.DIFFERENCE:
                    source = before - tapped
                else:
                    source = {Reads.INPUT: given, Reads.VALUE: before, Reads.TAP: tapped}[entry.reads]
                value = value + entry.change(source)
        return value


@dataclass(frozen=True, eq=False)
class AtInput:
    """Forward pre-hook: changes a module's first input."""

    place: Place

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The changed inputs."""
        return (self.place.apply(inputs[0], inputs[0]), *inputs[1:])


@dataclass(frozen=True, eq=False)
class AtOutput:
    """Forward hook: changes a module's output."""

    place: Place

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """The changed output."""
        return self.place.apply(output, inputs[0])


@dataclass(frozen=True, eq=False)
class AfterNorm:
    """Forward hook of a norm: N(z + Σ Δh(N(z))), the norm used twice (Pfeiffer adapters in post-norm models)."""

    place: Place

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """The changed output."""
        changes: Sequence[Tensor] = [entry.change(output) for entry in self.place.entries]
        # Not by calling the module, whose hooks have run.
        changed: Tensor = module.forward(inputs[0] + sum(changes[1:], changes[0]))
        return changed
