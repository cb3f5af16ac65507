"""Adapters to and from Hugging Face PEFT, wherever both sides mean the same function.

| design | PEFT |
|---|---|
| low rank at any linears, with biases (BitFit) beside it | LORA, rank and alpha of each linear; bias="all" |
| rescale, at a linear's output or the FFN's activations | IA3 |
| prompt with shifted or relative positions, on models that generate | PROMPT_TUNING |
| gated prefix of one length in all layers, on rotary positions | PREFIX_TUNING, its keys turned on by the length |

One PEFT adapter is of one method. What PEFT cannot say is refused with the rule; rules and layouts are in the files of
the forms (`petl.forms`). Initial values have no place in an adapter, nor has whether a stored head was trained. On
rotary models PEFT counts padding on the left where we do not: to a prefix that makes no difference where position_ids
are given, as `generate` does; with prompts PEFT leaves them aside.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors.torch import save_file
from torch import Tensor

from petl.adapters import storage
from petl.adapters.peft_target import TargetModel, united
from petl.adapters.storage import StorageError
from petl.attach.attachment import Attachment, StateError, attach, require_own_head
from petl.backbones.locate import locate
from petl.backbones.model import parameters_of
from petl.design import Design, DesignError, Modification, Site
from petl.errors import UserError
from petl.forms.exchange import PATHS, PROMPT_EMBEDDINGS, PeftLayout, Tensors
from petl.forms.peft_fields import Value
from petl.forms.table import FORMS, Form

if TYPE_CHECKING:
    from transformers import PreTrainedModel


CONFIG: Final = "adapter_config.json"
TENSORS: Final = "adapter_model.safetensors"
_PICKLED: Final = "adapter_model.bin"
_BIASES: Final = Modification(form=Form.BIAS, site=Site.MODEL)
# PEFT's name of a method -> its layout.
METHODS: Final[Mapping[str, PeftLayout]] = {form.peft: form.layout for form in FORMS.values() if form.layout}


class PeftMissingError(UserError, ImportError):
    """Hugging Face PEFT, an optional library, is not installed."""


def to_peft(attachment: Attachment, folder: str | Path, *, base_model: str = "") -> Path:
    """Write the attachment as a PEFT adapter, and return the folder; `PeftModel.from_pretrained` reads it.

    The task head goes with it, trained or not: load the base model with a head of the same shape.
    Learned scales are folded into B, and parts of one linear are put together. `base_model` is the
    name that PEFT notes, by default where the model came from. Raises DesignError, listing the rules,
    for a design that PEFT cannot express; PeftMissingError where the library is not installed.
    """
    require_own_head(attachment.pooling, "a PEFT adapter")
    peft, target = _library(), TargetModel(attachment.model)
    method = _method(attachment.design, target)
    stored, path = attachment.state_dict(), Path(folder)
    options, tensors = method.write(target, attachment.deltas, stored)
    if any(m.form is Form.BIAS for m in attachment.design.modifications):
        options["bias"] = "all"
    head_and_biases = {
        **attachment.head_state_dict(),
        **{_full(name, target): stored[name] for name in attachment.owned_parameters()},
    }
    for module in target.head:  # whole, what the head shares with the base included
        frozen = target.model.get_submodule(module).state_dict()
        head_and_biases = {**{f"{module}.{name}": tensor for name, tensor in frozen.items()}, **head_and_biases}
    config = getattr(peft, method.config)(
        task_type=target.task or None,
        base_model_name_or_path=base_model or target.model.name_or_path,
        inference_mode=True,
        modules_to_save=list(target.head) or None,
        **options,
    )
    wrapped = set(options.get("target_modules", ()))
    tensors |= {_wrapped(name, wrapped): tensor for name, tensor in head_and_biases.items()}
    named = {name if name == PROMPT_EMBEDDINGS else method.prefix + name: tensor for name, tensor in tensors.items()}
    path.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(path)
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in named.items()}, path / TENSORS)
    shutil.copymode(path / CONFIG, path / TENSORS)  # safetensors lets nobody else read what it writes
    return path


def from_peft(folder: str | Path, model: PreTrainedModel) -> Attachment:
    """Attach the design that a PEFT adapter is, with its tensors, to `model`: the base model it was trained on.

    Reads safetensors only, and needs no `peft`. A head that is stored trains again. Raises StorageError
    for files that are missing or damaged or do not fit the model, DesignError for what no design is;
    the model is then as it was.
    """
    path, target = Path(folder), TargetModel(model)
    config = storage.read_json(path / CONFIG)
    if not (path / TENSORS).exists() and (path / _PICKLED).exists():
        raise StorageError(f"{path} has {_PICKLED}, which would be unpickled; only {TENSORS} is read")
    named = storage.read_tensors(path / TENSORS)
    if not isinstance(config, dict):
        raise StorageError(f"{path / CONFIG} is no configuration of PEFT")
    method = METHODS.get(str(config.get("peft_type")))
    if method is None:
        raise DesignError(f"a design can be one of PEFT's {', '.join(METHODS)}; received {config.get('peft_type')}")
    _require_understood(method, config)
    tensors = {name: tensor for key, tensor in named.items() if (name := _unwrapped(key, method))}
    try:
        changes = method.read(target, config, tensors) if method.prefix == PATHS or PROMPT_EMBEDDINGS in tensors else {}
    except ValueError as error:
        raise DesignError(str(error)) from error
    if not changes:
        raise StorageError(f"{path / TENSORS} holds no tensors of {config['peft_type']}")
    head = parameters_of(model).head
    design = replace(united(target, changes), head=not head or not head.keys().isdisjoint(tensors))
    if config.get("bias") == "all":
        design |= Design((_BIASES,), head=design.head)
    _method(design, target)  # raises where PEFT's forward pass is none of ours
    state = {
        f"{place}.{m.form}.{leaf}": tensor for place, (m, leaves) in changes.items() for leaf, tensor in leaves.items()
    }
    attachment = attach(model, design)
    try:
        _fill(attachment, state, tensors, target)
    except StateError as error:
        attachment.detach()
        raise StorageError(f"the adapter in {path} was made for another model: {error}") from error
    except BaseException:
        attachment.detach()
        raise
    return attachment


def convert(folder: str | Path, destination: str | Path, *, backbone: str = "") -> Path:
    """Write the adapter directory `folder`, made by `storage.save`, as a PEFT adapter, its tokenizer beside it.

    `backbone` names another place of the model, as for `storage.load_pretrained`. Raises as that and `to_peft` do.
    """
    require_own_head(storage.read_head(Path(folder)).pooling, "a PEFT adapter")
    _, attachment = storage.load_pretrained(folder, backbone=backbone)
    named = backbone or str(storage.read_json(Path(folder) / storage.MODEL)["backbone"]["model"])
    # PEFT knows the hub and folders.
    base_model = locate(named) if named.startswith("package:") else named
    path = to_peft(attachment, destination, base_model=base_model)
    if (tokenizer := Path(folder) / storage.TOKENIZER).is_dir():
        shutil.copytree(tokenizer, path / storage.TOKENIZER, dirs_exist_ok=True)
    return path


def _library() -> Any:
    """Import PEFT, which takes seconds."""
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise PeftMissingError("writing PEFT adapters needs the library: pip install 'petl-search[peft]'") from error


def _method(design: Design, target: TargetModel) -> PeftLayout:
    """Return the layout of PEFT's method for the design. Raises DesignError with every rule that the design breaks."""
    forms = {m.form for m in design.modifications}
    rows = [row for form, row in FORMS.items() if form in forms]
    methods = [name for name in METHODS if any(row.peft == name for row in rows)]
    faults = [row.not_in_peft for row in rows if not row.peft]
    if not forms:
        faults.append("PEFT trains a head beside one of its methods only")
    if len(methods) > 1:
        faults.append(f"one PEFT adapter is of one method; received parts of {', '.join(methods)}")
    for name in methods:
        modifications = [m for m in design.modifications if m.rule.peft == name]
        faults += dict.fromkeys(METHODS[name].faults(modifications, target))
    if faults:
        raise DesignError(f"PEFT cannot express {design.describe()} on this model: {'; '.join(faults)}")
    return METHODS[methods[0]]


def _require_understood(method: PeftLayout, config: Mapping[str, Any]) -> None:
    """Raise DesignError for fields of PEFT's configuration that a design cannot say, or whose values are none."""
    strange, wrong = [], []
    for name, value in config.items():
        known = method.fields.get(name)
        if isinstance(known, Value):
            if not known.holds(value):
                wrong.append(f"{name} is {known.words}; received {value!r:.80}")
        elif value not in known if known else known is None and value:
            strange.append(f"{name}={value!r:.80}")
    if strange:
        raise DesignError(f"a design has nothing like PEFT's {', '.join(strange)}")
    if wrong:
        raise DesignError(f"PEFT's configuration is damaged: {'; '.join(wrong)}")


def _full(name: str, target: TargetModel) -> str:
    """Return the path from the model of a parameter that is named from the base model, or of the head."""
    inner = f"{target.base}.{name}"
    return inner if target.base and name in target.shapes and inner in target.paths else name


def _wrapped(name: str, wrapped: set[str]) -> str:
    """Return the path of a bias once PEFT has put its own module in place of its linear."""
    module, _, leaf = name.rpartition(".")
    return f"{module}.base_layer.{leaf}" if module in wrapped else name


def _unwrapped(key: str, method: PeftLayout) -> str:
    """Return a tensor's path from the model, "" for PEFT's second copy of it."""
    if ".original_module." in key or ".modules_to_save." in key:
        return ""
    return key.removeprefix(method.prefix).replace(".base_layer.", ".")


def _fill(attachment: Attachment, state: Tensors, tensors: Tensors, target: TargetModel) -> None:
    """Give the attachment its tensors: the adapter's, and what else the file has of the model's own parameters.

    Raises StateError for those that do not fit, DesignError for one of the frozen model's with another value.
    """
    parameters = dict(attachment.model.named_parameters(remove_duplicate=False))

    def take(path: str) -> Tensor:
        """Return the file's value, under any name of a tied parameter; else the model's."""
        tied = [name for name in list(tensors) if parameters.get(name) is parameters[path]]
        values = [tensors.pop(name) for name in tied]
        return values[0] if values else parameters[path].detach()

    owned = {name: take(_full(name, target)) for name in attachment.owned_parameters()}
    heads = {name: take(name) for name in attachment.head_state_dict()}
    frozen = attachment.model.state_dict()
    unknown = [name for name, tensor in tensors.items() if not _same(tensor, frozen.get(name))]
    if unknown:
        raise DesignError(f"a design of this method does not change {', '.join(sorted(unknown)[:5])}")
    attachment.load_state_dict(state | owned, heads)


def _same(tensor: Tensor, frozen: Tensor | None) -> bool:
    return frozen is not None and frozen.shape == tensor.shape and bool(frozen.eq(tensor.to(frozen)).all())
