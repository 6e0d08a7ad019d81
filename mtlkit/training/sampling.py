"""Which rows of a split are visited, and in what order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mtlkit.data.splits import Split
from mtlkit.data.types import Schema

BLOCK_ROWS = 1 << 12  # that lie side by side on disk and are read together
POOL_ROWS = 1 << 20  # among which a batch is drawn, whatever memory there is
MANY_CODES = 1 << 20


def row_stream(
    rows: int, batch_size: int, generator: torch.Generator, device: torch.device
) -> Iterator[Tensor]:
    """Endless batches of row numbers (batch_size,): one permutation after another, every batch
    full.

    What is left of an epoch begins the first batch of the next, so shapes never change and no row
    is dropped.
    """
    left = torch.empty(0, dtype=torch.int64)
    while True:
        for pool in pools(rows, generator):
            left = torch.cat([left, pool])
            full = len(left) // batch_size * batch_size
            yield from left[:full].to(device).split(batch_size) if full else ()
            left = left[full:]


def pools(rows: int, generator: torch.Generator) -> Iterator[Tensor]:
    """All rows once, in random order, as pools of about a million.

    Up to ``POOL_ROWS`` rows are one pool, a plain permutation. Of more rows, blocks of neighbours
    are dealt out to pools at random, and shuffled within: what is read from disk for a pool is read
    in blocks and stays small.
    """
    count = -(-rows // POOL_ROWS)
    if count == 1:
        yield torch.randperm(rows, generator=generator)
        return
    starts = torch.randperm(-(-rows // BLOCK_ROWS), generator=generator) * BLOCK_ROWS
    within = torch.arange(BLOCK_ROWS)
    for own in starts.tensor_split(count):
        members = (own[:, None] + within).flatten()
        members = members[members < rows]  # the last block may be short
        yield members[torch.randperm(len(members), generator=generator)]


def sample(rows: int, most: int, seed: int) -> np.ndarray | None:
    """A fixed random choice (most,) of row numbers, in order; None when there are no more than
    that.
    """
    if rows <= most:
        return None
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False, shuffle=False))


def probe_rows(
    split: Split, schema: Schema, size: int, positives: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """A fixed stratified sample that holds enough positives of every binary task.

    Rows are drawn within each pattern of binary labels, more than proportionally where positives
    are rare, and weighted by the inverse of their chance, so that weighted means over the sample
    estimate means over the split.

    Args:
        split: Where to draw from.
        schema: Says which tasks are binary.
        size: Rows to draw in proportion.
        positives: Least number of positives of each binary task (all there are, if fewer).
        seed: Of the draw.

    Returns:
        Row numbers (n,) int64 and weights (n,) float32 with mean 1.
    """
    rng = np.random.default_rng(seed)
    binary = [t for t, task in enumerate(schema.tasks) if task.kind == "binary"]
    patterns, counts, member = _patterns(split, binary)
    least = np.zeros(len(patterns))
    for t in range(len(binary)):
        holds = patterns[:, t]
        if holds.any():
            share = counts * holds / (counts * holds).sum()
            least = np.maximum(least, np.ceil(positives * share))
    wanted = np.minimum(counts, np.maximum(least, np.ceil(size * counts / len(split)))).astype(int)
    rows, weights = [], []
    for p, count in enumerate(wanted):
        rows.append(rng.choice(np.flatnonzero(member == p), size=count, replace=False))
        weights.append(np.full(count, counts[p] / count))
    weight = np.concatenate(weights)
    return np.concatenate(rows), (weight / weight.mean()).astype(np.float32)


def _patterns(split: Split, binary: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The patterns (P, tasks) bool of binary labels that occur, in order; how often; which each row
    (N,) has.
    """

    def positive(rows: slice | np.ndarray, t: int) -> np.ndarray:
        return (split.labels[rows, t] > 0) & split.observed[rows, t]

    code: np.ndarray = np.zeros(len(split), np.int32)
    codes = 1
    for t in binary:
        code, codes = code * 2 + positive(slice(None), t), codes * 2
        if codes > MANY_CODES:  # number anew those that occur, in the same order
            used, code = np.unique(code, return_inverse=True)
            code, codes = code.reshape(-1).astype(np.int32), len(used)
    counts = np.bincount(code, minlength=codes)
    used = np.flatnonzero(counts)
    example = np.array([int(np.argmax(code == value)) for value in used])
    patterns = np.array([positive(example, t) for t in binary]).reshape(len(binary), len(used)).T
    return patterns, counts[used], np.searchsorted(used, code) if len(used) < codes else code
