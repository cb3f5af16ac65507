"""Which rows are a batch: each row once, token batches as a plain greedy loop makes them, counts exact."""

from __future__ import annotations

import time

import numpy as np
import pytest

from petl.data.batches import batches_per_epoch, epoch_batches, sorted_batches

DRAW = np.random.default_rng(0)
LENGTHS = {
    "mixed": DRAW.integers(1, 60, 500),
    "equal": np.full(100, 7),
    "heavy tail": np.minimum(DRAW.geometric(0.02, 400) + 3, 300),
    "one": np.array([12]),
    "too long": np.array([5, 900, 4, 900, 6]),
}


def greedy(lengths: np.ndarray, batch_tokens: int) -> list[list[int]]:
    """The lengths of fairseq's batches: one row after the other, from the shortest."""
    batches: list[list[int]] = [[]]
    for length in sorted(lengths.tolist()):
        if batches[-1] and (len(batches[-1]) + 1) * length > batch_tokens:
            batches.append([])
        batches[-1].append(length)
    return batches


@pytest.mark.parametrize("batch_tokens", [1, 50, 64, 1000, 10**6])
@pytest.mark.parametrize("name", LENGTHS)
def test_token_batches_equal_a_greedy_loop(name: str, batch_tokens: int) -> None:
    lengths = LENGTHS[name]
    batches = epoch_batches(lengths, 32, seed=3, epoch=1, batch_tokens=batch_tokens)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert sorted(lengths[batch].tolist() for batch in batches) == sorted(greedy(lengths, batch_tokens))
    assert all(len(batch) * lengths[batch].max() <= batch_tokens for batch in batches if len(batch) > 1)
    assert batches_per_epoch(lengths, 32, batch_tokens) == len(batches)


def test_token_batches_stay_and_their_order_changes() -> None:
    lengths = LENGTHS["mixed"]

    def drawn(seed: int, epoch: int) -> list[tuple[int, ...]]:
        return [tuple(batch.tolist()) for batch in epoch_batches(lengths, 1, seed, epoch, batch_tokens=300)]

    assert drawn(0, 0) == drawn(0, 0)
    assert drawn(0, 0) != drawn(0, 1)
    assert sorted(drawn(0, 0)) == sorted(drawn(0, 1))
    assert sorted(drawn(0, 0)) != sorted(drawn(1, 0)), "rows of equal length are drawn by the seed"
    assert len(drawn(0, 0)) == len(drawn(1, 0))


@pytest.mark.parametrize("size", [1, 7, 32, 500, 1000])
@pytest.mark.parametrize("name", LENGTHS)
def test_batches_of_a_size_are_counted(name: str, size: int) -> None:
    lengths = LENGTHS[name]
    counts = {len(epoch_batches(lengths, size, seed, epoch)) for seed in range(2) for epoch in range(2)}
    assert counts == {batches_per_epoch(lengths, size)}


@pytest.mark.parametrize("batch_tokens", [0, 1, 100, 10**6])
@pytest.mark.parametrize("name", LENGTHS)
def test_evaluation_goes_from_the_longest_within_its_bounds(name: str, batch_tokens: int) -> None:
    lengths = LENGTHS[name]
    batches = list(sorted_batches(lengths, 16, batch_tokens))
    order = np.concatenate(batches)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) <= 0).all()
    assert max(map(len, batches)) <= 16
    if batch_tokens:
        assert all(len(batch) * lengths[batch].max() <= batch_tokens for batch in batches if len(batch) > 1)


def test_a_large_set_is_planned_in_seconds() -> None:
    lengths = np.random.default_rng(0).geometric(0.03, 600_000) + 2
    began = time.perf_counter()
    batches = epoch_batches(lengths, 1, 0, 0, batch_tokens=4096)
    assert time.perf_counter() - began < 5
    assert len(batches) == batches_per_epoch(lengths, 1, 4096)
