"""The four ways in which a Δh reaches a frozen module. All are picklable, and leave the module as it is.

Deltas at one place all read the frozen module's own input or output, and their changes are summed:
their order means nothing. What lies further on, in the forward pass, sees the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Tap:
    """Forward pre-hook: keeps a module's input until `take` is called, once per forward pass."""

    value: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keep the first input."""
        self.value = inputs[0]

    def take(self) -> Tensor:
        """The kept input, let go of so that no activation outlives the pass."""
        value, self.value = self.value, None
        if value is None:
            raise RuntimeError("the module that a parallel Δh reads did not run before the one it is added to")
        return value


@dataclass(frozen=True)
class AddToLinear:
    """Forward hook of a linear: h + Σ Δh(x), x its input."""

    deltas: Sequence[nn.Module]

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """The changed output."""
        return _add(output, self.deltas, inputs[0])


@dataclass(frozen=True)
class AddToInput:
    """Forward pre-hook: the input + Σ Δh(x), x kept by a tap."""

    tap: Tap
    deltas: Sequence[nn.Module]

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The changed inputs."""
        return (_add(inputs[0], self.deltas, self.tap.take()), *inputs[1:])


@dataclass(frozen=True)
class AddToOutput:
    """Forward hook: h + Σ Δh(h) + Σ Δh(x), x kept by a tap where there are parallel deltas."""

    sequential: Sequence[nn.Module]
    parallel: Sequence[nn.Module] = ()
    tap: Tap | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """The changed output."""
        changed = _add(output, self.sequential, output)
        return changed if self.tap is None else _add(changed, self.parallel, self.tap.take())


def _add(h: Tensor, deltas: Sequence[nn.Module], x: Tensor) -> Tensor:
    for delta in deltas:
        h = h + delta(x)
    return h
