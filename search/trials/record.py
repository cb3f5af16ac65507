"""Everything that is known of one trial."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial

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


@dataclass(frozen=True, kw_only=True)
class Aside:
    """A proposal that became no trial: its coordinates lie outside the limits, or mean what trial `twin` means.

    `counts` are the values known before training.
    """

    coordinates: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    counts: Mapping[str, float]
    twin: int | None = None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a trial came from, as the sampler must be told again after a restart.

    `coordinates` are the sampler's own (an index where TrialRecord.params shows the size), `asides`
    what it had proposed before on the way to this trial.
    """

    coordinates: Mapping[str, Any] = field(default_factory=dict)
    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    asides: Sequence[Aside] = ()


def _record(trial: FrozenTrial) -> TrialRecord:
    attributes = trial.user_attrs
    outcome, progress = attributes.get("outcome", {}), attributes.get("progress", {})
    state = State(trial.state.name)
    configuration, measurements = attributes["configuration"], outcome.get("measurements")
    return TrialRecord(
        number=trial.number,
        state=State.PAUSED if state is State.RUNNING and progress.get("paused") else state,
        configuration=Configuration.from_dict(configuration) if configuration else None,
        params=attributes["params"],
        reference=attributes["reference"],
        name=attributes["name"],
        rungs={at: float(score) for at, score in progress.get("rungs", ())},
        measurements=Measurements.from_dict(measurements) if measurements else None,
        failure=outcome.get("failure"),
        started=_seconds(trial.datetime_start),
        ended=_seconds(trial.datetime_complete),
    )


def _stop(trial: FrozenTrial) -> dict[int, float]:
    stopped_at = trial.user_attrs.get("progress", {}).get("stopped_at")
    return {} if stopped_at is None else {trial.number: stopped_at}


def _origin(trial: FrozenTrial) -> Origin:
    own = Origin(coordinates=trial.params, distributions=trial.distributions, counts=trial.user_attrs["counts"])
    return replace(own, asides=[_aside_from_dict(data, own) for data in trial.user_attrs["asides"]])


def _aside_to_dict(aside: Aside, origin: Origin) -> dict[str, Any]:
    """A space has fixed dimensions, so the trial's own distributions are nearly always those of the aside."""
    return {
        "coordinates": dict(aside.coordinates),
        "distributions": {
            name: distribution_to_json(distribution)
            for name, distribution in aside.distributions.items()
            if origin.distributions.get(name) != distribution
        },
        "counts": dict(aside.counts),
        "twin": aside.twin,
    }


def _aside_from_dict(data: Mapping[str, Any], origin: Origin) -> Aside:
    others = {name: json_to_distribution(text) for name, text in data["distributions"].items()}
    return Aside(
        coordinates=data["coordinates"],
        distributions={name: others.get(name) or origin.distributions[name] for name in data["coordinates"]},
        counts=data["counts"],
        twin=data["twin"],
    )


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


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
    def over(self) -> bool:
        """Whether nothing more is to come of it."""
        return self.ended is not None

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; `from_dict` reads it back."""
        return asdict(self) | {"measurements": self.measurements.to_dict() if self.measurements else None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Replicate:
        """The inverse of `to_dict`."""
        measured = data["measurements"]
        return cls(**{**data, "measurements": Measurements.from_dict(measured) if measured else None})


@dataclass(frozen=True, kw_only=True)
class Believed:
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


def credible(probability: Sequence[float], most_false: float = 0.05) -> NDArray[np.bool_]:
    """As many as can be said to be on the true front with at most this expected share of false ones among them."""
    chances = np.asarray(probability, dtype=np.float64)
    order = np.argsort(-chances, kind="stable")
    shares = np.cumsum(1 - chances[order]) / np.arange(1, len(order) + 1)
    named = np.zeros(len(order), dtype=np.bool_)
    named[order[: int((shares <= most_false).sum())]] = True  # the shares ascend
    return named


def named(beliefs: Mapping[int, Believed], most_false: float = 0.05) -> set[int]:
    """As many as can be said to be on the true front with at most this expected share of false ones."""
    mask = credible([item.probability for item in beliefs.values()], most_false)
    return {number for number, is_named in zip(beliefs, mask, strict=True) if is_named}
