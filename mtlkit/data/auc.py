"""How well scores rank labels: the AUC, with ties counted half.

Nothing here imports PyTorch, and numba is imported for many rows only.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

WALKED_ROWS = 1 << 14
"""From this many rows on a compiled walk counts the pairs; for fewer, searches cost less than the
import of numba.
"""


def auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The area under the ROC curve of scores (N,) for labels (N,) bool; None if a class is missing,
    or for a NaN.
    """
    positives, negatives = scores[labels], scores[~labels]
    if not len(positives) or not len(negatives):
        return None
    twice_won = wins(positives, negatives)
    return None if twice_won is None else twice_won / (2 * len(positives) * len(negatives))


def wins(positives: np.ndarray, negatives: np.ndarray) -> int | None:
    """Twice the number of pairs in which the positive scores higher, and once that of ties; None if
    a score is NaN.

    Both are sorted as plain values, which NumPy does with vector instructions: no sort of row
    numbers is needed, and the count is exact.

    Args:
        positives: (P,) scores of positive rows, at least one.
        negatives: (N,) scores of negative rows, at least one.
    """
    positives, negatives = np.sort(positives), np.sort(negatives)
    if np.isnan(positives[-1]) or np.isnan(negatives[-1]):  # sorting puts them last
        return None
    if len(positives) + len(negatives) >= WALKED_ROWS:
        return int(_compiled_walk()(positives, negatives))
    less = np.searchsorted(negatives, positives)
    at_most = np.searchsorted(negatives, positives, side="right")
    return int(less.sum() + at_most.sum())


@cache
def _compiled_walk() -> Any:
    import numba

    return numba.njit(nogil=True, cache=True)(_walk)


def _walk(positives: np.ndarray, negatives: np.ndarray) -> int:
    """The count in one walk along both sorted arrays."""
    wins = 0
    less, at_most = 0, 0  # how many negatives are less than the score, and at most the score
    for score in positives:
        while less < len(negatives) and negatives[less] < score:
            less += 1
        at_most = max(at_most, less)
        while at_most < len(negatives) and negatives[at_most] <= score:
            at_most += 1
        wins += less + at_most
    return wins


def expected_auc(scores: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    """The AUC of rows (N,) that count as positive and as negative with the given weights (N,)."""
    _, rank = np.unique(scores, return_inverse=True)
    positives, negatives = np.bincount(rank, positive), np.bincount(rank, negative)
    beaten = negatives.cumsum() - negatives / 2
    return float((positives * beaten).sum() / (positives.sum() * negatives.sum()))
