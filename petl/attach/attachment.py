"""Attach a design to a frozen model, and take it off again.

    before                         after attach(model, lora)
    ...self.query  Linear          ...self.query  Linear  + hook: h + Δh(x)
                                   petl.attachment_1.encoder.0.self.query.low_rank   a, b

The model keeps its modules. Deltas live in one sub-module called `petl`, so that `model.parameters()`
and DeepSpeed see them, and reach the frozen modules through hooks. What a design changes among the
model's own parameters (BitFit, full fine-tuning, the head) is replaced by clones, never written in
place: the originals may be memory that other processes read.

A model may have several attachments. Their deltas act as those of one design would, in whatever order
they came, and each can be taken off at any time. Where two own the same parameter (a bias, the head),
the model uses the clone of the latest one that is there and trains it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Final, cast

import torch
from psutil import virtual_memory
from torch import Tensor, nn
from transformers import PreTrainedModel

from petl.attach import attention
from petl.attach.build import build, build_mlp
from petl.attach.hook_points import HookPoints
from petl.attach.merge import fold
from petl.backbones.families import Family, family_of
from petl.backbones.model import ModelParameters, parameters_of
from petl.backbones.plan import deltas, unfrozen
from petl.backbones.pooling import pool, unpool
from petl.design import Design, DesignError
from petl.errors import UserError
from petl.forms.modules import Change, Heads
from petl.forms.prefix import STORED, reparameterisations
from petl.forms.table import stored_shapes
from petl.forms.vocabulary import Delta
from petl.head import MODEL

HOLDER: Final = "petl"
_FLOAT: Final = 4  # bytes


class StateError(UserError, ValueError):
    """Stored tensors that do not fit the design and the model."""


class ModuleTree(nn.Module):
    """Modules at dotted names."""

    def place(self, name: str, module: nn.Module) -> None:
        """Put `module` at the dotted `name`."""
        *path, leaf = name.split(".")
        at: nn.Module = self
        for part in path:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
        at.add_module(leaf, module)


class AttachmentHolder(nn.Module):
    """All that is attached to a model: a `ModuleTree` for each attachment, and what they share.

    A model has one from the first attachment to the end of the last. `replaced` holds, for the path of
    each parameter of the model that attachments own, the original and then their clones in order. `own_head` is what a
    pooled head stands in place of.
    """

    def __init__(self, points: HookPoints, pooling: str, own_head: dict[str, nn.Module]) -> None:
        super().__init__()
        self.count = 0
        self.points = points
        self.pooling = pooling
        self.own_head = own_head
        self.replaced: dict[str, list[tuple[int, nn.Parameter]]] = {}
        self.trained = {name: parameter.requires_grad for name, parameter in points.model.named_parameters()}
        self.attention = ""


class Attachment:
    """A design on a model, made by `attach`; as a context manager it detaches at the end.

    The tensors of the adapter are those of `count`'s `stored`. Names are stable: a delta's own name
    (`encoder.0.ffn.bottleneck.down.weight`), and for what was the model's its name from the base model
    (`encoder.layer.0.output.dense.bias`). The head is the attachment's own copy, and trains if the
    design says so; `pooling` is what it reads.
    """

    def __init__(self, model: PreTrainedModel, design: Design, number: int, pooling: str = MODEL) -> None:
        self.model = model
        self.pooling = pooling
        self.design = design
        self.deltas: tuple[Delta, ...] = ()
        self.changes: dict[str, Change] = {}
        self._number = number
        self._tree = ModuleTree()
        self._trained: dict[str, nn.Parameter] = {}
        self._owned: dict[str, nn.Parameter] = {}
        self._head: dict[str, nn.Parameter] = {}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return what trains: the adapter, then the head if it does.

        Of a prefix that is trained through an MLP these are the MLP's tensors; `state_dict` has its keys and values.
        """
        yield from self._trained.items()
        yield from self._owned.items()
        if self.design.head:
            yield from self._head.items()

    def owned_parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the adapter's parameters that take the place of the model's own: BitFit's, or all."""
        return dict(self._owned)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the adapter's tensors as they are stored, detached, not copied, without the head."""
        stored: dict[str, Tensor] = {}
        for delta in self.deltas:
            change = self.changes[delta.name]
            tensors = {name: parameter.detach() for name, parameter in change.named_parameters()}
            if delta.modification.reparameterisation:
                with torch.no_grad():
                    tensors |= dict(zip(STORED, cast(Heads, change).rows(), strict=True))
            stored |= {f"{delta.name}.{name}": tensor for name, tensor in tensors.items()}
        return stored | {name: parameter.detach() for name, parameter in self._owned.items()}

    def head_state_dict(self) -> dict[str, Tensor]:
        """Return the head's tensors that the adapter does not hold, also where they are frozen."""
        return {name: parameter.detach() for name, parameter in self._head.items()}

    def load_state_dict(self, adapter: Mapping[str, Tensor], head: Mapping[str, Tensor] | None = None) -> None:
        """Copy stored tensors in; without `head`, the head stays as it is.

        Raises StateError, listing everything missing, unknown or of another shape; then nothing was
        copied. Keys and values do not give their MLP back: attach the design `folded()`.
        """
        if self.design != self.design.folded():
            raise StateError("stored keys and values do not give an MLP back: attach the design folded()")
        tensors = {**self._trained, **self._owned}
        pairs = [(tensors, adapter)] if head is None else [(tensors, adapter), (self._head, head)]
        faults = [fault for parameters, stored in pairs for fault in _faults(parameters, stored)]
        if faults:
            raise StateError(f"the tensors do not fit {self.design.describe()}: {'; '.join(faults)}")
        with torch.no_grad():
            for parameters, stored in pairs:
                for name, parameter in parameters.items():
                    parameter.copy_(stored[name])

    def detach(self) -> None:
        """Restore the model as it was without this design, bit for bit. A second call does nothing."""
        holder = self._holder()
        if holder is None:
            return
        holder.points.discard(set(self.changes.values()))
        for path, clones in list(holder.replaced.items()):
            used = self.model.get_parameter(path)
            clones[:] = [(owner, clone) for owner, clone in clones if owner != self._number]
            _set(self.model, path, _moved(_latest(clones), used))
            if len(clones) == 1:
                del holder.replaced[path]
        delattr(holder, _child(self._number))
        if holder.attention and not holder.points.at_heads:
            self.model.set_attn_implementation(holder.attention)
            holder.attention = ""
        if not any(True for _ in holder.children()):
            delattr(self.model, HOLDER)
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(holder.trained[name])
            unpool(self.model, holder.own_head)

    def merge(self) -> PreTrainedModel:
        """Fold the design into the model's weights and take it off: a plain model with other parameters.

        The model gets new parameters for what changes; the originals are not written to. What the
        attachment owned, the head included, becomes the model's own. Other attachments stay, and act on
        the merged model as they did before; a parameter of theirs that this one's hid no longer returns.

        Raises DesignError where a part cannot be folded in (see `unmergeable` of its form) or another attachment
        stands in the way, listing all of them; nothing is changed then.
        """
        holder = self._holder()
        if holder is None:
            raise DesignError(f"{self.design.describe()} is not on the model any more: there is nothing to merge")
        require_own_head(holder.pooling, "a merged model")
        claimed = {p for p, clones in holder.replaced.items() if {owner for owner, _ in clones} - {0, self._number}}
        changed = fold(self.design, self.deltas, self.changes, holder.points, claimed)
        for clones in holder.replaced.values():
            merged = next((pair for pair in clones if pair[0] == self._number), None)
            if merged:
                # What this one hid stays hidden.
                clones[:] = [(0, merged[1]), *(pair for pair in clones if _rank(pair) > _rank(merged))]
                merged[1].requires_grad_(False)
        for path, value in changed.items():
            parameter = nn.Parameter(value, requires_grad=False)
            if path in holder.replaced:
                holder.replaced[path] = [(0, parameter)]
            _set(self.model, path, parameter)
        self.detach()
        return self.model

    def _holder(self) -> AttachmentHolder | None:
        """Return the model's holder, as long as this attachment is part of it."""
        holder = getattr(self.model, HOLDER, None)
        # By identity: numbers start again with the first attachment after the last was taken off.
        attached = isinstance(holder, AttachmentHolder) and getattr(holder, _child(self._number), None) is self._tree
        return holder if attached else None

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()


def attach(model: PreTrainedModel, design: Design, *, seed: int = 0, pooling: str = MODEL) -> Attachment:
    """Freeze `model` and attach `design`; new tensors are drawn from `seed` alone.

    `pooling` other than "model" gives a classifier a linear head of zeros in place of its own, until the last
    attachment is gone: see `petl.head.Head`.

    Other attachments of the model stay, and continue to train. Raises DesignError for a design that does not fit the
    model, and for another pooling than theirs; BackboneError for a family without a row; the model is then as it was.
    """
    holder = getattr(model, HOLDER, None)
    if holder is not None and holder.pooling != pooling:
        raise DesignError(
            f"attachments share the head of their model, with pooling {holder.pooling}; received {pooling}"
        )
    own_head = pool(model, pooling) if holder is None else {}
    try:
        family, frozen, planned, owned = _planned(model, design)
    except BaseException:
        unpool(model, own_head)
        raise
    like = next(iter(frozen.base.values()))
    if holder is None:
        holder = AttachmentHolder(HookPoints(model, family, frozen.prefix), pooling, own_head)
        model.add_module(HOLDER, holder)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    holder.count += 1
    attachment = Attachment(model, design, holder.count, pooling)
    tree = attachment._tree
    holder.add_module(_child(holder.count), tree)
    try:
        attachment.deltas = planned
        _build(attachment, tree, seed, like)
        _own(attachment, holder, frozen, set(owned))
        for delta in planned:
            holder.points.insert(delta, attachment.changes[delta.name])
        if not holder.attention and holder.points.at_heads:
            holder.attention = attention.switch(model)
    except BaseException:
        attachment.detach()
        raise
    tree.train(model.training)
    return attachment


def _planned(
    model: PreTrainedModel, design: Design
) -> tuple[Family, ModelParameters, tuple[Delta, ...], Sequence[str]]:
    """Return the family, the frozen parameters, the deltas, and the names of those that the adapter owns."""
    family, frozen = family_of(model), parameters_of(model)
    planned = deltas(design, family, {name: tuple(parameter.shape) for name, parameter in frozen.base.items()})
    owned = unfrozen(design, family, frozen.base, frozen.head)
    if not (planned or owned or (design.head and frozen.head)):
        raise DesignError(
            f"nothing to change: this {type(model).__name__} has no task head; received {design.describe()}"
        )
    _require_memory(design, planned)
    return family, frozen, planned, owned


def require_own_head(pooling: str, what: str) -> None:
    """Raise DesignError where a head of ours cannot leave with the model."""
    if pooling != MODEL:
        raise DesignError(
            f"{what} has the head that transformers gives the architecture, so head.pooling is model; received "
            f"{pooling}: export in the format petl, which load_model reads"
        )


def _require_memory(design: Design, planned: Iterable[Delta]) -> None:
    """Raise DesignError, before anything is allocated, for more new tensors than the machine's memory holds."""
    size = sum(_FLOAT * prod(shape) for delta in planned for shape in stored_shapes(delta).values())
    total = virtual_memory().total
    if size > total:
        raise DesignError(
            f"not enough memory for {design.describe()}: its tensors have {size / 1e9:.3g} GB, this machine has "
            f"{total / 1e9:.3g} GB; take a smaller size"
        )


def _child(number: int) -> str:
    return f"attachment_{number}"


def _build(attachment: Attachment, tree: ModuleTree, seed: int, like: Tensor) -> None:
    def put(name: str, module: nn.Module) -> None:
        module.to(like.device, like.dtype)
        tree.place(name, module)
        attachment._trained |= {f"{name}.{leaf}": parameter for leaf, parameter in module.named_parameters()}

    shared: dict[str, tuple[nn.Module, int]] = {}
    for plan in reparameterisations(attachment.deltas):
        mlp = build_mlp(plan, seed)
        put(plan.name, mlp)
        shared |= {delta.name: (mlp, index) for index, delta in enumerate(plan.deltas)}
    for delta in attachment.deltas:
        change = attachment.changes[delta.name] = build(delta, seed, *shared.get(delta.name, ()))
        put(delta.name, change)


def _own(attachment: Attachment, holder: AttachmentHolder, frozen: ModelParameters, owned: Collection[str]) -> None:
    """Replace what the attachment owns by trainable clones, one clone for all places of a tied parameter."""
    model, originals = attachment.model, {**frozen.base, **frozen.head}
    paths: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        paths.setdefault(id(parameter), []).append(path)
    for name, original in originals.items():
        if name not in owned and name not in frozen.head:
            continue
        clone = nn.Parameter(original.detach().clone(), requires_grad=name in owned or attachment.design.head)
        (attachment._owned if name in owned else attachment._head)[name] = clone
        for path in paths[id(original)]:
            clones = holder.replaced.setdefault(path, [(0, original)])
            clones.append((attachment._number, clone))
            _set(model, path, _latest(clones))


def _latest(clones: Iterable[tuple[int, nn.Parameter]]) -> nn.Parameter:
    """Return the latest that trains, if any does: a frozen head must not hide one that trains."""
    return max(clones, key=_rank)[1]


def _rank(clone: tuple[int, nn.Parameter]) -> tuple[bool, int]:
    number, parameter = clone
    return parameter.requires_grad, number


def _moved(parameter: nn.Parameter, used: nn.Parameter) -> nn.Parameter:
    """Move a parameter to the device and precision of the one in use: `model.to` does not reach those that are not."""
    if (parameter.device, parameter.dtype) != (used.device, used.dtype):
        parameter.data = parameter.data.to(used.device, used.dtype)
    return parameter


def _set(model: nn.Module, path: str, parameter: nn.Parameter) -> None:
    module_path, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(module_path), leaf, parameter)


def _faults(parameters: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> Iterator[str]:
    for name in parameters.keys() - stored.keys():
        yield f"missing {name}"
    for name in stored.keys() - parameters.keys():
        yield f"unknown {name}"
    for name in parameters.keys() & stored.keys():
        if parameters[name].shape != stored[name].shape:
            yield f"{name} has shape {tuple(stored[name].shape)}, wanted {tuple(parameters[name].shape)}"
