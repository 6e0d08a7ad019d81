"""Algebra on Gram matrices of task gradients: everything that only needs inner products.

Most of it works on unit gradients, whose Gram matrix holds the cosines: norms may then differ by
many powers of ten without any loss of digits.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import lsq_linear, nnls

from mtlkit.balancers._solvers import fair_point, pivot_all, unit_rows

FEW = 8  # vectors, up to which a good first guess costs more than it saves
NO_RANK = 1e-10  # so does an eigenvalue of the cosines, beside the largest


def scatter(values: np.ndarray, place: np.ndarray, size: int) -> np.ndarray:
    """(size,) zeros with values (N,) at the positions (N,)."""
    out = np.zeros(size)
    out[place] = values
    return out


def factor(gram: np.ndarray) -> np.ndarray:
    """A (T, T) matrix whose columns have the given inner products: ``A.T @ A == gram``, exact in
    short columns, too.
    """
    place, cosines, norms = unit_rows(gram)
    out = np.zeros_like(gram)
    out[: len(place), place] = _factor(cosines) * norms
    return out


def _factor(gram: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(gram)
    return np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T


def min_norm(gram: np.ndarray) -> np.ndarray:
    """The point of least norm in the convex hull of vectors with a given Gram matrix.

    Args:
        gram: (T, T), positive semidefinite.

    Returns:
        (T,) weights on the simplex.
    """
    if len(gram) == 2:  # the foot of the perpendicular, unless it lies beyond an end
        ahead = np.maximum(gram[::-1, ::-1].diagonal() - gram[0, 1], 0.0)
        return ahead / ahead.sum() if ahead.any() else np.full(2, 0.5)
    return min_norm_point(factor(gram))


def min_norm_point(points: np.ndarray) -> np.ndarray:
    """The point of least norm in the convex hull of the columns of a matrix.

    Exact, as a non-negative least-squares problem: for the u >= 0 that minimises ``|A u|^2 + (1 -
    sum u)^2``, ``u / sum u`` minimises ``|A a|^2`` over the simplex, because for a fixed direction
    a the best length leaves ``m / (1 + m)`` with ``m = |A a|^2``, which grows with m.

    Args:
        points: (P, T).

    Returns:
        (T,) weights on the simplex.
    """
    size = points.shape[1]
    largest = np.abs(points).max()
    if largest <= 0:
        return np.full(size, 1 / size)
    solution = non_negative(
        np.vstack([points / largest, np.ones(size)]), np.append(np.zeros(len(points)), 1.0)
    )
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


def equal_cosines(cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What weights of unit vectors give a sum with the same projection on each of them.

    Args:
        cosines: (N, N).

    Returns:
        x (N,), for which the projections are all 1, or nearest to 1 where they cannot all be equal
        and non-zero; and what keeps them from it: the part (N,) of the ones that no sum can reach,
        itself weights of a vanishing sum.
    """
    values, vectors = np.linalg.eigh(cosines)
    reached = values > NO_RANK * values.max()
    ones = vectors.sum(0)
    x = vectors[:, reached] @ (ones[reached] / values[reached])
    return x, vectors[:, ~reached] @ ones[~reached]


def onto_dual_cone(cosines: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The nearest vectors that conflict with none of some unit vectors.

    The projection of ``sum_t u_t e_t`` is ``sum_t (u_t + y_t) e_t`` with the y >= 0 that makes it
    shortest, for which ``y * z = 0`` where ``z = C (u + y) >= 0``: a linear complementarity
    problem, solved by block principal pivoting (doi:10.1137/110821172), or by non-negative least
    squares where that does not settle.

    Args:
        cosines: C (N, N).
        points: (K, N) u, non-negative, one vector to project a row.

    Returns:
        (K, N) weights u + y.
    """
    if cosines.min() >= 0:  # nothing conflicts
        return points
    size = len(cosines)
    if size > FEW:
        # with every other vector in play, y is a row of the inverse; its signs are a good first
        # guess
        guess = np.linalg.inv(cosines + 1e-3 * np.eye(size))
        held = (points @ guess > 0) & (points == 0)
    else:
        held = points @ cosines < 0
    firm = cosines + 1e-13 * np.eye(size)
    out = np.empty_like(points)
    missed = pivot_all(firm, points, held, out)
    if missed.any():
        root = _factor(cosines)
        for k in np.flatnonzero(missed):
            out[k] = points[k] + non_negative(root, -root @ points[k])
    return out


def mean_on_dual_cone(gram: np.ndarray) -> np.ndarray:
    """(T,) weights of the vector nearest to the mean gradient that conflicts with no gradient."""
    place, cosines, norms = unit_rows(gram)
    weights = np.full(len(gram), 1 / len(gram))
    weights[place] *= onto_dual_cone(cosines, norms[None] / norms.max())[0] / (norms / norms.max())
    return weights


def non_negative(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The x >= 0 that minimises ``|matrix x - target|``."""
    try:
        return nnls(matrix, target)[0]
    except RuntimeError:  # it goes round in circles on some degenerate problems
        return lsq_linear(matrix, target, bounds=(0, np.inf), method="bvls").x


def fair_weights(gram: np.ndarray, alpha: float) -> np.ndarray:
    """The a > 0 with ``G a = a ** (-1 / alpha)``; 0 where a gradient is zero.

    With norms n, h = n^((1 - alpha) / (1 + alpha)), cosines C and ``a = z / n`` this reads ``C z =
    h x^(-1/alpha)``, x = z / h: the minimum of ``z C z / 2 - sum h^2 p(x)``, p' = x^(-1/alpha),
    found by Newton's method with a line search. Where gradients oppose each other so that no step
    serves all, the solution would be infinite; a ridge of ``NO_RANK`` on C keeps it finite.

    Args:
        gram: (T, T), positive semidefinite.
        alpha: Positive.

    Returns:
        (T,) weights.
    """
    place, cosines, norms = unit_rows(gram)
    unit = norms.max()
    h = (norms / unit) ** ((1 - alpha) / (1 + alpha))
    matrix = cosines + NO_RANK * np.eye(len(place))
    z = h * ((h @ h) / (h @ matrix @ h)) ** (
        alpha / (1 + alpha)
    )  # the best multiple of the answer without conflict
    z = fair_point(matrix, h, alpha, z)
    return limited(scatter(z / norms * unit ** ((1 - alpha) / (1 + alpha)), place, len(gram)))


def limited(weights: np.ndarray) -> np.ndarray:
    """Weights scaled down, if need be, to what a float32 can hold."""
    return weights / max(1.0, np.abs(weights).max(initial=0) / 1e30)
