"""Points of the simplex: weights that are not negative and have a given sum."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def on_simplex(weights: Tensor, active: Tensor) -> Tensor:
    """Non-negative weights (T,), rescaled to sum to the number of active tasks; 0 for idle ones.

    NaN where their sum overflows: rescaled by it, all would be 0.
    """
    weights = weights * active
    total = weights.sum()
    factor = active.sum() / total.clamp_min(torch.finfo(weights.dtype).tiny)
    return weights * factor.masked_fill(total.isinf(), torch.nan)


def softmax_over(logits: Tensor, active: Tensor) -> Tensor:
    """The softmax of the active tasks' logits (T,); 0 for idle ones."""
    weights = torch.softmax(torch.where(active, logits, -torch.inf), 0)
    # without an active task the softmax is NaN
    return torch.where(active, weights, 0.0)


def project_on_simplex(point: np.ndarray, total: float = 1.0) -> np.ndarray:
    """The nearest point (Euclidean) with non-negative entries that sum to ``total``.

    It is ``max(point - m, 0)``, where m is the excess of the largest k entries over ``total``,
    divided among them, for the largest k whose smallest entry is above it.
    """
    descending = np.sort(point)[::-1]
    excess = (descending.cumsum() - total) / np.arange(1, len(point) + 1)
    return np.maximum(point - excess[descending > excess][-1], 0)


def simplex_points(tasks: int, n: int) -> np.ndarray:
    """(n, tasks) positive weights that sum to 1, spread evenly; from three tasks on the first are
    equal.
    """
    if tasks == 1:
        return np.ones((1, 1))

    # two tasks: a line in equal steps
    if tasks == 2:
        first = np.arange(1, n + 1) / (n + 1)
        return np.stack([first, 1 - first], 1)

    # more: -log of uniform points, divided by their sum, is uniform on the simplex
    from scipy.stats import qmc  # here: it takes a second to import, and few runs need it

    uniform = qmc.Halton(tasks, scramble=False).random(n)[1:]  # the first point is 0
    spread = -np.log(uniform)
    return np.vstack([np.full(tasks, 1 / tasks), spread / spread.sum(1, keepdims=True)])
