"""The files of a model's weights: whole, under the names that they are looked for, before any tensor is read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from petl.backbones.locate import BackboneError, weight_files
from petl.errors import library

_ONE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_POINTER: Final = b"version https://git-lfs"


def require_weights(folder: Path, model: str) -> None:
    """Raise BackboneError where the weights in a folder are missing, named otherwise, a pointer, or cut off."""
    present = [path.name for path in weight_files(folder)]
    if not present:
        raise BackboneError(f"{model}: no *.safetensors in {folder}")
    for name in _named(folder, model, present):
        if name not in present:
            raise BackboneError(
                f"{model}: weights are read from {_ONE}, or from the files that {_INDEX} names; {folder} lacks {name}, "
                f"it has {', '.join(present)}"
            )
        _require_whole(folder / name, model)


def _named(folder: Path, model: str, present: Iterable[str]) -> list[str]:
    if _ONE in present or not (folder / _INDEX).is_file():
        return [_ONE]
    with library(f"{model}: {folder / _INDEX} does not name the files of weights", BackboneError):
        return sorted({str(name) for name in json.loads((folder / _INDEX).read_text())["weight_map"].values()})


def _require_whole(file: Path, model: str) -> None:
    from safetensors import safe_open

    with file.open("rb") as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            raise BackboneError(
                f"{model}: {file} is a pointer of git-lfs, not the weights: fetch them by `git lfs pull`"
            )
    damaged = library(f"{model}: {file} is damaged or cut off, copy or download it again", BackboneError)
    with damaged, safe_open(file, "numpy"):
        pass
