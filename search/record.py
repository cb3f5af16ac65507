"""TrialRecord: everything that is known of one trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from petl.configuration import Configuration
from petl.measurements import Measurements


class State(StrEnum):
    """Optuna's words for the life of a trial."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"  # stopped by the rung rule: never complete, never on the front
    FAIL = "FAIL"


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial of a study.

    `params` are the space's coordinates, empty for a design that the space does not contain.
    `reference` names a baseline that is shown beside the front and exempt from the study's limits;
    `majority` and `probe` have no configuration. `rungs` maps epochs to the score reached there.
    `started` and `ended` are seconds since the epoch.
    """

    number: int
    state: State
    configuration: Configuration | None = None
    params: Mapping[str, float | int | str] = field(default_factory=dict)
    reference: str | None = None
    name: str = ""  # of an enqueued design, as the user typed it
    rungs: Mapping[float, float] = field(default_factory=dict)
    measurements: Measurements | None = None
    failure: str | None = None
    started: float | None = None
    ended: float | None = None
