"""Batches that hold rows of every task: rare rows are drawn more often, and weigh less in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtlkit.data.splits import Split
from mtlkit.data.types import Schema
from mtlkit.errors import UsageError
from mtlkit.training.sampling import row_stream

MISSED = 1e-9
"""Rows that a plain batch lacks with a lower chance than this are not drawn on purpose."""


@dataclass(frozen=True)
class Rare:
    """Rows of which every batch shall hold some.

    Args:
        name: What they are: ``purchase`` for the rows with a label, ``purchase=1`` for the
            positives.
        rows: (n,) int64 row numbers.
        count: How many of them are drawn for each batch.
    """

    name: str
    rows: np.ndarray
    count: int


@dataclass(frozen=True)
class StratifiedSampler:
    """How a covering batch is drawn: a part as a plain one, and a part from each set of rare rows.

    A row's weight is the number of times that a plain batch holds it on average, divided by that of
    a covering one (the balance heuristic of Veach & Guibas, SIGGRAPH 1995,
    doi:10.1145/218380.218498), so that weighted sums over a batch estimate the same means.

    Args:
        plain: Number of rows drawn as for a plain batch.
        rare: The rest.
        weights: (N,) float32 importance weight of each row.
    """

    plain: int
    rare: tuple[Rare, ...]
    weights: np.ndarray

    def stream(self, generator: torch.Generator, device: torch.device) -> Iterator[Tensor]:
        """Endless batches of row numbers (plain + rare,), each part a pass over its rows after
        another.
        """
        plain = row_stream(len(self.weights), self.plain, generator, device)
        parts = [
            (
                torch.from_numpy(rare.rows).to(device),
                row_stream(len(rare.rows), rare.count, generator, device),
            )
            for rare in self.rare
        ]
        while True:
            yield torch.cat([next(plain), *(rows[next(places)] for rows, places in parts)])

    def summary(self) -> dict[str, object]:
        """What the record keeps: rows drawn on purpose, and the span of the importance weights."""
        drawn = {rare.name: rare.count for rare in self.rare}
        return {
            "drawn": drawn,
            "lowest_weight": float(self.weights.min()),
            "highest_weight": float(self.weights.max()),
        }


def stratified_sampler(
    split: Split, schema: Schema, batch_size: int, least: int
) -> StratifiedSampler:
    """Plan batches with at least ``least`` rows that have a label of each task, and as many
    positives of binary ones.

    Raises:
        UsageError: That fills more than half of a batch.
    """
    from scipy.stats import binom  # here: it takes a second to import, and few runs need it

    rows = len(split)
    rare = []
    for t, task in enumerate(schema.tasks):
        observed = np.asarray(split.observed[:, t])
        sets = {task.name: observed}
        if task.kind == "binary":
            sets[f"{task.name}=1"] = observed & (np.asarray(split.labels[:, t]) > 0)
        for name, member in sets.items():
            held = int(member.sum())
            if held and binom.cdf(least - 1, batch_size, held / rows) > MISSED:
                rare.append(Rare(name, np.flatnonzero(member), least))
    plain = batch_size - sum(part.count for part in rare)
    if 2 * plain < batch_size:
        raise UsageError(
            f"{batch_size - plain} of {batch_size} rows of a batch would be drawn to stratified_sampler the tasks: more than half.",
            "--set cover=1, or a larger batch: --set batch_size=8192",
        )
    expected = np.full(rows, plain / rows)
    for part in rare:
        expected[part.rows] += part.count / len(part.rows)
    return StratifiedSampler(plain, tuple(rare), (batch_size / rows / expected).astype(np.float32))
