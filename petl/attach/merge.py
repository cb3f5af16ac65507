"""Folding what is linear into the frozen weights, so that the design costs nothing any more.

    low rank     W + s B A
    rescale      diag(v) W and v ⊙ b at a linear's output; W diag(v) at the FFN's activations, the input of W_down

The order is that of `hooks.Stage`: a low rank at W_down reads the activations as they are rescaled, and an
output is rescaled with its low-rank change. Rescales of one place read the same value: 1 + Σ (v - 1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, TypeAlias

import torch
from torch import Tensor

from petl.attach.hooks import AtInput, AtOutput, Stage
from petl.attach.places import Places
from petl.backbones.plan import Block, Delta
from petl.design import Design, DesignError, Form, Modification, Site
from petl.forms.form import Change, LowRank, Rescale

# Why no weight of the frozen model can hold a form.
UNMERGEABLE: Final[Mapping[Form, str]] = {
    Form.BOTTLENECK: "its ReLU is not linear",
    Form.MULTI_HEAD: "its ReLU is not linear",
    Form.PREFIX: "its keys and values stand in the sequence, where no weight is",
    Form.PROMPT: "its rows stand in the sequence, where no weight is",
}

Parts: TypeAlias = list[tuple[Delta, Change]]


def fold(
    design: Design, deltas: Iterable[Delta], forms: Mapping[str, Change], places: Places, taken: Collection[str]
) -> dict[str, Tensor]:
    """Path of each parameter of the model that changes -> its new value, detached; the model is left alone.

    Sums and products are taken in float64 and rounded once. `taken` are the paths of the parameters
    that other attachments own. Raises DesignError, listing all that stands in the way.
    """
    names = [f"{_words(m)} ({UNMERGEABLE[m.form]})" for m in design.modifications if m.form in UNMERGEABLE]
    if names:
        raise DesignError(f"only what is linear folds into the weights; what cannot be merged: {'; '.join(names)}")
    linears: dict[str, Parts] = {}
    for delta in deltas:
        path = ".".join(filter(None, (places.base, delta.layer, delta.linear)))
        linears.setdefault(path, []).append((delta, forms[delta.name]))
    model, changed = places.model, dict[str, Tensor]()
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    faults: list[str] = []
    for path, parts in linears.items():
        linear = model.get_submodule(path)
        faults += _clashes(path, parts, places)
        for leaf in ("weight", "bias"):
            frozen = linear._parameters.get(leaf)
            if frozen is None or (leaf == "bias" and not _rescaled(parts)):
                continue
            if f"{path}.{leaf}" in taken:
                faults.append(f"{path}.{leaf} belongs to another attachment")
            elif uses[id(frozen)] > 1:
                faults.append(f"{path}.{leaf} is tied to another place, which would change with it")
            elif not faults:
                changed[f"{path}.{leaf}"] = _weight(frozen, parts, places) if leaf == "weight" else _bias(frozen, parts)
    if faults:
        raise DesignError(f"{design.describe()} cannot be merged as the model stands: {'; '.join(faults)}")
    return changed


def _weight(frozen: Tensor, parts: Parts, places: Places) -> Tensor:
    """The new weight; (out, in), or (in, out) in families that store it so."""
    transposed = places.family.transposed
    whole = frozen.detach().to(torch.float64, copy=True)
    rows = whole.mT if transposed else whole  # a view: (out, in)
    for delta, form in parts:
        if isinstance(form, LowRank):
            scale = form.scale.detach().double() if isinstance(form.scale, Tensor) else form.scale
            rows[_rows(delta)] += scale * (form.b.detach().double() @ form.a.detach().double())
    rows *= _vector(parts, rows[:, 0], hidden=False)[:, None]
    rows *= _vector(parts, rows[0], hidden=True)
    return whole.to(frozen.dtype)


def _bias(frozen: Tensor, parts: Parts) -> Tensor:
    whole = frozen.detach().double()
    return (whole * _vector(parts, whole, hidden=False)).to(frozen.dtype)


def _vector(parts: Parts, like: Tensor, *, hidden: bool) -> Tensor:
    """What multiplies the linear's output or, with `hidden`, its input: as wide as `like`."""
    vector = torch.ones_like(like)
    for delta, form in parts:
        if isinstance(form, Rescale) and hidden is _is_hidden(delta):
            vector[_rows(delta)] += form.vector.detach().double() - 1
    return vector


def _rescaled(parts: Parts) -> bool:
    return any(isinstance(form, Rescale) and not _is_hidden(delta) for delta, form in parts)


def _is_hidden(delta: Delta) -> bool:
    return delta.modification.site is Site.FFN_HIDDEN


def _rows(delta: Delta) -> slice:
    block = delta.block
    return slice(None) if block is None else slice(block.start, block.start + block.width)


def _clashes(path: str, parts: Parts, places: Places) -> Iterator[str]:
    """What other attachments have at the linear that acts beside a rescale: folded in, it would act after it."""
    mine = {form for _, form in parts}
    for delta, form in parts:
        if isinstance(form, Rescale):
            hook = AtInput if _is_hidden(delta) else AtOutput
            beside = [entry for entry in places.entries(path, hook) if entry.stage <= Stage.RESCALE]
            if _is_hidden(delta):
                beside += [entry for entry in places.entries(path, AtOutput) if entry.stage is Stage.LINEAR]
            if any(entry.delta not in mine and _meet(entry.block, delta.block) for entry in beside):
                yield f"another attachment changes {path} beside {delta.name}: merge or detach that one first"


def _meet(first: Block | None, second: Block | None) -> bool:
    """Whether two parts of a linear's output are the same: they are equal or apart, and None is the whole."""
    return first is None or second is None or first.start == second.start


def _words(m: Modification) -> str:
    return Design((m,), head=False).describe()
