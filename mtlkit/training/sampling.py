"""Which rows of a split are visited, and in what order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mtlkit.data.splits import Dataset, Split
from mtlkit.data.types import Schema
from mtlkit.models._types import Batch
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.seeding import seed_for

PROBE_ROWS = 512  # rows of the fixed batch on which sharing is found and gradients are probed
PROBE_POSITIVES = 64  # least number of positives of each binary task in that batch
BLOCK_ROWS = 1 << 12  # neighbouring rows that are read from disk together
POOL_ROWS = 1 << 20  # rows among which batches are drawn at a time, however much memory there is
MAX_PATTERN_CODES = 1 << 20  # codes of label patterns before those that do not occur are dropped


def row_stream(
    rows: int,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device,
    groups: Tensor | None = None,
) -> Iterator[Tensor]:
    """Endless batches (batch_size,) int64 of row numbers, one permutation of all rows after
    another.

    The rest of an epoch begins the first batch of the next, so that every batch is full and no row
    is dropped.

    Args:
        groups: (N,) numbers of the groups whose rows come one after another; None for no groups.
    """
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        for pool in pools(rows, generator) if groups is None else [in_groups(groups, generator)]:
            waiting = torch.cat([waiting, pool])

            # Hand out all full batches; a pool may be smaller than one.
            full = len(waiting) // batch_size * batch_size
            if full:
                yield from waiting[:full].to(device).split(batch_size)
            waiting = waiting[full:]


def pools(rows: int, generator: torch.Generator) -> Iterator[Tensor]:
    """All rows once, in random order, as pools of about a million.

    Up to ``POOL_ROWS`` rows are one pool, a plain permutation. More rows are cut into blocks of
    neighbours; the blocks are dealt out to pools at random, and the rows of a pool are shuffled. A
    pool is then read from disk in blocks, and fits into memory.
    """
    pool_count = -(-rows // POOL_ROWS)
    if pool_count == 1:
        yield torch.randperm(rows, generator=generator)
        return

    block_count = -(-rows // BLOCK_ROWS)
    block_starts = torch.randperm(block_count, generator=generator) * BLOCK_ROWS
    row_in_block = torch.arange(BLOCK_ROWS)
    for starts in block_starts.tensor_split(pool_count):
        pool = (starts[:, None] + row_in_block).flatten()
        pool = pool[pool < rows]  # the last block may be short
        yield pool[torch.randperm(len(pool), generator=generator)]


def in_groups(groups: Tensor, generator: torch.Generator) -> Tensor:
    """All rows once, groups (N,) in random order, and the rows of a group in random order."""
    shuffled = torch.randperm(len(groups), generator=generator)
    order = torch.randperm(int(groups.max()) + 1, generator=generator)
    return shuffled[order[groups[shuffled]].argsort(stable=True)]


def sample_rows(
    rows: int, at_most: int, seed: int, codes: np.ndarray | None = None
) -> np.ndarray | None:
    """A fixed random choice of row numbers, sorted; None if there are no more rows than may be.

    Args:
        codes: (rows,) groups of rows, of which whole ones are chosen, one at least; negative codes
            are no group and are left out. None to choose rows.
    """
    if rows <= at_most:
        return None
    rng = np.random.default_rng(seed)
    if codes is not None:
        groups, place, sizes = np.unique(codes, return_inverse=True, return_counts=True)
        order = rng.permutation(len(groups))
        order = order[groups[order] >= 0]
        fits = np.cumsum(sizes[order]) <= at_most
        fits[:1] = True
        is_chosen = np.zeros(len(groups), bool)
        is_chosen[order[fits]] = True
        return np.flatnonzero(is_chosen[place])
    return np.sort(rng.choice(rows, at_most, replace=False, shuffle=False))


def probe_batch(dataset: Dataset, train: DeviceSplit) -> Batch:
    """Fixed training rows with positives of each binary task, weighted by one over their chance."""
    seed = seed_for(0, "probe")
    rows, weights = probe_rows(
        dataset.splits["train"], dataset.schema, PROBE_ROWS, PROBE_POSITIVES, seed
    )
    row_weights = torch.from_numpy(weights).to(train.storage_device)
    batch = train.take(torch.from_numpy(rows), row_weights)

    # These rows hardly come from the same sessions. They count as one session, so that losses that
    # compare rows reach what they reach.
    batch.groups = {name: torch.zeros_like(ids) for name, ids in batch.groups.items()}
    return batch


def probe_rows(
    split: Split, schema: Schema, size: int, positives: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """A fixed stratified sample that holds enough positives of every binary task: row numbers (n,)
    int64 and weights (n,) float32 with mean 1.

    Rows are drawn within each pattern of binary labels, more than proportionally where positives
    are rare, and weighted by the inverse of their chance, so that weighted means over the sample
    estimate means over the split.

    Args:
        schema: Says which tasks are binary.
        size: Rows to draw in proportion.
        positives: Least number of positives of each binary task (all there are, if fewer).
    """
    rng = np.random.default_rng(seed)
    binary_tasks = [t for t, task in enumerate(schema.tasks) if task.kind == "binary"]
    patterns, pattern_counts, pattern_of_row = _label_patterns(split, binary_tasks)

    # The positives of a task are spread over its patterns in proportion to their rows.
    least = np.zeros(len(patterns))
    for column in range(len(binary_tasks)):
        is_positive = patterns[:, column]
        if is_positive.any():
            positive_counts = pattern_counts * is_positive
            share = positive_counts / positive_counts.sum()
            least = np.maximum(least, np.ceil(positives * share))

    # Draw that many rows of each pattern, or its proportional number if that is more.
    proportional = np.ceil(size * pattern_counts / len(split))
    drawn_counts = np.minimum(pattern_counts, np.maximum(least, proportional)).astype(int)
    drawn_rows, drawn_weights = [], []
    for pattern, drawn in enumerate(drawn_counts):
        rows_of_pattern = np.flatnonzero(pattern_of_row == pattern)
        drawn_rows.append(rng.choice(rows_of_pattern, size=drawn, replace=False))
        drawn_weights.append(np.full(drawn, pattern_counts[pattern] / drawn))

    rows, weights = np.concatenate(drawn_rows), np.concatenate(drawn_weights)
    return rows, (weights / weights.mean()).astype(np.float32)


def _label_patterns(
    split: Split, binary_tasks: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The patterns of binary labels that occur in a split.

    Args:
        split: N rows.
        binary_tasks: The columns of B tasks.

    Returns:
        The P patterns (P, B) bool, in lexicographic order; the number of rows (P,) of each; and the
        pattern (N,) of each row.
    """

    def is_positive(rows: slice | np.ndarray, t: int) -> np.ndarray:
        return (split.labels[rows, t] > 0) & split.observed[rows, t]

    # A pattern is a binary number with a digit a task. One pass over a column of labels at a time
    # is all that a memory-mapped split can afford.
    codes: np.ndarray = np.zeros(len(split), np.int32)
    code_count = 1
    for t in binary_tasks:
        codes = codes * 2 + is_positive(slice(None), t)
        code_count *= 2
        if code_count > MAX_PATTERN_CODES:
            # Number the codes that occur anew, in the same order.
            used, renumbered = np.unique(codes, return_inverse=True)
            codes = renumbered.reshape(-1).astype(np.int32)
            code_count = len(used)

    # Read each pattern off the first row that has it.
    counts = np.bincount(codes, minlength=code_count)
    used = np.flatnonzero(counts)
    first_rows = np.array([int(np.argmax(codes == code)) for code in used])
    columns = np.array([is_positive(first_rows, t) for t in binary_tasks])
    patterns = columns.reshape(len(binary_tasks), len(used)).T  # (P, B)
    pattern_of_row = np.searchsorted(used, codes) if len(used) < code_count else codes
    return patterns, counts[used], pattern_of_row
