"""Studies as a search may have left them: designs of the unified space, with a made-up but plausible score.

A design is better with size, with diminishing returns, with a learning rate near 1e-3, and with epochs; a tenth of it
is noise. Pareto halving is imitated: a third of the trials of each rung continue.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import tiny
from transformers import BertConfig

from petl.backbones.count import count
from petl.backbones.model import Backbone
from petl.configuration import Configuration
from petl.measurements import Measurements
from petl.presets import parse
from search.results.query import Study
from search.tracking.schema import StudyInfo, StudySummary, TrialRow
from search.trials.record import SeedSummary, Spent, State, TrialRecord
from spaces.space import decode, resolve
from spaces.unified import dimensions

RUNGS = (1.0, 3.0, 9.0)
BEGUN = 1_700_000_000.0
INFO: dict[str, Any] = {
    "objectives": {"score": "accuracy", "cost": "stored_parameters"},
    "backbone": {"model": "bert-base-uncased"},
    "task": {"name": "tweets"},
    "space": {"name": "unified"},
    "constraints": {"stored_percent": 5.0},
    "budget": {"hours": 24.0},
    "resolved": {"rows": {"train": 9_000, "validation": 1_600, "test": 1_600}},
}


@cache
def backbone() -> Backbone:
    return tiny.described(BertConfig())


def records(trials: int, seed: int = 0) -> list[TrialRecord]:
    """The trials of a search, and after them the references `majority`, `head_only` and `full`."""
    random, found = np.random.default_rng(seed), []
    space, clock = resolve("unified", {"parts": None}), BEGUN
    for number in range(trials):
        point = decode(space, _coordinates(random), backbone())
        if random.uniform() < 0.02:
            found.append(_failed(number, point.configuration, point.params, clock))
            continue
        deepest = len(RUNGS) if number % 9 == 0 else 2 if number % 3 == 0 else 1
        luck = random.normal(0, 0.008)
        rungs = {epochs: _score(point.configuration, epochs, luck + random.normal(0, 0.004)) for epochs in RUNGS}
        rungs = {epochs: round(score, 6) for epochs, score in list(rungs.items())[:deepest]}
        clock += 60 * max(rungs)
        complete = deepest == len(RUNGS)
        record = TrialRecord(
            number=number,
            state=State.COMPLETE if complete else State.PRUNED,
            configuration=point.configuration,
            params=point.params,
            rungs=rungs,
            measurements=_measured(point.configuration, rungs[9.0], random) if complete else None,
            started=clock - 60 * max(rungs),
            ended=clock,
        )
        found.append(record)
    for name, design, accuracy in (("majority", "", 0.44), ("head_only", "head_only", 0.61), ("full", "full", 0.79)):
        configuration = Configuration(parse(design).canonical(backbone().layout)) if design else None
        found.append(
            TrialRecord(
                number=len(found),
                state=State.COMPLETE,
                reference=name,
                configuration=configuration,
                measurements=_measured(configuration, accuracy, random)
                if configuration
                else Measurements(accuracy=0.44),
                started=clock,
                ended=clock + 500,
            )
        )
    return found


def study(
    trials: int = 30,
    seed: int = 0,
    *,
    name: str = "tweets",
    replicates: bool = False,
    status: str = "FINISHED",
    of: list[TrialRecord] | None = None,
    **info: Any,
) -> Study:
    """A study of these trials, as `load_study` returns it; with `replicates` its front was trained again."""
    summary = StudySummary(
        name=name,
        experiment_id="1",
        run_id="p",
        status=status,
        started=BEGUN,
        info=StudyInfo.from_dict({**INFO, **info}),
        spent=Spent(hours=3.5, device_hours=6.25),
    )
    own = records(trials, seed) if of is None else of
    rows = tuple(_row(record) for record in own)
    found = Study(summary, rows, "sqlite:///nowhere.db")
    if not replicates:
        return found
    random = np.random.default_rng(seed)
    members = {trial.number for trial in found.front()}
    believed = {number: _believed(own[number], random) for number in members}
    facts = [
        replace(row, facts={"believed": believed[n]}) if (n := row.record.number) in members else row for row in rows
    ]
    return Study(summary, tuple(facts), found.uri)


def _row(record: TrialRecord) -> TrialRow:
    configuration = record.configuration
    known = _counts(configuration) if configuration else {}
    return TrialRow(record=record, run_id=f"run-{record.number}", counts=known)


def _believed(record: TrialRecord, random: np.random.Generator) -> SeedSummary:
    accuracy = record.measurements.accuracy if record.measurements else None
    assert accuracy is not None
    probability = float(random.choice([0.02, 0.4, 0.97, 1.0]))
    return SeedSummary(
        mean=accuracy - 0.006, spread=0.005, seeds=4, failed=0, probability=probability, corrected=accuracy - 0.008
    )


def _coordinates(random: np.random.Generator) -> dict[str, Any]:
    """A point of the unified space of which most parts are absent."""
    own: dict[str, Any] = {}
    for name, dimension in dimensions(backbone(), parts=None).items():
        values = getattr(dimension, "values", None)
        if values is None:
            own[name] = float(10 ** random.uniform(-4, -2))
        elif isinstance(values[0], str):
            own[name] = str(random.choice(values))
        elif values[0] == 0 and name != "first_layer" and random.uniform() < 0.7:
            own[name] = 0
        else:
            own[name] = int(random.integers(len(values)))
    return own


@cache
def _counts_of(design: Any) -> dict[str, float]:
    counted = count(design, backbone(), 3)
    return {
        "stored_parameters": counted.stored,
        "trained_parameters": counted.trained,
        "stored_percent": 100 * counted.stored / counted.base,
    }


def _counts(configuration: Configuration) -> dict[str, float]:
    return _counts_of(configuration.design)


def _score(configuration: Configuration, epochs: float, noise: float) -> float:
    size = math.log1p(_counts(configuration)["stored_parameters"] / 2_000) / 8
    rate = abs(math.log10(configuration.training.learning_rate / 1e-3))
    return min(0.99, (0.58 + 0.2 * min(size, 1.0) - 0.06 * rate**2) * (1 - 0.25 * math.exp(-0.7 * epochs)) + noise)


def _measured(configuration: Configuration, accuracy: float, random: np.random.Generator) -> Measurements:
    counts = _counts(configuration)
    size = math.log1p(counts["stored_parameters"])
    return Measurements(
        accuracy=round(accuracy, 6),
        loss=round(1.2 - accuracy, 6),
        stored_parameters=int(counts["stored_parameters"]),
        trained_parameters=int(counts["trained_parameters"]),
        stored_percent=counts["stored_percent"],
        base_parameters=backbone_size(),
        epochs=9.0,
        seconds=round(400 + 10 * size + float(random.normal(0, 8)), 3),
        peak_memory_mb=round(900 + 25 * size + float(random.normal(0, 6)), 3),
        latency_ms=round(11 + 0.2 * size + float(random.normal(0, 0.3)), 3),
    )


@cache
def backbone_size() -> int:
    return count(parse("head_only"), backbone(), 3).base


def _failed(number: int, configuration: Configuration, params: Any, clock: float) -> TrialRecord:
    return TrialRecord(
        number=number,
        state=State.FAIL,
        configuration=configuration,
        params=params,
        failure="diverged: the loss is nan at step 40",
        started=clock,
        ended=clock + 30,
    )
