"""Folding what is linear into the frozen weights, so that the design costs nothing any more.

    ΔW of a linear    W + ΔW                     low rank: s B A
    rescaling by v    diag(v) W and v ⊙ b        at a linear's output
                      W diag(v)                  at the FFN's activations, the input of W_down

The order is that of `hooks.Stage`: a low rank at W_down reads the activations as they are rescaled, and an
output is rescaled with its low-rank change. Rescalings of one point read the same value: 1 + Σ (v - 1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from petl.attach.hook_points import HookPoints
from petl.attach.hooks import ChangeInput, ChangeOutput, Stage
from petl.design import Design, DesignError, Site
from petl.forms.modules import Change
from petl.forms.vocabulary import Block, Delta

DeltaChanges: TypeAlias = list[tuple[Delta, Change]]


def fold(
    design: Design,
    deltas: Iterable[Delta],
    changes: Mapping[str, Change],
    points: HookPoints,
    claimed: Collection[str],
) -> dict[str, Tensor]:
    """Return path -> new value, detached, of each parameter of the model that changes; the model stays as it is.

    Sums and products are taken in float64 and rounded once. `claimed` are the paths of the parameters
    that other attachments own. Raises DesignError, listing all that stands in the way.
    """
    faults = [
        f"{Design((m,), head=False).describe()} ({m.rule.unmergeable})"
        for m in design.modifications
        if m.rule.unmergeable
    ]
    if faults:
        raise DesignError(f"only what is linear folds into the weights; what cannot be merged: {'; '.join(faults)}")
    linears: dict[str, DeltaChanges] = {}
    for delta in deltas:
        path = ".".join(filter(None, (points.base, delta.layer, delta.linear)))
        linears.setdefault(path, []).append((delta, changes[delta.name]))
    model, folded = points.model, dict[str, Tensor]()
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for path, parts in linears.items():
        linear = model.get_submodule(path)
        faults += _clashes(path, parts, points)
        for leaf in ("weight", "bias"):
            frozen = linear._parameters.get(leaf)
            if frozen is None or (leaf == "bias" and not _rescales_output(parts)):
                continue
            if f"{path}.{leaf}" in claimed:
                faults.append(f"{path}.{leaf} belongs to another attachment")
            elif uses[id(frozen)] > 1:
                faults.append(f"{path}.{leaf} is tied to another place, which would change with it")
            elif not faults:
                folded[f"{path}.{leaf}"] = _weight(frozen, parts, points) if leaf == "weight" else _bias(frozen, parts)
    if faults:
        raise DesignError(f"{design.describe()} cannot be merged as the model stands: {'; '.join(faults)}")
    return folded


def _weight(frozen: Tensor, parts: DeltaChanges, points: HookPoints) -> Tensor:
    """Return the new weight; (out, in), or (in, out) in families that store it so."""
    weight = frozen.detach().to(torch.float64, copy=True)
    rows = weight.mT if points.family.transposed else weight  # a view: (out, in)
    for delta, change in parts:
        if (weight_change := change.weight_change()) is not None:
            rows[delta.rows] += weight_change
    rows *= _factor(parts, rows[:, 0], hidden=False)[:, None]
    rows *= _factor(parts, rows[0], hidden=True)
    return weight.to(frozen.dtype)


def _bias(frozen: Tensor, parts: DeltaChanges) -> Tensor:
    bias = frozen.detach().double()
    return (bias * _factor(parts, bias, hidden=False)).to(frozen.dtype)


def _factor(parts: DeltaChanges, like: Tensor, *, hidden: bool) -> Tensor:
    """Return what multiplies the linear's output or, with `hidden`, its input: as wide as `like`."""
    factor = torch.ones_like(like)
    for delta, change in parts:
        if (v := change.rescaling()) is not None and hidden is _is_hidden(delta):
            factor[delta.rows] += v - 1
    return factor


def _rescales_output(parts: DeltaChanges) -> bool:
    return any(change.rescaling() is not None and not _is_hidden(delta) for delta, change in parts)


def _is_hidden(delta: Delta) -> bool:
    return delta.modification.site is Site.FFN_HIDDEN


def _clashes(path: str, parts: DeltaChanges, points: HookPoints) -> Iterator[str]:
    """Yield what other attachments have beside a rescaling of the linear: folded in, it would act after them."""
    own = {change for _, change in parts}
    for delta, change in parts:
        if change.rescaling() is not None:
            hook = ChangeInput if _is_hidden(delta) else ChangeOutput
            beside = [hooked for hooked in points.changes_at(path, hook) if hooked.stage <= Stage.RESCALE]
            if _is_hidden(delta):
                beside += [hooked for hooked in points.changes_at(path, ChangeOutput) if hooked.stage is Stage.LINEAR]
            if any(hooked.change not in own and _overlap(hooked.block, delta.block) for hooked in beside):
                yield f"another attachment changes {path} beside {delta.name}: merge or detach that one first"


def _overlap(first: Block | None, second: Block | None) -> bool:
    """Return whether two parts of a linear's output overlap; equal ones do, other ones do not, None is the whole."""
    return first is None or second is None or first.start == second.start
