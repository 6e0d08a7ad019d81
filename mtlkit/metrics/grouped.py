"""Metrics of ranks, over all rows or within groups of them, from one sort of plain integers."""

from __future__ import annotations

import numpy as np

MOST_GROUPS = 1 << 31


class RankedRows:
    """Rows by group and score, and what their order is worth.

    Group, score and label of a row are packed into one 64-bit integer, so that a plain sort, which
    NumPy does with vector instructions, puts all rows in order. Rows of a group with one score are
    a *tie*: every metric is its mean over all orders of the rows of its ties.

    Args:
        scores: (N,) float32, no NaN.
        labels: (N,) bool.
        groups: (N,) group of each row, from 0 to ``MOST_GROUPS - 1``; None for one group.
    """

    def __init__(
        self, scores: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None
    ) -> None:
        # Bits of floats order as integers do, once those of negative ones are turned round.
        bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
        rank = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
        keys = rank << np.uint64(1) | labels.astype(np.uint64)
        if groups is not None:
            keys |= groups.astype(np.uint64) << np.uint64(33)
        keys.sort()

        # Ties, from the lowest score of the first group to the highest of the last.
        without_label = keys >> np.uint64(1)
        starts = _starts(without_label)  # (ties,)
        self.positives = _sums((keys & np.uint64(1)).astype(np.int64), starts)  # (ties,)
        self.rows = np.diff(np.append(starts, len(keys)))  # (ties,)

        # Groups, each of one tie or more.
        self.first_tie = _starts(without_label[starts] >> np.uint64(32))  # (G,)
        self.ties = np.diff(np.append(self.first_tie, len(starts)))  # (G,)
        self.group_rows = _sums(self.rows, self.first_tie)  # (G,)
        self.group_positives = _sums(self.positives, self.first_tie)  # (G,)

    def aucs(self) -> np.ndarray:
        """(G,) the AUC of each group, ties counted half; NaN where it has one class."""
        negatives = self.rows - self.positives
        group_negatives = self.group_rows - self.group_positives

        # Twice the pairs in the right order: those with lower scores, and once the ties.
        lower = _before(negatives, self.first_tie, self.ties)
        twice_won = _sums(self.positives * (2 * lower + negatives), self.first_tie)
        pairs = self.group_positives * group_negatives
        return np.divide(twice_won, 2 * pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)

    def gauc(self, weighted: bool = True) -> float | None:
        """The mean AUC of the groups with both classes, by default weighted by their rows."""
        aucs = self.aucs()
        defined = ~np.isnan(aucs)
        if not defined.any():
            return None
        weights = self.group_rows[defined] if weighted else None
        return float(np.average(aucs[defined], weights=weights))

    def ndcg(self, cut: int) -> float | None:
        """The mean over groups with a positive of DCG@cut over that of the best order."""
        # discounts[i] is what the first i ranks are worth together.
        most = int(min(cut, self.group_rows.max(initial=0)))
        discounts = np.append(0.0, (1 / np.log2(np.arange(2, most + 2))).cumsum())
        gained = self._gained(discounts)
        best = discounts[np.minimum(self.group_positives, most)]
        return self._mean_with_positives(gained, best)

    def recall(self, cut: int) -> float | None:
        """The mean over groups with a positive of the share of these in the first ``cut`` ranks."""
        most = int(min(cut, self.group_rows.max(initial=0)))
        return self._mean_with_positives(self._gained(np.arange(most + 1)), self.group_positives)

    def average_precision(self) -> float | None:
        """The precision at each positive's score, averaged over all positives, groups aside."""
        positives = self.positives[::-1].cumsum()  # (ties,) at this score or above
        rows = self.rows[::-1].cumsum()
        if not len(rows) or not positives[-1]:
            return None
        return float((self.positives[::-1] * (positives / rows)).sum() / positives[-1])

    def _gained(self, worth: np.ndarray) -> np.ndarray:
        """(G,) the worth of the ranks of positives, ``worth[i]`` being that of the first i."""
        rows_below = _before(self.rows, self.first_tie, self.ties)
        last_rank = np.repeat(self.group_rows, self.ties) - rows_below
        first_rank = last_rank - self.rows
        most = len(worth) - 1
        worth_of_tie = worth[np.minimum(last_rank, most)] - worth[np.minimum(first_rank, most)]
        return _sums(self.positives / self.rows * worth_of_tie, self.first_tie)

    def _mean_with_positives(self, gained: np.ndarray, best: np.ndarray) -> float | None:
        has_positive = self.group_positives > 0
        if not has_positive.any():
            return None
        return float((gained[has_positive] / best[has_positive]).mean())


def _starts(values: np.ndarray) -> np.ndarray:
    """Where runs of equal values start."""
    if not len(values):
        return np.zeros(0, np.int64)
    return np.append(0, np.flatnonzero(values[1:] != values[:-1]) + 1)


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The sums of the runs that start there."""
    return np.add.reduceat(values, starts) if len(starts) else values[:0]


def _before(values: np.ndarray, first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The sum of the values before each one in its run."""
    sums = values.cumsum() - values
    return sums - np.repeat(sums[first], lengths)
