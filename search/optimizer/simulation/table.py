"""A finished study as a table that searches can be replayed on: `petl-search export-table`, `petl-search replay`.

A row is a trial that was trained in full: its coordinates, counts, curve and measurements. A replayed search proposes
coordinates as ever and is given the nearest row; between the epochs of a curve scores are interpolated, before its
first one they are that one's. So settings can be compared in seconds on what a task has shown already. What a table
does not hold cannot be found: shares are of what its rows come to together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)

from petl.backbones.model import Backbone
from petl.configuration import Configuration
from petl.errors import UserError
from petl.measurements import Measurements
from search.optimizer.budget import Budget
from search.optimizer.front.encoding import Encoding
from search.optimizer.rungs import rule
from search.optimizer.search import Plan, Search
from search.optimizer.simulation.replay import Clock, Event, replay
from search.trials.objectives import Objectives, objectives, values
from search.trials.pareto import hypervolume
from search.trials.record import State, TrialRecord
from search.trials.records import Records

_FORMAT: Final = 1
_NOWHERE: Final = Backbone("table", "bert", "", "", 1, {}, {})  # a plan names one; a table trains none


class TableError(UserError):
    """A table that cannot be made, or read. The message says what to do."""


@dataclass(frozen=True)
class Row:
    """A trial that was trained in full. `curve` maps epochs to scores."""

    coordinates: Mapping[str, Any]
    configuration: Configuration
    counts: Mapping[str, float]
    curve: Mapping[float, float]
    measurements: Measurements


@dataclass(frozen=True)
class Outcome:
    """What a replayed search came to: its share of the table's hypervolume, by when, and what it trained."""

    share: float
    seconds: float
    epochs: float
    trials: int
    full: int
    events: Sequence[Event] = field(repr=False, default=())


@dataclass(frozen=True)
class Table:
    """Trials of one study over one space. Raises TableError where there is none."""

    study: str
    names: tuple[str, ...]  # of the objectives
    dimensions: Mapping[str, BaseDistribution]
    rows: Sequence[Row]

    def __post_init__(self) -> None:
        if not self.rows:
            raise TableError(
                "a table has at least one trial that was trained in full and is of a space, not of a list of designs; "
                f"study {self.study!r} has none"
            )
        for index, row in enumerate(self.rows):
            lacking = [each.name for each in objectives(*self.names) if each.value(row.measurements) is None]
            if lacking or not row.curve:
                raise TableError(f"row {index} of the table lacks {', '.join(lacking) or 'a curve'}")
            for name, value in row.coordinates.items():
                if name not in self.dimensions or not _holds(self.dimensions[name], value):
                    raise TableError(f"row {index} of the table has {name} = {value!r}, which its dimensions do not")

    @classmethod
    def of(cls, study: str, records: Records) -> Table:
        """Return the trials of a study that are complete and have coordinates in its space."""
        rows: list[Row] = []
        dimensions: dict[str, BaseDistribution] = {}
        score = records.objectives[0]
        for record in records.all():
            origin = records.proposal(record.number)
            if record.state is State.COMPLETE and record.configuration and record.measurements and origin.coordinates:
                dimensions |= origin.distributions
                reached = score.value(record.measurements)
                assert reached is not None  # of a complete trial
                curve = {**record.rungs, record.configuration.training.epochs: reached}
                rows.append(Row(origin.coordinates, record.configuration, origin.counts, curve, record.measurements))
        return cls(study, tuple(each.name for each in records.objectives), dimensions, rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON holds it; `from_dict` reads it back."""
        return {
            "format": _FORMAT,
            "study": self.study,
            "objectives": self.names,
            "dimensions": {name: json.loads(distribution_to_json(each)) for name, each in self.dimensions.items()},
            "rows": [
                {
                    "coordinates": dict(row.coordinates),
                    "configuration": row.configuration.to_dict(),
                    "counts": dict(row.counts),
                    "curve": sorted(row.curve.items()),
                    "measurements": row.measurements.to_dict(),
                }
                for row in self.rows
            ],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Table:
        """Return the table that `to_dict` gave. Raises TableError for another format, ValueError for no table."""
        try:
            if data["format"] != _FORMAT:
                raise TableError(f"it has format {data['format']!r}; this version reads {_FORMAT}")
            dimensions = {name: json_to_distribution(json.dumps(each)) for name, each in data["dimensions"].items()}
            rows = [
                Row(
                    dict(row["coordinates"]),
                    Configuration.from_dict(row["configuration"]),
                    {name: float(value) for name, value in row["counts"].items()},
                    {float(epoch): float(score) for epoch, score in row["curve"]},
                    Measurements.from_dict(row["measurements"]),
                )
                for row in data["rows"]
            ]
            table = cls(data["study"], tuple(data["objectives"]), dimensions, rows)
            if not (dimensions and table._features.size):
                raise ValueError("without dimensions")
            return table
        except KeyError as error:
            raise ValueError(f"{error} is missing") from None
        except (TypeError, AttributeError) as error:
            raise ValueError(str(error)) from None

    @property
    def epochs(self) -> float:
        """What a trial is trained for."""
        return max(row.configuration.training.epochs for row in self.rows)

    # --- a replayed search's view of it ---

    def space(self, trial: Any, backbone: Backbone, /) -> Configuration:
        """Return what the row trains that is nearest to what an Optuna trial suggests."""
        asked = {name: _suggested(trial, name, each) for name, each in self.dimensions.items()}
        apart = self._features - self._encoding.features(self._encoding.rows([asked]))
        return self.rows[int(np.argmin((apart**2).sum(axis=1)))].configuration

    def count(self, configuration: Configuration) -> Mapping[str, float]:
        """Return what was known of a row before its training; what is no row costs nothing."""
        row = self._by_design.get(configuration.design.key)
        return row.counts if row else dict.fromkeys(self.rows[0].counts, 0.0)

    def score(self, record: TrialRecord, epoch: float) -> float:
        """Return the score on the row's curve."""
        curve = sorted(self._row(record).curve.items())
        return float(np.interp(epoch, *np.array(curve).T))

    def measured(self, record: TrialRecord) -> Measurements:
        return self._row(record).measurements

    def search(
        self, *, sampler: str, scheduler: str, trials: int, workers: int, seed: int, options: Mapping[str, Any]
    ) -> Outcome:
        """Replay a search. Raises ValueError for a sampler or rule that does not exist."""
        records, clock = Records.in_memory(self.names), Clock()
        plan = Plan(
            space=self.space,
            backbone=_NOWHERE,
            count=self.count,
            budget=Budget(trials=trials, concurrent=workers),
            rule=rule(scheduler, self.epochs, trials, **options).suited(sampler),
            sampler=sampler,
            seed=seed,
        )
        events = replay(Search(records, plan, clock), self, workers=workers, clock=clock)
        found = [record.measurements for record in records.all() if record.state is State.COMPLETE]
        done = [each for each in found if each]
        spent = events[-1].epochs if events else 0.0
        return Outcome(self.share_of(done), clock.seconds, spent, len(records.all()), len(done), events)

    def _row(self, record: TrialRecord) -> Row:
        assert record.configuration
        return self._by_key[record.configuration.key]

    def share_of(self, found: Sequence[Measurements]) -> float:
        """Return the hypervolume of these, as a share of that of all rows."""
        return self._volume(found) / whole if (whole := self._volume([row.measurements for row in self.rows])) else 1.0

    def _volume(self, measured: Sequence[Measurements]) -> float:
        """Return the hypervolume below the largest costs, and above the score that nine tenths of the rows pass."""
        searched = objectives(*self.names)
        scores, *costs = np.array([_values(searched, row.measurements) for row in self.rows]).T
        worst = [float(column.max()) * (1 + 1e-9) + 1e-9 for column in costs]
        reference = (float(np.quantile(scores, 0.1 if searched[0].higher_is_better else 0.9)), *worst)
        directions = [each.direction for each in searched]
        return hypervolume([_values(searched, each) for each in measured], reference, directions) if measured else 0.0

    @cached_property
    def _by_key(self) -> dict[str, Row]:
        return {row.configuration.key: row for row in self.rows}

    @cached_property
    def _by_design(self) -> dict[str, Row]:
        return {row.configuration.design.key: row for row in self.rows}

    @cached_property
    def _encoding(self) -> Encoding:
        return Encoding(self.dimensions)

    @cached_property
    def _features(self) -> Any:
        return self._encoding.features(self._encoding.rows([row.coordinates for row in self.rows]))


def _values(searched: Objectives, measured: Measurements) -> list[float]:
    """Return the values as a sampler sees them; NaN for what was not measured."""
    return [each.seen(value) for each, value in zip(searched, values(searched, measured), strict=True)]


def _holds(dimension: BaseDistribution, value: Any) -> bool:
    try:
        return dimension._contains(dimension.to_internal_repr(value))
    except (TypeError, ValueError):
        return False


def _suggested(trial: Any, name: str, of: BaseDistribution) -> Any:
    if isinstance(of, CategoricalDistribution):
        return trial.suggest_categorical(name, of.choices)
    assert isinstance(of, IntDistribution | FloatDistribution)
    suggest = trial.suggest_int if isinstance(of, IntDistribution) else trial.suggest_float
    return suggest(name, of.low, of.high, step=of.step, log=of.log)
