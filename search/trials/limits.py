"""Limits on what is known of a design before it trains: how far beyond them its counts are, as samplers learn it."""

from __future__ import annotations

import math
from collections.abc import Mapping


def faults(limits: Mapping[str, float], known: Mapping[str, float]) -> list[str]:
    """Return what is wrong with the limits themselves: on what is not among the `known` counts, or below 0."""
    unknown = [name for name in limits if name not in known]
    impossible = [name for name, limit in limits.items() if not 0 <= limit < math.inf]
    return [f"a limit is on one of {', '.join(known)}; received {name!r}" for name in unknown] + [
        f"the limit on {name} is at least 0; received {limits[name]}" for name in impossible
    ]


def excess(counts: Mapping[str, float], limits: Mapping[str, float]) -> dict[str, float]:
    """Return how far each value lies above its limit, as a difference of logarithms; at most 0 within it.

    What could not be counted, since it is no point of the space, lies above by a factor e.
    """
    return {
        name: math.log1p(counts[name]) - math.log1p(limit) if name in counts else 1.0 for name, limit in limits.items()
    }


def over(counts: Mapping[str, float], limits: Mapping[str, float]) -> float:
    """Return the largest excess: at most 0 where all limits are kept, -inf where there are none."""
    return max(excess(counts, limits).values(), default=-math.inf)


def broken(counts: Mapping[str, float], limits: Mapping[str, float]) -> list[str]:
    """Return the limits that these counts break, in words."""
    return [
        f"{name} {counts[name]:g} > {limits[name]:g}" for name, above in excess(counts, limits).items() if above > 0
    ]
