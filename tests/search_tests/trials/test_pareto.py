"""The non-dominated sort against a drawn table and brute force, the hypervolume against formulas and sampling."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from petl.measurements import MAXIMIZE, MINIMIZE
from search.trials.pareto import hypervolume, non_dominated, ranks

INF, NAN = math.inf, math.nan

# score (to be maximised), cost (to be minimised); drawn on paper, cost to the right:
#
#   inf |                       n
#    .9 |                   h
#    .8 |         e   g
#    .7 |     c     f
#    .5 | b     d
#    .2 | a
#         1   2   3 4 5     10  30
DRAWN = {
    "a": (0.2, 1),
    "b": (0.5, 1),
    "c": (0.7, 2),
    "d": (0.5, 3),
    "e": (0.8, 3),
    "f": (0.7, 4),
    "g": (0.8, 5),
    "h": (0.9, 10),
    "n": (INF, 30),
    "bad": (-INF, INF),
    "nan score": (NAN, 0),
    "nan cost": (0.9, NAN),
}


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """To be minimised. The definition, for one pair."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def peeled(points: list[tuple[float, ...]]) -> list[int]:
    """Ranks by the definition: the longest chain of points that dominate one another and this one."""
    rank: dict[int, int] = {}

    def depth(index: int) -> int:
        if index not in rank:
            above = [other for other in range(len(points)) if dominates(points[other], points[index])]
            rank[index] = max((depth(other) + 1 for other in above), default=0)
        return rank[index]

    return [depth(index) for index in range(len(points))]


def test_front_of_the_drawn_table() -> None:
    mask = non_dominated(list(DRAWN.values()), (MAXIMIZE, MINIMIZE))
    assert [name for name, on in zip(DRAWN, mask, strict=True) if on] == ["b", "c", "e", "h", "n"]


def test_ranks_of_the_drawn_table() -> None:
    """b alone dominates a; b, c and e dominate d; c and e f; e g; all of them what is bad."""
    got = ranks(list(DRAWN.values()), (MAXIMIZE, MINIMIZE))
    expected = dict.fromkeys("bcehn", 0) | dict.fromkeys("adfg", 1) | {"bad": 2, "nan score": 3, "nan cost": 3}
    assert dict(zip(DRAWN, map(int, got), strict=True)) == expected


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_ranks_equal_the_definition(dimensions: int, seed: int) -> None:
    """On a coarse grid with infinities, so that ties and equal rows abound."""
    levels = [-INF, 0.0, 1.0, 2.0, 3.0, INF]
    draw = np.random.default_rng(seed).integers(0, len(levels), size=(40, dimensions))
    points = [tuple(levels[level] for level in row) for row in draw]
    directions = (MINIMIZE,) * dimensions
    assert list(ranks(points, directions)) == peeled(points)
    negated = [tuple(-value for value in point) for point in points]
    assert list(ranks(negated, (MAXIMIZE,) * dimensions)) == peeled(points)


def test_all_pairs_of_special_values() -> None:
    """Two points from every combination of special values: who is on the front, by the definition."""
    special = [-INF, -1.0, -0.0, 0.0, 1.0, INF, NAN]
    for one, other in itertools.product(itertools.product(special, repeat=2), repeat=2):
        mask = non_dominated([one, other], (MINIMIZE, MINIMIZE))
        odd = [any(map(math.isnan, point)) for point in (one, other)]
        expected_one = not odd[0] and not (not odd[1] and dominates(other, one))
        expected_other = not odd[1] and not (not odd[0] and (dominates(one, other) or one == other))
        assert list(mask) == [expected_one, expected_other], (one, other)


def test_of_equal_rows_the_first_is_on_the_front() -> None:
    values = [(1, 1), (2, 0), (1, 1), (2, 0), (0.5, 3)]
    assert list(non_dominated(values, (MINIMIZE, MINIMIZE))) == [True, True, False, False, True]
    assert list(ranks(values, (MINIMIZE, MINIMIZE))) == [0, 0, 0, 0, 0]


def test_nothing_gives_an_empty_front() -> None:
    assert non_dominated([], (MINIMIZE, MAXIMIZE)).shape == (0,)
    assert hypervolume([], (1.0, 1.0), (MINIMIZE, MAXIMIZE)) == 0.0
    assert list(non_dominated([(NAN, 1.0)], (MINIMIZE, MINIMIZE))) == [False]


def test_hypervolume_of_rectangles() -> None:
    # accuracy 0.5 at cost 1 and 0.8 at cost 3, reference accuracy 0 and cost 10: 0.5 * 9 + 0.3 * 7
    values = [(0.5, 1), (0.8, 3), (0.4, 2), (0.8, 3), (0.9, 11), (-0.1, 0), (NAN, 0)]
    assert hypervolume(values, (0.0, 10.0), (MAXIMIZE, MINIMIZE)) == pytest.approx(0.5 * 9 + 0.3 * 7)
    assert hypervolume([(3.0,), (1.0,)], (5.0,), (MINIMIZE,)) == 4.0
    assert hypervolume([(-INF, 1.0)], (0.0, 2.0), (MINIMIZE, MINIMIZE)) == INF


def test_hypervolume_of_two_overlapping_boxes() -> None:
    # boxes of extents (1, 2, 3) and (2, 1, 1) from the reference (3, 3, 3): 6 + 2 - 1
    assert hypervolume([(2, 1, 0), (1, 2, 2)], (3, 3, 3), (MINIMIZE,) * 3) == pytest.approx(7.0)


@pytest.mark.parametrize("seed", range(4))
def test_hypervolume_in_3d_counts_cells(seed: int) -> None:
    """On an integer grid the volume is the number of unit cells that some point dominates."""
    points = np.random.default_rng(seed).integers(0, 8, size=(25, 3))
    cells = sum(
        any((point <= cell).all() for point in points) for cell in map(np.array, itertools.product(range(7), repeat=3))
    )
    assert hypervolume(points, (7, 7, 7), (MINIMIZE,) * 3) == pytest.approx(cells)
    flipped = points * np.array([1, -1, 1])
    assert hypervolume(flipped, (7, -7, 7), (MINIMIZE, MAXIMIZE, MINIMIZE)) == pytest.approx(cells)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_hypervolume_agrees_with_optuna(dimensions: int) -> None:
    compute = pytest.importorskip("optuna._hypervolume").compute_hypervolume
    points = np.random.default_rng(7).uniform(size=(60, dimensions))
    ours = hypervolume(points, (0.9,) * dimensions, (MINIMIZE,) * dimensions)
    inside = points[(points < 0.9).all(axis=1)]
    assert ours == pytest.approx(compute(inside, np.full(dimensions, 0.9)), rel=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: non_dominated([(1, 2)], ("minimise", MAXIMIZE)), "minimize or maximize; received 'minimise'"),
        (lambda: non_dominated([(1, 2, 3)], (MINIMIZE, MAXIMIZE)), r"2 columns; received shape \(1, 3\)"),
        (lambda: hypervolume([(1, 2)], (1.0, INF), (MINIMIZE, MINIMIZE)), "reference point is finite"),
        (lambda: hypervolume([(1,) * 4], (1.0,) * 4, (MINIMIZE,) * 4), "1 to 3 objectives; received 4"),
    ],
)
def test_errors_say_the_rule(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
