"""Attach a design to a frozen model, and take it off again.

    before                         after attach(model, lora)
    ...self.query  Linear          ...self.query  Linear  + hook: h + Δh(x)
                                   petl.encoder.0.self.query.low_rank   a, b

The model keeps its modules. Deltas live in one sub-module called `petl`, so that `model.parameters()`
and DeepSpeed see them, and reach the frozen modules through hooks. What a design changes among the
model's own parameters (BitFit, full fine-tuning, the head) is replaced by clones, never written in
place: the originals may be memory that other processes read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from itertools import groupby
from typing import Final, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from petl import attention, forms
from petl.backbones import family_of
from petl.design import LINEARS, Design, DesignError, Form, Insertion, Site
from petl.families import Attention
from petl.hooks import AddToInput, AddToLinear, AddToOutput, Tap
from petl.plan import Delta, deltas, unfrozen

HOLDER: Final = "petl"


class StateError(ValueError):
    """Stored tensors that do not fit the design and the model."""


class Holder(nn.Module):
    """The attached deltas, as one sub-module of the model."""

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.design = design

    def place(self, name: str, delta: nn.Module) -> None:
        """Put `delta` at the dotted `name`."""
        *path, leaf = name.split(".")
        at: nn.Module = self
        for part in path:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
        at.add_module(leaf, delta)


class Attachment:
    """A design on a model. Made by `attach`; as a context manager it detaches at the end.

    The tensors of the adapter are those of `count`'s `stored`. Names are stable: a delta's own name
    (`encoder.0.ffn.bottleneck.down.weight`), and the model's name for what was the model's
    (`bert.encoder.layer.0.output.dense.bias`). The head is the attachment's own copy, and trains if
    the design says so.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        design: Design,
        adapter: Mapping[str, nn.Parameter],
        head: Mapping[str, nn.Parameter],
        undo: ExitStack,
    ) -> None:
        self.model = model
        self.design = design
        self._adapter = dict(adapter)
        self._head = dict(head)
        self._undo = undo

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What trains: the adapter, then the head if it does."""
        yield from self._adapter.items()
        if self.design.head:
            yield from self._head.items()

    def state_dict(self) -> dict[str, Tensor]:
        """The adapter's tensors, detached, not copied. The head is apart."""
        return {name: parameter.detach() for name, parameter in self._adapter.items()}

    def head_state_dict(self) -> dict[str, Tensor]:
        """The head's tensors that the adapter does not hold, also where they are frozen."""
        return {name: parameter.detach() for name, parameter in self._head.items()}

    def load_state_dict(self, adapter: Mapping[str, Tensor], head: Mapping[str, Tensor] | None = None) -> None:
        """Copy stored tensors in; without `head`, the head stays as it is.

        Raises StateError, listing everything missing, unknown or of another shape; then nothing was
        copied.
        """
        pairs = [(self._adapter, adapter)] if head is None else [(self._adapter, adapter), (self._head, head)]
        faults = [fault for own, given in pairs for fault in _faults(own, given)]
        if faults:
            raise StateError(f"the tensors do not fit {self.design.describe()}: {'; '.join(faults)}")
        with torch.no_grad():
            for own, given in pairs:
                for name, parameter in own.items():
                    parameter.copy_(given[name])

    def detach(self) -> None:
        """Give the model back as it was, bit for bit. A second call does nothing."""
        self._undo.close()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()


def attach(model: PreTrainedModel, design: Design, *, seed: int = 0) -> Attachment:
    """Freeze `model` and attach `design`; new tensors are drawn from `seed` alone.

    Raises DesignError for a design that is not supported or does not fit the model, and for a model
    that carries a design already; BackboneError for a family without a row. The model is then as it was.
    """
    carried = getattr(model, HOLDER, None)
    if isinstance(carried, Holder):
        raise DesignError(f"the model carries a design already ({carried.design.describe()}): detach it first")
    family = family_of(model)
    depth = int(model.config.num_hidden_layers)
    own = dict(model.named_parameters())
    planned = deltas(design, family, depth, {name: tuple(parameter.shape) for name, parameter in own.items()})
    mine = unfrozen(design, family, own)
    rest_of_head = [name for name in own if not family.in_base(name) and name not in mine]
    like = next(iter(own.values()))

    holder = Holder(design)
    built: dict[str, nn.Module] = {}
    for delta in planned:
        module = forms.build(delta, seed).to(like.device, like.dtype)
        built[delta.name] = module
        holder.place(delta.name, module)
    holder.train(model.training)

    with ExitStack() as undo:  # undone in reverse order; also where something below raises
        _freeze(model, undo)
        clones = _clone(model, {*mine, *rest_of_head}, undo)
        model.add_module(HOLDER, holder)
        undo.callback(delattr, model, HOLDER)
        for _, group in groupby(sorted(planned, key=_sub_layer), key=_sub_layer):
            _insert(model, list(group), built, undo)
        if any(delta.modification.form is Form.PREFIX for delta in planned):
            undo.callback(attention.switch(model))
        for name in rest_of_head:
            clones[name].requires_grad_(design.head)
        adapter = {
            f"{delta.name}.{name}": parameter
            for delta in planned
            for name, parameter in built[delta.name].named_parameters()
        } | {name: clones[name] for name in mine}
        return Attachment(model, design, adapter, {name: clones[name] for name in rest_of_head}, undo.pop_all())


def _sub_layer(delta: Delta) -> tuple[str, str]:
    return delta.layer, delta.attention.module if delta.attention else ""


def _insert(model: nn.Module, group: list[Delta], built: Mapping[str, nn.Module], undo: ExitStack) -> None:
    """Hook the deltas of one sub-layer: `group` shares layer and attention.

    Linears come first: a sequential Δh of the sub-layer reads the output projection with its
    low-rank change, as it would after merging.
    """
    layer = model.get_submodule(group[0].layer)
    row = group[0].attention or group[0].stack.ffn

    def at(site: Site, insertion: Insertion = Insertion.PARALLEL) -> tuple[nn.Module, ...]:
        here = (site, insertion)
        return tuple(built[d.name] for d in group if (d.modification.site, d.modification.insertion) == here)

    def before(path: str, hook: Callable[..., object]) -> None:
        undo.callback(layer.get_submodule(path).register_forward_pre_hook(hook).remove)

    def after(path: str, hook: Callable[..., object]) -> None:
        undo.callback(layer.get_submodule(path).register_forward_hook(hook).remove)

    for site in LINEARS:
        if low_rank := at(site):
            after(row.linear(site), AddToLinear(low_rank))

    if isinstance(row, Attention):
        if prefixes := at(Site.HEADS):
            undo.callback(attention.put(layer.get_submodule(row.module), cast(tuple[forms.Prefix, ...], prefixes)))
        if parallel := at(Site.ATTENTION):
            tap = Tap()
            before(row.query, tap)
            before(row.out, AddToInput(tap, parallel))
        if sequential := at(Site.ATTENTION, Insertion.SEQUENTIAL):
            after(row.out, AddToOutput(sequential))
        return

    parallel, sequential = at(Site.FFN), at(Site.FFN, Insertion.SEQUENTIAL)
    if parallel:
        tap = Tap()
        before(row.stream, tap)
        after(row.end, AddToOutput(sequential, parallel, tap))
    elif sequential:
        after(row.end, AddToOutput(sequential))


def _freeze(model: nn.Module, undo: ExitStack) -> None:
    for parameter in model.parameters():
        undo.callback(parameter.requires_grad_, parameter.requires_grad)
        parameter.requires_grad_(False)


def _clone(model: nn.Module, names: Collection[str], undo: ExitStack) -> dict[str, nn.Parameter]:
    """Replace the named parameters by trainable clones, one clone for all places of a tied parameter."""
    originals = dict(model.named_parameters())
    clones = {id(originals[name]): nn.Parameter(originals[name].detach().clone()) for name in names}
    for path, original in list(model.named_parameters(remove_duplicate=False)):
        if id(original) in clones:
            module_path, _, leaf = path.rpartition(".")
            module = model.get_submodule(module_path)
            undo.callback(setattr, module, leaf, original)
            setattr(module, leaf, clones[id(original)])
    return {name: clones[id(originals[name])] for name in names}


def _faults(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterator[str]:
    for name in own.keys() - given.keys():
        yield f"missing {name}"
    for name in given.keys() - own.keys():
        yield f"unknown {name}"
    for name in own.keys() & given.keys():
        if own[name].shape != given[name].shape:
            yield f"{name} has shape {tuple(given[name].shape)}, wanted {tuple(own[name].shape)}"
