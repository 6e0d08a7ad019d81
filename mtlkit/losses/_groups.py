"""Sums over the rows of each session of a batch: one sort, and no matrix of rows by rows."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkit.data.splits import NO_GROUP

NOTHING = -1e30  # the log of an empty sum: finite, so that no gradient becomes NaN


class RowGroups:
    """Which rows of a batch belong together.

    Args:
        ids: (B,) of sessions, in any order; rows of none (``NO_GROUP``) are alone.
        mask: (B,) bool, the rows that count; None for all.
    """

    def __init__(self, ids: Tensor, mask: Tensor | None) -> None:
        distinct, self.of_row = torch.unique(ids.long(), return_inverse=True)  # sorts
        is_alone = ids.long() == int(NO_GROUP)
        number = is_alone.cumsum(0) - 1
        # The first one keeps the number of "none", the others get numbers of their own.
        new = torch.where(number > 0, len(distinct) - 1 + number, self.of_row)
        self.of_row = torch.where(is_alone, new, self.of_row)
        self.mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask

    def count(self, rows: Tensor) -> Tensor:
        """By group (B,), how many of some rows (B,) bool it has; there are B groups at most."""
        zeros = torch.zeros_like(self.of_row)
        return zeros.index_add(0, self.of_row, (rows & self.mask).long())

    def log_sum_exp(self, values: Tensor, rows: Tensor | None = None) -> Tensor:
        """For each row (B,), log of the sum of exp over the rows of its group; :data:`NOTHING`
        where it has none of them.

        Args:
            values: (B,).
            rows: (B,) bool, the rows that are summed; None for all of the group.
        """
        summed = self.mask if rows is None else self.mask & rows
        lowest = torch.full_like(values, -torch.inf)

        # Without a graph, the largest value of each group.
        largest = lowest.scatter_reduce(
            0, self.of_row, torch.where(summed, values.detach(), lowest), "amax"
        )
        largest = torch.where(largest.isfinite(), largest, 0.0)

        # Rows that do not count are masked before exp: afterwards infinity times 0 would be NaN.
        shifted = torch.where(summed, values - largest[self.of_row], lowest)
        sums = torch.zeros_like(values).index_add(0, self.of_row, shifted.exp())
        is_filled = sums > 0
        logs = torch.where(is_filled, sums, 1.0).log() + largest
        return torch.where(is_filled, logs, NOTHING)[self.of_row]
