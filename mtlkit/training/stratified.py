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

# Rows are drawn on purpose if the chance that a shuffled batch holds too few of them is higher.
MAX_MISS_CHANCE = 1e-9


@dataclass(frozen=True)
class RareRows:
    """A stratum: rows of which every batch holds some."""

    # What the rows have: ``purchase`` for a label of that task, ``purchase=1`` for a positive one.
    name: str
    rows: np.ndarray  # (n,) int64 row numbers
    count: int  # how many of them are drawn for each batch


@dataclass(frozen=True)
class StratifiedSampler:
    """Draws batches of which some rows are drawn from all, and some from each set of rare rows.

    A row's weight is the number of times that a shuffled batch holds it on average, divided by that
    of a stratified one (the balance heuristic of Veach & Guibas, SIGGRAPH 1995,
    doi:10.1145/218380.218498), so that weighted sums over a batch estimate the same means.
    """

    shuffled_count: int  # rows of a batch that are drawn from all rows
    rare: tuple[RareRows, ...]  # the sets from which the other rows of a batch are drawn
    weights: np.ndarray  # (N,) float32 importance weight of each row

    def stream(self, generator: torch.Generator, device: torch.device) -> Iterator[Tensor]:
        """Endless batches (B,) int64 of row numbers, those of the rare rows last."""
        shuffled = row_stream(len(self.weights), self.shuffled_count, generator, device)
        strata = []
        for stratum in self.rare:
            rows = torch.from_numpy(stratum.rows).to(device)
            positions = row_stream(len(stratum.rows), stratum.count, generator, device)
            strata.append((rows, positions))

        while True:
            batch = [next(shuffled)]
            for rows, positions in strata:
                batch.append(rows[next(positions)])
            yield torch.cat(batch)

    def summary(self) -> dict[str, object]:
        """What the record keeps: rows drawn on purpose, and the span of the importance weights."""
        return {
            "drawn": {stratum.name: stratum.count for stratum in self.rare},
            "lowest_weight": float(self.weights.min()),
            "highest_weight": float(self.weights.max()),
        }


def stratified_sampler(
    split: Split, schema: Schema, batch_size: int, least: int
) -> StratifiedSampler:
    """Plan batches with labels of each task, and with positives of each binary one.

    Args:
        least: Least number of rows with a label of a task, and of its positives, in a batch.

    Raises:
        UsageError: Rows drawn on purpose would fill more than half of a batch.
    """
    rare = _rare_rows(split, schema, batch_size, least)
    shuffled_count = batch_size - sum(stratum.count for stratum in rare)
    if 2 * shuffled_count < batch_size:
        raise UsageError(
            f"{batch_size - shuffled_count} of {batch_size} rows of a batch would be drawn to "
            "cover the tasks: more than half.",
            "--set cover=1, or a larger batch: --set batch_size=8192",
        )

    # How often a batch holds each row on average, and how often a shuffled batch would.
    rows = len(split)
    expected = np.full(rows, shuffled_count / rows)
    for stratum in rare:
        expected[stratum.rows] += stratum.count / len(stratum.rows)
    weights = (batch_size / rows / expected).astype(np.float32)

    return StratifiedSampler(shuffled_count, tuple(rare), weights)


def _rare_rows(split: Split, schema: Schema, batch_size: int, least: int) -> list[RareRows]:
    """The sets of rows of which a shuffled batch might hold less than ``least``."""
    from scipy.stats import binom  # here: it takes a second to import, and few runs need it

    rare = []
    for t, task in enumerate(schema.tasks):
        observed = np.asarray(split.observed[:, t])
        masks = {task.name: observed}
        if task.kind == "binary":
            masks[f"{task.name}=1"] = observed & (np.asarray(split.labels[:, t]) > 0)

        for name, mask in masks.items():
            count = int(mask.sum())
            if count == 0:  # nothing to draw from
                continue
            miss_chance = binom.cdf(least - 1, batch_size, count / len(split))
            if miss_chance > MAX_MISS_CHANCE:
                rare.append(RareRows(name, np.flatnonzero(mask), least))
    return rare
