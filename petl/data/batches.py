"""Which rows are a batch: functions of the rows' lengths, in tokens, and a seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

_WINDOW: Final = 50  # batches whose rows are sorted by length together: like lengths, yet well mixed


def epoch_batches(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, batch_tokens: int = 0
) -> list[np.ndarray]:
    """Return the batches of one epoch as row indices: a function of (seed, epoch) alone. Every row occurs once.

    Rows are shuffled, sorted by length within windows of some batches, cut into batches of
    `batch_size`, and the batches shuffled again; the last batch cut may be smaller.

    With `batch_tokens` (fairseq's batches) all rows are sorted by length, those of equal length in an
    order drawn by the seed, and cut where one row more would make rows x longest exceed it; a row
    that is longer by itself is a batch of its own. These batches stay for the run, and each epoch
    draws their order. `batch_size` is not used then.
    """
    draw = np.random.default_rng((seed, epoch))
    if batch_tokens:
        order = np.random.default_rng(seed).permutation(len(lengths))
        order = order[np.argsort(lengths[order], kind="stable")]
        batches = np.split(order, _cuts(lengths[order], batch_tokens))
    else:
        order = draw.permutation(len(lengths))
        window = _WINDOW * batch_size
        windows = np.split(order, range(window, len(order), window))
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in windows])
        batches = np.split(order, range(batch_size, len(order), batch_size))
    return [batches[index] for index in draw.permutation(len(batches))]


def batches_per_epoch(lengths: np.ndarray, batch_size: int, batch_tokens: int = 0) -> int:
    """Return how many batches `epoch_batches` makes, whatever its seed and epoch."""
    if batch_tokens:
        return len(_cuts(np.sort(lengths), batch_tokens)) + 1
    return max(1, -(-len(lengths) // batch_size))


def sorted_batches(lengths: np.ndarray, batch_size: int, batch_tokens: int = 0) -> Iterator[np.ndarray]:
    """Return all rows, longest first, for evaluation: little padding, and memory runs out at once or never.

    With `batch_tokens`, a batch is also no larger than rows x longest allows, one row at least.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        fits = batch_tokens // max(1, int(lengths[order[start]])) if batch_tokens else batch_size
        stop = start + max(1, min(batch_size, fits))
        yield order[start:stop]
        start = stop


def _cuts(ascending: np.ndarray, batch_tokens: int) -> list[int]:
    """Return where sorted lengths are cut so that each part's rows x longest keeps within `batch_tokens`."""
    cuts: list[int] = []
    start, rows = 0, len(ascending)
    while True:
        # No batch from here on has more rows than its shortest one allows.
        most = batch_tokens // max(1, int(ascending[start])) if rows else 0
        part = ascending[start : start + most]
        start += max(1, int(np.searchsorted(part * np.arange(1, len(part) + 1), batch_tokens, side="right")))
        if start >= rows:
            return cuts
        cuts.append(start)
