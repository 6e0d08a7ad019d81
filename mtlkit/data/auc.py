"""The AUC of scores, ties counted half, by counting pairs in the right order.

No PyTorch is needed, and numba for many rows only.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

WALKED_ROWS = 1 << 14
"""From this number of rows on a compiled walk counts the pairs. For fewer rows, binary searches
cost less than the import of numba.
"""


def auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The area under the ROC curve; None if a class is missing or a score is NaN.

    Args:
        scores: (N,) any scale.
        labels: (N,) bool.
    """
    positives, negatives = scores[labels], scores[~labels]
    if not len(positives) or not len(negatives):
        return None
    twice_won = wins(positives, negatives)
    return None if twice_won is None else twice_won / (2 * len(positives) * len(negatives))


def wins(positives: np.ndarray, negatives: np.ndarray) -> int | None:
    """Count the pairs in which the positive has the larger score, twice, and ties once; None if a
    score is NaN.

    Positives and negatives are sorted as plain values, which NumPy does with vector instructions:
    no sort of row numbers is needed, and the count is exact.

    Args:
        positives: (P,) scores, at least one.
        negatives: (N,) scores, at least one.
    """
    positives, negatives = np.sort(positives), np.sort(negatives)
    if np.isnan(positives[-1]) or np.isnan(negatives[-1]):  # sorting puts NaN last
        return None
    if len(positives) + len(negatives) >= WALKED_ROWS:
        return int(_compiled_walk()(positives, negatives))

    # A pair that is won counts in both sums, a tie in the second only.
    less = np.searchsorted(negatives, positives).sum()
    at_most = np.searchsorted(negatives, positives, side="right").sum()
    return int(less + at_most)


@cache
def _compiled_walk() -> Any:
    from mtlkit.ops._numba import njit

    return njit()(_walk)


def _walk(positives: np.ndarray, negatives: np.ndarray) -> int:
    """The count of :func:`wins` in one walk along both sorted arrays."""
    count = 0
    less = 0  # number of negatives below the score
    at_most = 0  # number of negatives below the score or equal to it
    for score in positives:
        while less < len(negatives) and negatives[less] < score:
            less += 1
        at_most = max(at_most, less)
        while at_most < len(negatives) and negatives[at_most] <= score:
            at_most += 1
        count += less + at_most
    return count


def expected_auc(
    scores: np.ndarray, positive_weights: np.ndarray, negative_weights: np.ndarray
) -> float:
    """The AUC of rows that count as positives and as negatives with given weights.

    With the probabilities of the two classes as weights this is the AUC to be expected of labels
    that are drawn from them.

    Args:
        scores: (N,) any scale.
        positive_weights: (N,) at least 0.
        negative_weights: (N,) at least 0.
    """
    # Rows of one score are one rank.
    _, rank = np.unique(scores, return_inverse=True)
    positives = np.bincount(rank, positive_weights)
    negatives = np.bincount(rank, negative_weights)

    # Half of the negatives of the same rank count as beaten.
    beaten = negatives.cumsum() - negatives / 2
    won = (positives * beaten).sum()
    return float(won / (positives.sum() * negatives.sum()))
