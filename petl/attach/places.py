"""Where each delta of a plan enters the frozen network: one place, with its hooks, for all deltas that land there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from torch import nn
from transformers import PreTrainedModel

from petl.attach import attention, prompts
from petl.attach.hooks import AfterNorm, AtInput, AtOutput, Entry, Open, Place, Reads, Stage, Tap
from petl.backbones.families import Family, FeedForward
from petl.backbones.plan import Delta
from petl.design import LINEARS, Insertion, LayerNorm, Site
from petl.forms import form as forms


class Shared(Protocol):
    """What the deltas at one place have in common."""

    def discard(self, gone: Collection[nn.Module]) -> bool:
        """Forget these deltas; whether none is left."""


class Handle(Protocol):
    """What is taken away by `remove`."""

    def remove(self) -> None:
        """Take it away."""


S = TypeVar("S", bound=Shared)
_BEFORE: Final = (
    attention.HeadForms,
    AtInput,
    Tap,
    Open,
    prompts.Rotary,
    prompts.Enter,
    prompts.Count,
    prompts.Overwrite,
    prompts.Cross,
)  # forward pre-hooks
_NAMED: Final = (Tap, prompts.Rotary, prompts.Enter, prompts.Count, prompts.Cross)  # those that take keyword arguments


@dataclass
class Places:
    """The places of a model that are in use: (module path, kind) -> what the deltas share there, and its hooks.

    `base` is the path of the base model.
    """

    model: PreTrainedModel
    family: Family
    base: str
    used: dict[tuple[str, str], tuple[Shared, list[Handle]]] = field(default_factory=dict)

    def insert(self, delta: Delta, form: forms.Change) -> None:
        """Put one delta at its place."""
        m, layer = delta.modification, _join(self.base, delta.layer)
        linear = _join(layer, delta.linear)
        parallel = m.insertion is Insertion.PARALLEL
        if isinstance(form, forms.Prompt):
            self._at(_join(self.base, self.family.input.module), "prompt", self._prompts).forms.append(form)
        elif isinstance(form, forms.Heads):
            assert delta.attention is not None
            self._change_heads(_join(layer, delta.attention.module), linear, delta, form)
        elif m.site in LINEARS:
            stage, reads = (Stage.LINEAR, Reads.INPUT) if parallel else (Stage.RESCALE, Reads.VALUE)
            self._add(linear, AtOutput, Entry(form, stage, reads, delta.block))
        elif m.site is Site.FFN_HIDDEN:
            self._add(linear, AtInput, Entry(form, Stage.RESCALE, Reads.VALUE))
        elif delta.attention is None:
            assert delta.stack is not None
            self._change_feed_forward(layer, delta.stack.ffn, m.insertion, form)
        elif parallel:
            stream = _join(layer, delta.attention.module)
            self._add(linear, AtInput, Entry(form, Stage.SUB_LAYER, Reads.TAP), stream)
        else:
            self._add(linear, AtOutput, Entry(form, Stage.SUB_LAYER, Reads.VALUE))

    def discard(self, gone: Collection[nn.Module]) -> None:
        """Take these deltas away, and the hooks that then serve none."""
        for key, (shared, handles) in list(self.used.items()):
            if shared.discard(gone):
                for handle in handles:
                    handle.remove()
                del self.used[key]

    def entries(self, path: str, hook: type[AtInput | AtOutput]) -> Sequence[Entry]:
        """The deltas of all attachments that `hook` applies at the module, those of a sub-layer with a tap apart."""
        shared, _ = self.used.get((path, _kind(hook)), (Place(), []))
        assert isinstance(shared, Place)
        return shared.entries

    @property
    def at_heads(self) -> bool:
        """Whether any attention has forms at its heads."""
        return any(isinstance(shared, attention.HeadForms) for shared, _ in self.used.values())

    def _change_feed_forward(self, layer: str, ffn: FeedForward, insertion: Insertion, form: forms.Change) -> None:
        """Adding to the residual sum is adding to the output: so where no module shows that, the sum is changed."""
        parallel, stream = insertion is Insertion.PARALLEL, _join(layer, ffn.stream)
        total, at_total = _join(layer, ffn.total), AtInput if ffn.post_norm else AtOutput
        if insertion is Insertion.AFTER_RESIDUAL:
            entry = Entry(form, Stage.AFTER_RESIDUAL, Reads.VALUE)
            if ffn.post_norm:
                self._add(total, AfterNorm, entry)
            else:
                self._add(total, at_total, entry, "" if ffn.end else stream)
        elif ffn.end:
            reads = Reads.TAP if parallel else Reads.VALUE
            self._add(_join(layer, ffn.end), AtOutput, Entry(form, Stage.SUB_LAYER, reads), stream)
        else:
            reads = Reads.TAP if parallel else Reads.DIFFERENCE
            self._add(total, at_total, Entry(form, Stage.SUB_LAYER, reads), stream)

    def _change_heads(self, module: str, query: str, delta: Delta, form: forms.Heads) -> None:
        whole = _join(self.base, self.family.input.module)

        def heads() -> tuple[attention.HeadForms, list[Handle]]:
            shared = attention.HeadForms(self.model.get_submodule(module))
            shared.put()
            return shared, [shared, self._hook(module, shared)]

        def normed() -> tuple[attention.QueryOfNormed, list[Handle]]:
            shared = attention.QueryOfNormed(delta.block)
            return shared, [self._hook(query, shared)]

        def rotary() -> tuple[prompts.Rotary, list[Handle]]:
            shared = prompts.Rotary()
            return shared, [self._hook(whole, shared)]

        self._at(module, "heads", heads).forms.append(form)
        if delta.attention and delta.attention.rotary:
            self._at(whole, "rotary", rotary).forms.append(form)
        if delta.modification.layer_norm is not LayerNorm.NONE:
            self._at(query, "normed", normed).forms.append(form)

    def _prompts(self) -> tuple[prompts.Prompts, list[Handle]]:
        row = self.family.input
        shared = prompts.Prompts(self.family)
        base = self.model.get_submodule(self.base)
        decoder = row.decoder if hasattr(base, row.decoder) else ""  # an encoder's rows may be read by a head as well
        leave = prompts.Leave(shared, cut=not decoder)
        hooks: list[tuple[str, Any]] = [
            (row.entry, prompts.Overwrite(shared)),
            (row.table, prompts.Count(shared)),
            (decoder, prompts.Cross(shared)),
            (row.leave, leave),
        ]
        whole = [self._hook(_join(self.base, row.module), hook) for hook in (prompts.Enter(shared), leave)]
        return shared, [*whole, *(self._hook(_join(self.base, path), hook) for path, hook in hooks if path)]

    def _add(self, path: str, hook: type[AtInput | AtOutput | AfterNorm], entry: Entry, stream: str = "") -> None:
        """Put the entry at the place of that kind; its tap is at `stream`."""

        def make() -> tuple[Place, list[Handle]]:
            tap = Tap(waits=stream.startswith(f"{path}.")) if stream else None
            place = Place(tap)
            handles = [self._hook(path, hook(place))]
            if tap:
                handles.append(self._hook(stream, tap))
            if tap and tap.waits:
                handles.append(self._hook(path, Open(tap)))
            return place, handles

        self._at(path, _kind(hook, stream), make).entries.append(entry)

    def _at(self, path: str, kind: str, make: Callable[[], tuple[S, list[Handle]]]) -> S:
        if (path, kind) not in self.used:
            self.used[path, kind] = make()
        return self.used[path, kind][0]  # type: ignore[return-value]

    def _hook(self, path: str, hook: Any) -> Handle:
        module = self.model.get_submodule(path)
        named = isinstance(hook, _NAMED)
        if isinstance(hook, _BEFORE):
            return module.register_forward_pre_hook(hook, with_kwargs=named)
        # First, so that hidden states which transformers captures by a hook of the layer are those that go on.
        return module.register_forward_hook(hook, prepend=True)


def _kind(hook: type[AtInput | AtOutput | AfterNorm], stream: str = "") -> str:
    return f"{hook.__name__} {stream}"


def _join(*paths: str) -> str:
    return ".".join(filter(None, paths))
