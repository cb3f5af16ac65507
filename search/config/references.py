"""What is trained beside the front: which references there are, and the settings of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from petl import tasks

CLASSIFICATION: Final = tuple(name for name, kind in tasks.KINDS.items() if kind.labelled)
REFERENCES: Final[Mapping[str, tuple[str, ...]]] = {  # with the kinds of tasks that they are for; by default all these
    "majority": CLASSIFICATION,
    "probe": CLASSIFICATION,
    "head_only": CLASSIFICATION,
    "untuned": tuple(kind for kind in tasks.KINDS if kind not in CLASSIFICATION),
    "full": tuple(tasks.KINDS),
}
BASELINES: Final = ("majority", "probe", "untuned")  # as petl.training.baselines has them, which needs torch


def training_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a reference's settings that are of its training."""
    return {name: value for name, value in settings.items() if name != "head"}
