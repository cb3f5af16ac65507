"""What a functional form consists of: its rules, tensors, module, and names; `petl.forms.table` has all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from petl.forms.exchange import PeftLayout
from petl.forms.vocabulary import LINEARS, Composition, Delta, Insertion, LayerNorm, Shapes, Site

if TYPE_CHECKING:
    from petl.forms.modules import Change

PARALLEL: Final = (Insertion.PARALLEL,)
IN_LAYERS: Final = ("layers", "stacks")  # options of every form that is inside the layers


def _no_shapes(delta: Delta) -> Shapes:
    return {}


@dataclass(frozen=True, kw_only=True)
class FunctionalForm:
    """One functional form of Δh.

    Rules: `sites`, `insertions` and `compositions` that it allows, and whether it is `sized` (has an r or l).
    `options` are further fields of a modification that mean something to it; `reasons` says of a field why the
    rule is no matter of taste.

    Tensors: `shapes` gives those of its own, stored under the delta's name; norm and learned scale are common to all
    forms. `module` builds the torch module. The paper counts matrices only, except where `counts_vectors`. A form
    at the whole model has no module but takes over parameters of the model, named `owned` in messages: `owns` picks
    them from the names of the pretrained model's, of which the pooler's are given too, and of a frozen head's.

    Merging: `unmergeable` says why no weight of the frozen model can hold it; where it is "", the module, if there is
    one, has a `weight_change` or a `rescaling`.

    Exchange: `peft` is the method of Hugging Face PEFT that has it and `layout` that method's layout, given once a
    method; where PEFT has none, `not_in_peft` says why.

    Names, as patterns of the fields of a modification: `phrase` in a description, where `sites` are all those of
    alike modifications, `label` in flat parameters, and there the `size_name`.
    """

    sites: tuple[Site, ...]
    insertions: tuple[Insertion, ...] = PARALLEL
    compositions: tuple[Composition, ...] = (Composition.ADD,)
    sized: bool = True
    options: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)

    shapes: Callable[[Delta], Shapes] = _no_shapes
    module: Callable[..., Change] | None = None
    counts_vectors: bool = False
    owned: str = ""
    owns: Callable[[Sequence[str], Sequence[str], Sequence[str]], list[str]] | None = None

    unmergeable: str = "no weight of the frozen model can hold it"

    peft: str = ""
    layout: PeftLayout | None = None
    not_in_peft: str = "PEFT has no such adapters"

    phrase: str = "{form}"
    label: str = "{form}"
    size_name: str = "size"

    @property
    def at_linears(self) -> bool:
        """Return whether it changes single linears: alike changes of several are then described as one."""
        return any(site in LINEARS for site in self.sites)

    def stored_shapes(self, delta: Delta) -> dict[str, tuple[int, ...]]:
        """Return name, without the delta's own, -> shape of each tensor that is stored."""
        m, shapes = delta.modification, dict(self.shapes(delta))
        if m.layer_norm is not LayerNorm.NONE:
            shapes |= {"norm.weight": (delta.normed,), "norm.bias": (delta.normed,)}
        if m.composition is Composition.LEARNED_SCALE:
            shapes["scale"] = (1,)
        return shapes
