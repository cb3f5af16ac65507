"""Which dimensions matter, on points whose losses are made up."""

from __future__ import annotations

import numpy as np
import pytest

from search.optimizer.importance import FEWEST, importance


def points(count: int = 300) -> list[dict[str, float | int | str]]:
    random = np.random.default_rng(0)
    return [
        {
            "rate": float(10 ** random.uniform(-4, -2)),
            "size": int(random.choice([0, 1, 8, 64])),
            "insertion": str(random.choice(["parallel", "sequential"])),
            "same": 1,
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("rate", lambda point: abs(np.log10(point["rate"]) + 3)),
        ("size", lambda point: -point["size"]),
        ("insertion", lambda point: point["insertion"] == "parallel"),
    ],
)
def test_what_decides_has_most_of_it(name: str, loss: object) -> None:
    own = points()
    random = np.random.default_rng(1)
    shares = importance(own, [float(loss(point)) + 1e-3 * random.normal() for point in own])  # type: ignore[operator]
    assert next(iter(shares)) == name
    assert shares[name] > 0.7
    assert sum(shares.values()) == pytest.approx(1.0)
    assert set(shares) == {"rate", "size", "insertion"}  # what is the same in all points says nothing


def test_what_some_points_lack_has_no_share() -> None:
    own = points()
    del own[5]["size"]
    assert "size" not in importance(own, [point["rate"] for point in own])  # type: ignore[misc]


def test_points_that_are_all_the_same() -> None:
    assert importance([{"size": 1}] * FEWEST, [float(n) for n in range(FEWEST)]) == {}


def test_too_few_points_say_nothing() -> None:
    with pytest.raises(ValueError, match=f"at least {FEWEST} trials; received {FEWEST - 1}"):
        importance([{"size": 1}] * (FEWEST - 1), [0.0] * (FEWEST - 1))
