"""Algebra on Gram matrices of task gradients: everything that only needs inner products."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls


def factor(gram: np.ndarray) -> np.ndarray:
    """A (T, T) matrix whose columns have the given inner products: ``A.T @ A == gram``."""
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    return np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T


def min_norm(gram: np.ndarray) -> np.ndarray:
    """The point of least norm in the convex hull of vectors with a given Gram matrix.

    Exact, as a non-negative least-squares problem: for the u >= 0 that minimises ``|A u|^2 + (1 - sum u)^2``,
    ``u / sum u`` minimises ``|A a|^2`` over the simplex, because for a fixed direction a the best length leaves
    ``m / (1 + m)`` with ``m = |A a|^2``, which grows with m.

    Args:
        gram: (T, T), positive semidefinite.

    Returns:
        (T,) weights on the simplex.
    """
    size = len(gram)
    largest = gram.diagonal().max()
    if largest <= 0:
        return np.full(size, 1 / size)
    matrix = np.vstack([factor(gram / largest), np.ones(size)])
    target = np.append(np.zeros(size), 1.0)
    solution, _ = nnls(matrix, target)
    return solution / solution.sum()


def min_norm_above(gram: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """As :func:`min_norm`, with a lower bound on each weight.

    Args:
        gram: (T, T), positive semidefinite.
        floor: (T,) lower bounds that sum to at most 1.

    Returns:
        (T,) weights, at least ``floor``, that sum to 1.
    """
    rest = 1 - floor.sum()
    if rest <= 0:
        return floor / floor.sum()
    # w = floor + rest * b with b on the simplex, and sum w_t g_t = sum b_t (g_floor + rest * g_t)
    change = floor[None, :] + rest * np.eye(len(gram))
    return floor + rest * min_norm(change @ gram @ change.T)


def project_on_simplex(point: np.ndarray, total: float = 1.0) -> np.ndarray:
    """The nearest point (Euclidean) with non-negative entries that sum to ``total``."""
    ordered = np.sort(point)[::-1]
    excess = (ordered.cumsum() - total) / np.arange(1, len(point) + 1)
    return np.maximum(point - excess[ordered > excess][-1], 0)
