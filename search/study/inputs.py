"""What a study file names on this machine: looked for before libraries are loaded and anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from petl import tasks
from petl.backbones.locate import BackboneError, locate
from petl.errors import UserError
from search.config.study import StudyConfig

_EXAMPLES: Final = {"causal-lm": "gpt2", "summarization": "facebook/bart-base", "translation": "facebook/bart-base"}


class MissingInputError(UserError):
    """A study file names a model or rows that are not there."""


def require_inputs(config: StudyConfig) -> None:
    """Raise MissingInputError where the model, the rows or their folder do not lie where the study says.

    The hub is not asked.
    """
    missing = []
    try:
        locate(config.backbone.model)
    except BackboneError as error:
        example = _EXAMPLES.get(tasks.resolve(config.task).kind, "roberta-base")
        missing.append(f"{error}. --set backbone.model={example} takes one of the hub, or name another folder")
    folder = config.task.get("data_dir")
    if folder and not Path(folder).is_dir():
        missing.append(
            f"there is no folder {folder}; --set task.data_dir=FOLDER names another one, null takes $PETL_DATA or the "
            "hub"
        )
    for split, path in (config.task.get("paths") or {}).items():
        if not path.startswith("package:") and not Path(path).exists():
            missing.append(f"there are no rows at {path}; --set task.paths.{split}=FILE names others")
    if missing:
        raise MissingInputError("\n  ".join([f"the study {config.study} needs what is not there:", *missing]))
