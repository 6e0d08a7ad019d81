"""How well scores rank labels: the one home of the AUC, ties counted half. No PyTorch, and numba
for many rows only.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

WALKED_ROWS = 1 << 14
"""From so many rows on a compiled walk counts the pairs; for fewer, searches cost less than numba
takes to import.
"""


def auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The area under the ROC curve of scores (N,) for labels (N,) bool; None if a class is missing,
    or for a NaN.
    """
    above, below = scores[labels], scores[~labels]
    if not len(above) or not len(below):
        return None
    won = wins(above, below)
    return None if won is None else won / (2 * len(above) * len(below))


def wins(above: np.ndarray, below: np.ndarray) -> int | None:
    """Twice the number of pairs in which the first is larger, and once that of ties; None if a
    value is NaN.

    Positives and negatives are sorted as plain values, which NumPy does with vector instructions:
    no sort of row numbers is needed, and the count is exact.

    Args:
        above: (P,) at least one.
        below: (N,) at least one.
    """
    above, below = np.sort(above), np.sort(below)
    if np.isnan(above[-1]) or np.isnan(below[-1]):  # sorting puts them last
        return None
    if len(above) + len(below) >= WALKED_ROWS:
        return int(_compiled_walk()(above, below))
    return int(
        np.searchsorted(below, above).sum() + np.searchsorted(below, above, side="right").sum()
    )


@cache
def _compiled_walk() -> Any:
    import numba

    return numba.njit(nogil=True, cache=True)(_walk)


def _walk(above: np.ndarray, below: np.ndarray) -> int:
    """The count in one walk along both sorted arrays."""
    wins, less, at_most = 0, 0, 0  # how many of below are less than x, and at most x
    for x in above:
        while less < len(below) and below[less] < x:
            less += 1
        at_most = max(at_most, less)
        while at_most < len(below) and below[at_most] <= x:
            at_most += 1
        wins += less + at_most
    return wins


def expected_auc(scores: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    """The AUC of rows (N,) that count as positive and as negative with the given weights (N,)."""
    _, place = np.unique(scores, return_inverse=True)
    above, below = np.bincount(place, positive), np.bincount(place, negative)
    beaten = below.cumsum() - below / 2
    return float((above * beaten).sum() / (above.sum() * below.sum()))
