"""What a study file names on this machine: looked for before libraries are loaded and anything is read."""

from __future__ import annotations

import os
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
    missing, task = [], tasks.resolve(config.task)
    try:
        locate(config.backbone.model)
    except BackboneError as error:
        example = _EXAMPLES.get(task.kind, "roberta-base")
        missing.append(
            f"{error}. --set backbone.model={example} takes one of the hub, --set backbone.model=FOLDER one of yours"
        )
    if task.data_dir and not Path(task.data_dir).is_dir():
        missing.append(
            f"there is no folder {task.data_dir}; --set task.data_dir=FOLDER names another one, null takes $PETL_DATA "
            "or the hub"
        )
    for split, path in task.paths.items():
        if not path.startswith("package:") and not Path(path).exists():
            missing.append(f"there are no rows at {path}; --set task.paths.{split}=FILE names others")
    if missing and not (task.data_dir or task.paths or _in_data_folder(task)):
        missing.append(
            f"its rows are the data set {task.hub} of the hub, for which the network is needed; --set "
            f"task.data_dir=FOLDER reads your own: train.jsonl, or .csv, .tsv, .json, .parquet, with the columns "
            f"{', '.join(task.columns.values())}, and validation and test likewise where you have them"
        )
    if missing:
        raise MissingInputError("\n  ".join([f"the study {config.study} needs what is not there:", *missing]))


def _in_data_folder(task: tasks.Task) -> bool:
    folder = os.environ.get(tasks.DATA)
    return bool(folder) and (Path(folder or "").expanduser() / task.name).is_dir()
