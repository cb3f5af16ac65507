"""Which dimensions of a space decide whether a trial is among the best: PED-ANOVA, as Optuna has it.

PED-ANOVA (Watanabe et al. 2023) compares how the best tenth of the trials is spread over a dimension with how all are.
It needs no model of the score, and takes trials that a sampler has bent toward good regions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator

from search.trials.quiet import quiet

FEWEST: Final = 50  # trials: the best tenth of fewer are a handful, which are spread by chance
_LEVELS: Final = 20  # distinct numbers up to which a dimension is a list of steps, as sizes are
_ORDERS: Final = 10.0  # of the largest to the smallest number from which a dimension is seen in its logarithm


def importance(points: Sequence[Mapping[str, Any]], losses: Sequence[float]) -> dict[str, float]:
    """Return the share of each dimension, the largest first; they add up to 1 unless all are 0.

    `points` are coordinates by the names of dimensions. What not all points have, and what is the same in all, has no
    share. Ranges are those of the values that occur. Raises ValueError for fewer than FEWEST points.
    """
    if len(points) < FEWEST:
        raise ValueError(f"importance takes at least {FEWEST} trials; received {len(points)}")
    columns = {name: [point[name] for point in points] for name in points[0] if all(name in point for point in points)}
    scales = {name: _scale(values) for name, values in columns.items() if len(set(values)) > 1}
    if not scales:
        return {}
    coordinates = {name: codes for name, (_, codes) in scales.items()}
    distributions = {name: distribution for name, (distribution, _) in scales.items()}
    with quiet():
        study = optuna.create_study()
        study.add_trials(
            [
                optuna.create_trial(
                    params={name: codes[index] for name, codes in coordinates.items()},
                    distributions=distributions,
                    value=loss,
                )
                for index, loss in enumerate(losses)
            ]
        )
        shares = PedAnovaImportanceEvaluator().evaluate(study)
    total = sum(shares.values())
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return {name: float(share / total) if total else 0.0 for name, share in ordered}


def _scale(values: Sequence[Any]) -> tuple[BaseDistribution, Sequence[Any]]:
    """Return how a dimension is seen, and its values on that scale."""
    if any(isinstance(value, str | bool) for value in values):
        words = [str(value) for value in values]
        return CategoricalDistribution(sorted(set(words))), words
    levels = sorted(set(values))
    if len(levels) <= _LEVELS:
        return IntDistribution(0, len(levels) - 1), np.searchsorted(levels, values).tolist()
    low, high = float(levels[0]), float(levels[-1])
    return FloatDistribution(low, high, log=low > 0 and high / low >= _ORDERS), [float(value) for value in values]
