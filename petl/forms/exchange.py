"""What a functional form needs to write and read the adapters of Hugging Face PEFT; no PEFT is imported here.

A form raises ValueError for what it cannot be; who asked makes that a DesignError, which lies above the forms.

PEFT has one LoRA or vector at a linear: deltas that meet there are stacked or summed, and the parts of a
fused linear are blocks of it. `petl.adapters.peft` reads and writes the files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from petl.forms.peft_fields import Value
from petl.forms.vocabulary import Delta, Settings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Tensors: TypeAlias = "dict[str, Tensor]"
# name of a delta without its form, such as `encoder.0.self.query` -> what is there
Found: TypeAlias = "dict[str, tuple[Settings, Tensors]]"

PROMPT_EMBEDDINGS: Final = "prompt_embeddings"


class Target(Protocol):
    """The model that an adapter is for.

    `base` is the path of the base model; `transposed`: the weights of linears are (in, out); `has_positions`: of
    a table; `rotary`: queries and keys are rotated by their position. `stack` is the first one, `depth` that of
    the last. `task` is PEFT's task type, "" for a model that it has none for.
    """

    @property
    def model(self) -> PreTrainedModel: ...
    @property
    def base(self) -> str: ...
    @property
    def family_name(self) -> str: ...
    @property
    def transposed(self) -> bool: ...
    @property
    def has_positions(self) -> bool: ...
    @property
    def rotary(self) -> bool: ...
    @property
    def stack(self) -> str: ...
    @property
    def depth(self) -> int: ...
    @property
    def task(self) -> str: ...
    @property
    def generates(self) -> bool: ...

    def deltas(self, *modifications: Settings) -> tuple[Delta, ...]:
        """Return the deltas of a design of these modifications."""
        ...

    def linear(self, delta: Delta) -> str:
        """Return the path of the delta's linear from the model."""
        ...

    def at_linears(self, form: str) -> dict[str, list[Delta]]:
        """Return path of every linear -> the deltas that `form` could have there."""
        ...


@dataclass(frozen=True)
class PeftLayout:
    """How one of PEFT's methods lays out its tensors and its configuration.

    `faults` yields the rules that modifications of its forms break. `write` gives fields of PEFT's configuration,
    and the tensors by their path from the model. `read` takes out of such tensors what it understands; raises
    ValueError for what a design cannot be. `config` is the name of PEFT's class, `prefix` what PEFT
    puts before a path. `fields` are the fields of its configuration that may be set in a file that is
    read, and what they may be: values, any where none are listed. What is read was written by others, and the
    tensors say what was trained: `read` refuses a configuration that says something else.
    """

    config: str
    prefix: str
    faults: Callable[[Sequence[Settings], Target], Iterator[str]]
    write: Callable[[Target, Sequence[Delta], Mapping[str, Tensor]], tuple[dict[str, Any], Tensors]]
    read: Callable[[Target, Mapping[str, Any], Tensors], Found]
    fields: Mapping[str, tuple[Any, ...] | Value]


PATHS: Final = "base_model.model."


def by_linear(target: Target, deltas: Iterable[Delta]) -> dict[str, list[Delta]]:
    """Return path of a linear -> its deltas."""
    linears: dict[str, list[Delta]] = {}
    for delta in deltas:
        linears.setdefault(target.linear(delta), []).append(delta)
    return linears


def linears_with(leaf: str, tensors: Tensors, known: Collection[str]) -> list[str]:
    """Return the paths of the linears that have a tensor of that name.

    Raises ValueError where one is not among `known`, those that a design can name.
    """
    paths = [name.removesuffix(f".{leaf}") for name in tensors if name.endswith(f".{leaf}")]
    if unknown := [path for path in paths if path not in known]:
        raise ValueError(f"a design changes the linears of layers; the adapter also changes {', '.join(unknown[:5])}")
    return paths


def padded(delta: Delta, rows: Tensor) -> Tensor:
    """Return the rows of a part as those of the whole fused linear, zero elsewhere."""
    if delta.block is None:
        return rows
    whole = rows.new_zeros(delta.total, *rows.shape[1:])
    whole[delta.rows] = rows
    return whole
