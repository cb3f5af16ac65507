"""The frozen pretrained model: what it is, described without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from petl.backbones.families import FAMILIES, Family, family_named
from petl.backbones.layout import layout, linears, most_tokens
from petl.backbones.locate import CONFIG, BackboneError, fetch, fingerprint, locate
from petl.design import Layout, Site
from petl.errors import library
from petl.forms.bias import is_bias
from petl.head import MODEL
from petl.untrusted import read_json

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


POOLED_HEAD: Final = "pooled_head"  # the module of a head that is not the model's own
# A width that no model has: where it shows up in a shape, the number of labels stands.
_LABELS: Final = 1009
PEFT_CONFIG: Final = "adapter_config.json"
_ATTENTIONS: Final = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
# Fields of a backbone in studies and adapters that ba3158e stored; the shapes say the same.
_AT_BA3158E: Final = ("width", "ffn_width", "heads")


@dataclass(frozen=True)
class Backbone:
    """Identity and shapes of a pretrained model: enough to count any design, without weights or torch.

    `model` is what the user wrote; `revision` the hub's commit, "" elsewhere; `fingerprint` a hash of
    configuration and weights, "" where only the configuration was read. `depth` is that of the deepest
    stack. `shapes` maps every parameter of the pretrained model without task head, named from the
    base model, to its shape; `head` those of a classification head, where 0 stands for the number of
    labels. `padding` is its configuration's token, behind which the positions of a RoBERTa begin; None where that is
    not known, or no token.
    """

    model: str
    family: str
    revision: str
    fingerprint: str
    depth: int
    shapes: Mapping[str, tuple[int, ...]] = field(hash=False, repr=False)
    head: Mapping[str, tuple[int, ...]] = field(hash=False, repr=False)
    padding: int | None = None

    @property
    def row(self) -> Family:
        return FAMILIES[self.family]

    @property
    def architecture(self) -> str:
        """Return `encoder`, `decoder`, or `encoder-decoder`: what it can do with text."""
        return "-".join(stack.name for stack in self.row.stacks)

    @cached_property
    def layout(self) -> Layout:
        """Return its stacks, as `Design.canonical` takes them."""
        return layout(self.row, self.shapes)

    @cached_property
    def linears(self) -> tuple[Site, ...]:
        """Return the linears of its layers that a design can name."""
        return linears(self.row, self.shapes)

    @cached_property
    def has_biases(self) -> bool:
        """Return whether BitFit has anything to train."""
        return any(map(is_bias, self.shapes))

    @property
    def max_tokens(self) -> int | None:
        """Return the longest input that has learned positions; None where positions are not a table."""
        return most_tokens(self.row, self.shapes, self.padding)

    def head_shapes(self, labels: int, pooling: str = MODEL) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of the parameters of a head for that many labels: see `petl.head.Head`."""
        if pooling != MODEL:
            width = next(shape[-1] for shape in self.head.values() if len(shape) > 1)
            return {f"{POOLED_HEAD}.weight": (labels, width), f"{POOLED_HEAD}.bias": (labels,)}
        return {name: tuple(size or labels for size in shape) for name, shape in self.head.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, which `from_dict` reads."""
        data = asdict(self)
        for name in ("shapes", "head"):
            data[name] = {key: list(shape) for key, shape in data[name].items()}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Backbone:
        """Read what `to_dict` writes, and what it wrote at ba3158e."""
        tables = {
            name: {key: tuple(map(int, shape)) for key, shape in data[name].items()} for name in ("shapes", "head")
        }
        facts = {name: value for name, value in data.items() if name not in _AT_BA3158E}
        return cls(**{**facts, **tables})


def describe(model: str, *, revision: str = "", weights: bool = True) -> Backbone:
    """Return the Backbone that `model` names (see `locate`), from its configuration alone.

    With `weights`, local weight files are hashed into the fingerprint (0.13 s for 90 MB); a hub
    model's is that of its commit, so that none is downloaded. Raises BackboneError.
    """
    place = model if revision else locate(model)  # the hub's alone have revisions
    folder, commit = fetch(place, revision, weights=False)
    config = read_config(folder, model)
    family = family_named(str(config.model_type))
    config.num_labels = _LABELS
    with library(f"{model}: the sizes in its {CONFIG} make no model", BackboneError):
        own = parameters_of(_empty(config))
    shapes = {name: tuple(parameter.shape) for name, parameter in own.base.items()}
    without_weights = not weights or Path(place).name == CONFIG
    return Backbone(
        model=model,
        family=family.name,
        revision=commit,
        fingerprint=commit[:16] or ("" if without_weights else fingerprint(folder)),
        depth=max(stack.depth for stack in layout(family, shapes).values()),
        shapes=shapes,
        head={
            name: tuple(0 if size == _LABELS else size for size in parameter.shape)
            for name, parameter in own.head.items()
        },
        padding=config.pad_token_id,
    )


@dataclass(frozen=True)
class ModelParameters:
    """A model's own parameters, tied ones once.

    `prefix` is the path of the base model, "" where it is the model itself. `base` are those of the
    pretrained model, named from there, an output embedding included; `head` those of the task head,
    in full.
    """

    prefix: str
    base: Mapping[str, nn.Parameter]
    head: Mapping[str, nn.Parameter]


def parameters_of(model: PreTrainedModel) -> ModelParameters:
    """Return the parameters of a model, whatever head it has, without what is attached to it."""
    from torch.nn import Linear

    prefix = model.base_model_prefix if hasattr(model, model.base_model_prefix) else ""
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    pretrained = set() if output is None else {id(parameter) for parameter in output.parameters()}
    base, head = {}, {}
    for name, parameter in model.named_parameters():
        if name.startswith("petl."):
            continue
        # T5's question answering has no base model inside: its stacks lie beside its head, a linear.
        beside = isinstance(getattr(model, name.partition(".")[0]), Linear)
        if name.startswith(f"{prefix}.") if prefix else not beside:
            base[name.removeprefix(f"{prefix}.")] = parameter
        elif id(parameter) in pretrained:
            base[name] = parameter
        else:
            head[name] = parameter
    return ModelParameters(prefix, base, head)


def _empty(config: Any) -> PreTrainedModel:
    """Return the classifier on the meta device. First values are not even drawn: they would take half of the time."""
    import torch
    from torch.nn import init
    from torch.overrides import TorchFunctionMode
    from transformers import AutoModelForSequenceClassification

    drawing = {init.uniform_, init.normal_, init.kaiming_uniform_}

    class Undrawn(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return None if function in drawing else function(*args, **(kwargs or {}))

    with torch.device("meta"), Undrawn():
        return AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-any-return, no-untyped-call]


def read_config(folder: Path, model: str) -> Any:
    from transformers import AutoConfig

    with library(f"{model}: {folder / CONFIG} is no configuration of a known model", BackboneError):
        written = read_json(folder / CONFIG)
        _require_no_code(written, model)
        if quantised := written.get("quantization_config"):
            method = quantised.get("quant_method", "unknown") if isinstance(quantised, Mapping) else quantised
            raise BackboneError(
                f"{model}: weights are trained as they were before they were quantised; received {method} ones: take "
                "the checkpoint that they were made from"
            )
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _require_no_code(written: Mapping[str, Any], model: str) -> None:
    """Raise BackboneError for a model that runs with code of its own only; transformers has that of our families."""
    kind = written.get("model_type")
    if "auto_map" in written and kind not in FAMILIES:
        raise BackboneError(
            f"{model} comes with code of its own (auto_map in its {CONFIG}), which is never run; families supported: "
            f"{', '.join(FAMILIES)}"
        )
    for name in _ATTENTIONS:  # such as kernels/flash: transformers would fetch and run that
        if "/" in str(written.get(name, "")):
            raise BackboneError(f"{model} asks for attention by the code of {written[name]!r}, which is never run")
