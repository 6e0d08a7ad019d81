"""Scales of regression targets: what a label becomes before it is trained on, and the way back.

``standardize``: (y - mean) / std of train. ``log1p``: the same of log(1 + y). ``quantile``: the
normal quantile of the rank of y on train. ``none``: y itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Target = Literal["standardize", "log1p", "quantile", "none"]
LEAST_RANK = 1e-7  # of the smallest value on train; its normal quantile is -5.2


def to_normal_ranks(values: np.ndarray, quantiles: Sequence[float], std: float) -> np.ndarray:
    """Normal quantiles of ranks; beyond the range of train they go on in steps of ``std``.

    Args:
        values: (N,) on the original scale.
        quantiles: Rising values on train at evenly spaced ranks.
        std: Standard deviation on train.
    """
    from scipy.special import ndtri  # here: it is slow to import, and few tasks need it

    points, _ = _points(quantiles)
    normal = ndtri(np.clip(middle_ranks(values, points), LEAST_RANK, 1 - LEAST_RANK))
    beyond = values - np.clip(values, points[0], points[-1])
    return normal + beyond / std


def from_normal_ranks(normal: np.ndarray, quantiles: Sequence[float], std: float) -> np.ndarray:
    """The inverse of :func:`to_normal_ranks`; beyond the range of train, too."""
    from scipy.special import ndtr, ndtri

    points, ranks = _points(quantiles)
    end = -ndtri(LEAST_RANK)
    within = np.clip(normal, -end, end)
    return np.interp(ndtr(within), ranks, points) + (normal - within) * std


def middle_ranks(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N,) ranks from 0 to 1 among rising values at evenly spaced ranks; ties get the middle."""
    ranks = np.linspace(0, 1, len(points))
    # From below and from above, which differ where many rows have one value.
    from_below = np.interp(values, points, ranks)
    from_above = 1 - np.interp(-values, -points[::-1], ranks)
    return (from_below + from_above) / 2


def _points(quantiles: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Two values or more, and their ranks."""
    points = np.asarray([*quantiles, quantiles[-1]] if len(quantiles) == 1 else quantiles)
    return points, np.linspace(0, 1, len(points))
