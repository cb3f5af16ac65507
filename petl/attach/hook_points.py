"""Where each delta enters the frozen network: one hook point for all deltas that land there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar, cast

from torch import nn
from transformers import PreTrainedModel

from petl.attach import attention, prompts
from petl.attach.hooks import (
    ChangeInNorm,
    ChangeInput,
    ChangeOutput,
    HookedChange,
    HookPoint,
    InputTap,
    OpenTap,
    Source,
    Stage,
)
from petl.backbones.families import Family, FeedForward
from petl.backbones.layout import most_tokens
from petl.design import LINEARS, Insertion, LayerNorm, Site
from petl.forms.modules import Change, Heads
from petl.forms.vocabulary import Delta


class Shared(Protocol):
    """What the changes at one point have in common."""

    def discard(self, removed: Collection[nn.Module]) -> bool:
        """Forget these changes, and return whether none remains."""


class Removable(Protocol):
    """A hook, or whatever else was put at a module."""

    def remove(self) -> None:
        """Take it away."""


S = TypeVar("S", bound=Shared)
_PRE_HOOKS: Final = (
    attention.HeadChanges,
    ChangeInput,
    InputTap,
    OpenTap,
    prompts.CountWithoutPadding,
    prompts.PrependPrompt,
    prompts.AddPositions,
    prompts.OverwriteEmbeddings,
    prompts.WidenCrossMask,
)
_WITH_KEYWORDS: Final = (
    InputTap,
    prompts.CountWithoutPadding,
    prompts.PrependPrompt,
    prompts.AddPositions,
    prompts.WidenCrossMask,
)


@dataclass
class HookPoints:
    """The hook points of a model that are in use: (module path, kind) -> what the changes there share, and its hooks.

    `base` is the path of the base model.
    """

    model: PreTrainedModel
    family: Family
    base: str
    used: dict[tuple[str, str], tuple[Shared, list[Removable]]] = field(default_factory=dict)

    def insert(self, delta: Delta, change: Change) -> None:
        """Put the change of one delta at its point."""
        m, layer = delta.modification, _join(self.base, delta.layer)
        linear = _join(layer, delta.linear)
        parallel = m.insertion is Insertion.PARALLEL
        if m.site is Site.INPUT:
            self._at(_join(self.base, self.family.input.module), "prompt", self._prompts).changes.append(change)
        elif m.site is Site.HEADS:
            self._change_heads(delta, layer, cast(Heads, change))
        elif m.site in LINEARS:
            stage, source = (Stage.LINEAR, Source.INPUT) if parallel else (Stage.RESCALE, Source.VALUE)
            self._add(linear, ChangeOutput, HookedChange(change, stage, source, delta.block))
        elif m.site is Site.FFN_HIDDEN:
            self._add(linear, ChangeInput, HookedChange(change, Stage.RESCALE, Source.VALUE))
        elif m.site is Site.FFN:
            self._change_feed_forward(layer, self.family.stack(delta.stack).ffn, m.insertion, change)
        elif parallel:
            stream = _join(layer, self.family.attention(delta).module)
            self._add(linear, ChangeInput, HookedChange(change, Stage.SUB_LAYER, Source.TAP), stream)
        else:
            self._add(linear, ChangeOutput, HookedChange(change, Stage.SUB_LAYER, Source.VALUE))

    def discard(self, removed: Collection[nn.Module]) -> None:
        """Take these changes away, and the hooks that then serve none."""
        for key, (shared, hooks) in list(self.used.items()):
            if shared.discard(removed):
                for hook in hooks:
                    hook.remove()
                del self.used[key]

    def changes_at(self, path: str, hook: type[ChangeInput | ChangeOutput]) -> Sequence[HookedChange]:
        """Return the changes of all attachments that `hook` applies at the module, without those that need a tap."""
        shared, _ = self.used.get((path, _kind(hook)), (HookPoint(), []))
        assert isinstance(shared, HookPoint)
        return shared.changes

    @property
    def at_heads(self) -> bool:
        """Return whether any attention has changes at its heads."""
        return any(isinstance(shared, attention.HeadChanges) for shared, _ in self.used.values())

    def _change_feed_forward(self, layer: str, ffn: FeedForward, insertion: Insertion, change: Change) -> None:
        """Add to the sub-layer's output; where no module shows that, add to the residual sum, which is the same."""
        parallel, stream = insertion is Insertion.PARALLEL, _join(layer, ffn.stream)
        total, at_total = _join(layer, ffn.total), ChangeInput if ffn.post_norm else ChangeOutput
        if insertion is Insertion.AFTER_RESIDUAL:
            hooked = HookedChange(change, Stage.AFTER_RESIDUAL, Source.VALUE)
            if ffn.post_norm:
                self._add(total, ChangeInNorm, hooked)
            else:
                self._add(total, at_total, hooked, "" if ffn.end else stream)
        elif ffn.end:
            source = Source.TAP if parallel else Source.VALUE
            self._add(_join(layer, ffn.end), ChangeOutput, HookedChange(change, Stage.SUB_LAYER, source), stream)
        else:
            source = Source.TAP if parallel else Source.DIFFERENCE
            self._add(total, at_total, HookedChange(change, Stage.SUB_LAYER, source), stream)

    def _change_heads(self, delta: Delta, layer: str, change: Heads) -> None:
        row = self.family.attention(delta)
        module, query = _join(layer, row.module), _join(layer, delta.linear)
        entrance = _join(self.base, self.family.input.module)

        def heads() -> tuple[attention.HeadChanges, list[Removable]]:
            shared = attention.HeadChanges(self.model.get_submodule(module))
            shared.put()
            return shared, [shared, self._hook(module, shared)]

        def normed() -> tuple[attention.NormedQuery, list[Removable]]:
            shared = attention.NormedQuery(delta.block)
            return shared, [self._hook(query, shared)]

        def rotary() -> tuple[prompts.CountWithoutPadding, list[Removable]]:
            shared = prompts.CountWithoutPadding()
            return shared, [self._hook(entrance, shared)]

        self._at(module, "heads", heads).changes.append(change)
        if row.rotary:
            self._at(entrance, "rotary", rotary).changes.append(change)
        if delta.modification.layer_norm is not LayerNorm.NONE:
            self._at(query, "normed", normed).changes.append(change)

    def _prompts(self) -> tuple[prompts.Prompts, list[Removable]]:
        row = self.family.input
        base = self.model.get_submodule(self.base)
        shapes = {name: tuple(parameter.shape) for name, parameter in base.named_parameters()}
        shared = prompts.Prompts(self.family, most_tokens(self.family, shapes, self.model.config.pad_token_id))
        decoder = row.decoder if hasattr(base, row.decoder) else ""  # an encoder's rows may be read by a head as well
        drop = prompts.DropPromptRows(shared, cut=not decoder)
        hooks: list[tuple[str, Any]] = [
            (row.entry, prompts.OverwriteEmbeddings(shared)),
            (row.table, prompts.AddPositions(shared)),
            (decoder, prompts.WidenCrossMask(shared)),
            (row.leave, drop),
        ]
        entrance = _join(self.base, row.module)
        outer = [self._hook(entrance, hook) for hook in (prompts.PrependPrompt(shared), drop)]
        return shared, [*outer, *(self._hook(_join(self.base, path), hook) for path, hook in hooks if path)]

    def _add(
        self, path: str, hook: type[ChangeInput | ChangeOutput | ChangeInNorm], change: HookedChange, stream: str = ""
    ) -> None:
        """Put the change at the point of that kind; its tap is at `stream`."""

        def make() -> tuple[HookPoint, list[Removable]]:
            tap = InputTap(waits=stream.startswith(f"{path}.")) if stream else None
            point = HookPoint(tap)
            hooks = [self._hook(path, hook(point))]
            if tap:
                hooks.append(self._hook(stream, tap))
            if tap and tap.waits:
                hooks.append(self._hook(path, OpenTap(tap)))
            return point, hooks

        self._at(path, _kind(hook, stream), make).changes.append(change)

    def _at(self, path: str, kind: str, make: Callable[[], tuple[S, list[Removable]]]) -> S:
        if (path, kind) not in self.used:
            self.used[path, kind] = make()
        return self.used[path, kind][0]  # type: ignore[return-value]

    def _hook(self, path: str, hook: Any) -> Removable:
        module = self.model.get_submodule(path)
        if isinstance(hook, _PRE_HOOKS):
            return module.register_forward_pre_hook(hook, with_kwargs=isinstance(hook, _WITH_KEYWORDS))
        # First, so that hidden states which transformers captures by a hook of the layer are the changed ones.
        return module.register_forward_hook(hook, prepend=True)


def _kind(hook: type[ChangeInput | ChangeOutput | ChangeInNorm], stream: str = "") -> str:
    return f"{hook.__name__} {stream}"


def _join(*paths: str) -> str:
    return ".".join(filter(None, paths))
