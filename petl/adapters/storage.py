"""An adapter directory: what a trained design needs to predict, without the frozen backbone.

    design.json           the design
    adapter.safetensors   its tensors: `count`'s `stored`
    head.safetensors      the rest of the task head, frozen or trained (a frozen one was drawn at random)
    model.json            the backbone's identity, the task (kind, labels, lengths, decoding), what the head reads,
                          library versions
    tokenizer/            as transformers saves it, where the adapter was saved with one
    hashes.json           the SHA-256 of each of these files, by which a damaged one is noticed

Safetensors and JSON only: reading one runs no code. A directory without hashes, saved before there were any, is read as
it is.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from petl import untrusted
from petl.adapters.predict import AdaptedModel
from petl.attach.attachment import Attachment, StateError, attach
from petl.backbones.count import stored_shapes
from petl.backbones.families import FAMILIES
from petl.backbones.loading import load
from petl.backbones.locate import BackboneError
from petl.backbones.model import Backbone, describe, parameters_of
from petl.design import Design, DesignError
from petl.errors import UserError
from petl.hashing import sha256
from petl.head import OWN_HEAD, RANDOM, Head
from petl.tasks import FACTS, KINDS, Task, TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


DESIGN: Final = "design.json"
ADAPTER: Final = "adapter.safetensors"
HEAD: Final = "head.safetensors"
MODEL: Final = "model.json"
TOKENIZER: Final = "tokenizer"
HASHES: Final = "hashes.json"
_VERSIONS: Final = ("petl-search", "torch", "transformers")


class StorageError(UserError, ValueError):
    """An adapter directory that is incomplete, damaged, or made for another model."""


def save(
    folder: str | Path,
    attachment: Attachment,
    backbone: Backbone,
    task: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    start: str = RANDOM,
) -> Path:
    """Write the adapter directory, and return it.

    `task` is JSON-ready; without `labels` in it, the model keeps the head that its checkpoint has. `start` is how the
    head began.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    save_file(_on_disk(attachment.state_dict()), path / ADAPTER)
    if tensors := attachment.head_state_dict():
        save_file(_on_disk(tensors), path / HEAD)
    _write(path / DESIGN, attachment.design.to_dict())
    for file in path.glob("*.safetensors"):
        shutil.copymode(path / DESIGN, file)  # safetensors lets nobody else read what it writes
    versions = {name: _version(name) for name in _VERSIONS}
    described = {"backbone": backbone.to_dict(), "task": dict(task), "versions": versions}
    head = Head(pooling=attachment.pooling, start=start)
    _write(path / MODEL, described | ({} if head == OWN_HEAD else {"head": head.to_dict()}))
    if tokenizer is not None:
        tokenizer.save_pretrained(path / TOKENIZER)
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file != path / HASHES]
    _write(path / HASHES, {file.relative_to(path).as_posix(): sha256(file) for file in files})
    return path


def require_whole(path: Path) -> None:
    """Raise StorageError where a file of an adapter directory is missing, or is not the one that was saved."""
    if not (path / HASHES).exists():
        return
    hashes = read_json(path / HASHES)
    if not isinstance(hashes, dict) or any(Path(name).is_absolute() or ".." in Path(name).parts for name in hashes):
        raise StorageError(f"{path / HASHES} holds no hashes of files in its folder")
    for name, digest in hashes.items():
        if not (path / name).is_file():
            raise StorageError(f"{path} lacks {name}")
        if sha256(path / name) != digest:
            raise StorageError(
                f"{path / name} is damaged, or was changed: its SHA-256 is not the one in {HASHES}. Export the adapter "
                f"again; a change that was meant is read once {HASHES} is removed"
            )


def load_adapter(folder: str | Path, model: PreTrainedModel) -> Attachment:
    """Attach the stored design to `model`, the frozen backbone with a head of the same shape.

    A prefix that was trained through an MLP comes back as its keys and values. Raises StorageError for
    a file that is missing or damaged, and for a model that it does not fit; the model is then as it was.
    """
    path = Path(folder)
    require_whole(path)
    return _attached(path, model)


def _attached(path: Path, model: PreTrainedModel) -> Attachment:
    try:
        design = Design.from_dict(read_json(path / DESIGN)).folded()
    except (DesignError, TypeError, AttributeError) as error:
        raise StorageError(f"{path / DESIGN} holds no design: {error}") from error
    described, _ = _described(path)
    pooling = read_head(path).pooling
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters_of(model).base.items()}
    misfits = sorted(name for name, shape in described.shapes.items() if shapes.get(name) != shape)
    if misfits:
        raise StorageError(
            f"the adapter in {path} was made for another model, {described.model}: {len(misfits)} of its parameters "
            f"are not there or have another shape, such as {misfits[0]}"
        )
    adapter = read_tensors(path / ADAPTER)
    head = read_tensors(path / HEAD) if (path / HEAD).exists() else None
    size = sum(tensor.numel() for tensor in adapter.values())
    try:
        required = sum(math.prod(shape) for shape in stored_shapes(design, described).values())
        if required > size:  # before so many are made: design.json may ask for any number
            raise StorageError(f"the design in {path} has {required:,} parameters or more, its {ADAPTER} {size:,}")
        attachment = attach(model, design, pooling=pooling)
    except (DesignError, BackboneError) as error:
        raise StorageError(f"the adapter in {path} cannot be attached to this model: {error}") from error
    try:
        if head is None and attachment.head_state_dict():
            raise StorageError(f"{path} lacks {HEAD}")
        attachment.load_state_dict(adapter, head)
    except (StateError, StorageError) as error:
        attachment.detach()
        raise StorageError(f"the adapter in {path} was made for another model: {error}") from error
    return attachment


def load_pretrained(folder: str | Path, *, backbone: str = "") -> tuple[PreTrainedModel, Attachment]:
    """Return the backbone that the directory names, in evaluation mode, with the adapter on it.

    It classifies where the task had labels, generates where the task's kind does, and has its checkpoint's own
    head otherwise.
    `backbone` names another place of the same model (see `locate`), where files have moved. Raises
    StorageError where its fingerprint or shapes differ, and for missing or damaged files;
    BackboneError where it cannot be found.
    """
    path = Path(folder)
    require_whole(path)
    return _pretrained(path, backbone, _tokenizer(path) if (path / TOKENIZER).is_dir() else None)


def _pretrained(
    path: Path, backbone: str, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, Attachment]:
    described, task = _described(path)
    place = backbone or described.model
    candidate = describe(place, revision=described.revision)
    if described.fingerprint not in ("", candidate.fingerprint) or described.shapes != candidate.shapes:
        raise StorageError(
            f"the adapter in {path} was trained on {described.model} with fingerprint "
            f"{described.fingerprint or 'unknown'}; {place} has {candidate.fingerprint or 'other shapes'}"
        )
    labels = _labels(task)
    generates = labels is None and task.get("kind") in KINDS
    model = load(place, labels=labels, generates=generates, revision=described.revision, tokenizer=tokenizer)
    return model, _attached(path, model)


def load_model(folder: str | Path, *, backbone: str = "") -> AdaptedModel:
    """Load as `load_pretrained` does, with the tokenizer: text in; labels out, or generated text.

    Raises as that does, and StorageError where the task is of no kind that predicts text.
    """
    path = Path(folder)
    require_whole(path)
    _, facts = _described(path)
    try:
        task = Task.from_stored({name: value for name, value in facts.items() if name in FACTS})
    except (TaskError, TypeError) as error:
        raise StorageError(f"the adapter in {path} is of no task that predicts text: {error}") from error
    labels = _labels(facts)
    if KINDS[task.kind].labelled and labels is None:
        raise StorageError(f"the adapter in {path} has no labels to predict: load_pretrained gives its model")
    if not (path / TOKENIZER).is_dir():
        raise StorageError(f"{path} lacks {TOKENIZER}/")
    tokenizer = _tokenizer(path)
    model, attachment = _pretrained(path, backbone, tokenizer)
    return AdaptedModel(model, tokenizer, task, labels or (), attachment)


def _tokenizer(path: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path / TOKENIZER, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path / TOKENIZER} is no tokenizer: {str(error).splitlines()[0]}") from error
    return tokenizer


def _described(path: Path) -> tuple[Backbone, Mapping[str, Any]]:
    data = read_json(path / MODEL)
    try:
        task: Mapping[str, Any] = data["task"]
        _labels(task)
        backbone = Backbone.from_dict(data["backbone"])
        if backbone.family not in FAMILIES or not isinstance(backbone.model, str):
            raise KeyError(f"family {backbone.family!r}")
        return backbone, task
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StorageError(f"{path / MODEL} does not describe a model: {error!r}") from error


def read_head(path: Path) -> Head:
    """Return what the head of a stored adapter is. Raises StorageError where that cannot be read."""
    try:
        return Head.from_dict(read_json(path / MODEL).get("head", {}))
    except (AttributeError, TypeError, ValueError) as error:
        raise StorageError(f"{path / MODEL} describes no head: {error}") from error


def _labels(task: Mapping[str, Any]) -> tuple[str, ...] | None:
    labels = task.get("labels")
    return None if labels is None else tuple(map(str, labels))


def _on_disk(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raises StorageError where it is missing or damaged."""
    if not path.is_file():
        raise StorageError(f"{path.parent} lacks {path.name}")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{path} is damaged: {error}") from error
    return tensors


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. Raises StorageError where it is missing or damaged."""
    if not path.is_file():
        raise StorageError(f"{path.parent} lacks {path.name}")
    try:
        return untrusted.read_json(path)
    except (ValueError, OSError) as error:
        raise StorageError(f"{path} is damaged: {error}") from error


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
