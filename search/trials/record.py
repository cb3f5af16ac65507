"""What is known of one trial, and how JSON holds it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution

from petl.configuration import Configuration
from petl.measurements import Measurements


class State(StrEnum):
    """Optuna's words for the life of a trial, and PAUSED, which is RUNNING to Optuna."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"  # waits at a rung for its promotion, and needs no worker
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"  # stopped by the rung rule: never complete, never on the front
    FAIL = "FAIL"

    @property
    def open(self) -> bool:
        """Whether the trial may still be trained."""
        return self in (State.RUNNING, State.PAUSED)


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

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON value that `from_dict` reads: in Optuna's attributes, the journal and MLflow alike."""
        return {
            "number": self.number,
            "state": str(self.state),
            "configuration": self.configuration.to_dict() if self.configuration else None,
            "params": dict(self.params),
            "reference": self.reference,
            "name": self.name,
            "rungs": [[epochs, score] for epochs, score in self.rungs.items()],  # as keys JSON would make them text
            "measurements": self.measurements.to_dict() if self.measurements else None,
            "failure": self.failure,
            "started": self.started,
            "ended": self.ended,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrialRecord:
        configuration, measurements = data["configuration"], data["measurements"]
        return cls(
            number=data["number"],
            state=State(data["state"]),
            configuration=Configuration.from_dict(configuration) if configuration else None,
            params=data["params"],
            reference=data["reference"],
            name=data["name"],
            rungs={epochs: float(score) for epochs, score in data["rungs"]},
            measurements=Measurements.from_dict(measurements) if measurements else None,
            failure=data["failure"],
            started=data["started"],
            ended=data["ended"],
        )

    @property
    def key(self) -> int:
        """What tells the trial from other runs of the search."""
        return self.number

    @property
    def epochs(self) -> float:
        """The epochs that the trial has behind it, as far as they are on record."""
        return self.measurements.epochs if self.measurements else max(self.rungs, default=0.0)


def epochs_trained(records: Iterable[TrialRecord]) -> float:
    """Return the epochs that all trials but the references have behind them."""
    return sum(record.epochs for record in records if record.reference is None)


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A proposal that became no trial: its coordinates lie outside the limits, or mean what trial `twin` means.

    `counts` are the values known before training.
    """

    coordinates: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    counts: Mapping[str, float]
    twin: int | None = None

    def to_dict(self, shared: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        """Return the JSON value that `from_dict` reads, without the distributions that are `shared` with the trial.

        A space has fixed dimensions, so these are nearly always all of them.
        """
        return {
            "coordinates": dict(self.coordinates),
            "distributions": {
                name: distribution_to_json(distribution)
                for name, distribution in self.distributions.items()
                if shared.get(name) != distribution
            },
            "counts": dict(self.counts),
            "twin": self.twin,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], shared: Mapping[str, BaseDistribution]) -> Rejected:
        own = {name: json_to_distribution(text) for name, text in data["distributions"].items()}
        return cls(
            coordinates=data["coordinates"],
            distributions={name: own.get(name) or shared[name] for name in data["coordinates"]},
            counts=data["counts"],
            twin=data["twin"],
        )


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Where a trial came from, as the sampler must hear of it again after a restart.

    `coordinates` are the sampler's own (an index where TrialRecord.params shows the size), `counts` the values known
    before training, and `rejected` what it had proposed on the way to this trial.
    """

    coordinates: Mapping[str, Any] = field(default_factory=dict)
    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    rejected: Sequence[Rejected] = ()


@dataclass(frozen=True, kw_only=True)
class Replicate:
    """Trial `number` trained once more, with another `seed`: over once it has measurements, or a failure.

    `started` and `ended` are seconds since the epoch.
    """

    number: int
    seed: int
    measurements: Measurements | None = None
    failure: str | None = None
    started: float = field(default_factory=time.time)
    ended: float | None = None

    @property
    def key(self) -> tuple[int, int]:
        """What tells the replicate from others: the trial's number, and the seed."""
        return self.number, self.seed

    @property
    def state(self) -> State:
        """RUNNING until it is over, also while no worker has it."""
        return State.RUNNING if not self.over else State.FAIL if self.failure else State.COMPLETE

    @property
    def over(self) -> bool:
        """Whether nothing more is to come of it."""
        return self.ended is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON value that `from_dict` reads."""
        return asdict(self) | {"measurements": self.measurements.to_dict() if self.measurements else None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Replicate:
        measured = data["measurements"]
        return cls(**{**data, "measurements": Measurements.from_dict(measured) if measured else None})


@dataclass(frozen=True, kw_only=True)
class SeedSummary:
    """What is known of a trial's score over all its seeds, its own among them.

    `mean` and `spread`, the standard deviation (0 for one seed), are of the `seeds` that were trained to the end;
    `failed` ones were not. `probability` is that of being on the true front, which is the one of means over all seeds;
    `corrected` is the expected mean over all seeds, without the luck for which a trial was picked.
    """

    mean: float
    spread: float
    seeds: int
    failed: int
    probability: float
    corrected: float


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a study has spent: hours of searching, and the device-hours that its trials held."""

    hours: float
    device_hours: float


def discovered(probabilities: Sequence[float], fdr: float = 0.05) -> NDArray[np.bool_]:
    """Return which candidates can be said to be on the true front, given the probability of each that it is.

    They are as many as possible with an expected share of false ones, the false discovery rate, of at most `fdr`.
    """
    chances = np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(-chances, kind="stable")
    shares = np.cumsum(1 - chances[order]) / np.arange(1, len(order) + 1)
    mask = np.zeros(len(order), dtype=np.bool_)
    mask[order[: int((shares <= fdr).sum())]] = True  # the shares ascend
    return mask


def discoveries(summaries: Mapping[int, SeedSummary], fdr: float = 0.05) -> set[int]:
    """Return the numbers of the trials that can be said to be on the true front, as `discovered` selects them."""
    mask = discovered([summary.probability for summary in summaries.values()], fdr)
    return {number for number, on_front in zip(summaries, mask, strict=True) if on_front}
