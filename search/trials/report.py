"""What a worker reports of a training run, and who hears of runs on the driver."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Protocol, TypeAlias

from petl.measurements import Measurements
from search.trials.record import Replicate, TrialRecord

Run: TypeAlias = TrialRecord | Replicate  # what a worker trains: a trial, or one more time with another seed
TWIN: Final = "twin"  # among the facts: the trial of the same configuration whose result a trial was given


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything of a run from its beginning, since an earlier report may have been lost with a driver.

    `process` is the worker's, and `startup_seconds` passed between the assignment and the first step. `points` are
    the curve of training and `validations` the scores at each milestone, as `petl.training.run.Position` has them.
    A run that is done has `measurements`, or a `failure`, which says why it has none. `facts` are published of its
    trial: JSON values by the names in `search.tracking.schema.FACTS`.
    """

    process: int | None = None
    startup_seconds: float | None = None
    points: Sequence[Mapping[str, float]] = ()
    validations: Sequence[Mapping[str, Any]] = ()
    measurements: Measurements | None = None
    failure: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.measurements is not None or self.failure is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON value that `from_dict` reads; what there is nothing of is left out."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        written = {name: value for name, value in named.items() if value not in (None, (), {})}
        return written | ({"measurements": self.measurements.to_dict()} if self.measurements else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        measured = data.get("measurements")
        own = {each.name: data[each.name] for each in fields(cls) if each.name in data}
        return cls(**{**own, "measurements": Measurements.from_dict(measured) if measured else None})

    def to_json(self) -> str:
        """Return the report as text, since Ray would interpret the keys of a mapping."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Report:
        return cls.from_dict(json.loads(text))


def curve(points: Iterable[Mapping[str, float]], validations: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Return a report's `points` and `validations` as steps with metrics, each step with all that is known of it.

    The loss of training batches becomes `train_loss`: `loss` is the validation split's.
    """
    renamed = [{"train_loss" if name == "loss" else name: value for name, value in point.items()} for point in points]
    return renamed + [
        {"step": v["step"], "epoch": v["epoch"], "seconds": v["seconds"], **v["scores"]} for v in validations
    ]


class Listener(Protocol):
    """Hears what happens to runs, each event once and in order, on the driver."""

    def started(self, run: Run) -> None:
        """Called when a worker is given the run, for the first time or again after a resume."""

    def reported(self, run: Run, report: Report) -> None:
        """Called when the run passed a milestone."""

    def restarted(self, run: Run) -> None:
        """Called when the run's process died; another one resumes from the last milestone."""

    def paused(self, run: Run) -> None:
        """Called when the run waits without a worker: for its promotion, or for more budget."""

    def ended(self, run: Run) -> None:
        """Called when nothing more comes of the run: it has its measurements, a failure, or was stopped."""
