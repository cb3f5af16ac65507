"""What trials that were not trained in full teach a sampler: the score that they are told with.

Optuna's samplers know one score a trial. For a trial that was stopped, or waits, TEACHINGS say which:

- raw: the score at its last rung, as it is;
- pruned: none; the trial is not told of;
- corrected: that score, and what other trials gained between that rung and their full epochs, in the median;
- model: what a Gaussian process over coordinates and epochs expects of it at full epochs (see `search.front`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from search import front
from search.pareto import MAXIMIZE
from search.record import Records, State, TrialRecord

TEACHINGS: Final = ("raw", "pruned", "corrected", "model")
TEACHING: Final = "model"  # the best on LCBench: `tests/benchmarks/lcbench.py`


def unfinished(record: TrialRecord) -> bool:
    """Whether a trial was stopped or waits with a score."""
    return record.state in (State.PRUNED, State.PAUSED) and bool(record.rungs)


def expected(records: Records, teaching: str, rungs: Collection[float] | None = None) -> dict[int, float]:
    """The score to be told for each unfinished trial; those that are not to be told of are missing.

    `rungs` are what the model learns from, as `front.believe` has them.
    """
    trials = [record for record in records.all() if not record.reference]
    last = {record.number: record.rungs[max(record.rungs)] for record in trials if unfinished(record)}
    if teaching == "raw":
        return last
    if teaching == "pruned":
        return {}
    if teaching == "model":
        believed = front.losses(records, rungs)
        sign = -1 if records.objectives[0].direction == MAXIMIZE else 1
        return {number: sign * believed[number] if number in believed else score for number, score in last.items()}
    gained = front.gains([reached(records, record) for record in trials])
    return {number: score + gained.get(max(records.get(number).rungs), 0.0) for number, score in last.items()}


def reached(records: Records, record: TrialRecord) -> dict[float, float]:
    """The scores of a trial by epochs, the measured one included."""
    curve = dict(record.rungs)
    if record.state is State.COMPLETE and record.measurements and record.configuration:
        score = records.objectives[0].value(record.measurements)
        if score is not None:
            curve[record.configuration.training.epochs] = score
    return curve
