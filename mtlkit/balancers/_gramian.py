"""Algebra on Gram matrices of task gradients: everything that only needs inner products.

Most of it works on unit gradients, whose Gram matrix holds the cosines: norms may then differ by
many powers of ten without any loss of digits.
"""

from __future__ import annotations

import numpy as np

from mtlkit.balancers._solvers import RIDGE, pivot_all, unit_rows

# Up to this number of vectors the time goes into calls, not into algebra: a good first guess costs
# more than it saves, and one compiled call (see ``upgrad``) is faster than many of numpy.
FEW = 8
NO_RANK = 1e-10  # an eigenvalue of the cosines that is smaller than the largest by this factor is 0


def scatter(values: np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
    """(size,) zeros with values (N,) at the positions (N,)."""
    scattered = np.zeros(size)
    scattered[index] = values
    return scattered


def factor(gram: np.ndarray) -> np.ndarray:
    """A (T, T) matrix A with ``A.T @ A == gram``, exact in short columns, too."""
    nonzero, cosines, norms = unit_rows(gram)
    columns = np.zeros_like(gram)
    columns[: len(nonzero), nonzero] = _root(cosines) * norms
    return columns


def _root(gram: np.ndarray) -> np.ndarray:
    """R = S^(1/2) V' with ``R.T @ R == gram``, from the eigenpairs S, V."""
    values, vectors = np.linalg.eigh(gram)
    return np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T


def min_norm(gram: np.ndarray) -> np.ndarray:
    """(T,) weights on the simplex, of the point of least norm in the convex hull of vectors with a
    given Gram matrix.

    Args:
        gram: (T, T), positive semidefinite.
    """
    # two vectors: the foot of the perpendicular, w_1 ~ |g_2|^2 - <g_1, g_2>, unless it lies beyond
    # an end
    if len(gram) == 2:
        distances = np.maximum(gram[::-1, ::-1].diagonal() - gram[0, 1], 0.0)
        return distances / distances.sum() if distances.any() else np.full(2, 0.5)
    # In weights u_t = w_t |g_t| of unit vectors, u' C u is least subject to sum_t u_t / |g_t| = 1:
    # norms of any size lose no digits. A vector of no length is the point itself.
    nonzero, cosines, norms = unit_rows(gram)
    if len(nonzero) < len(gram):
        shares = np.ones(len(gram))
        shares[nonzero] = 0
        return shares / shares.sum()
    inverse_norms = norms.min() / norms
    w = inverse_norms * _shortest(_root(cosines), inverse_norms)
    return w / w.sum()


def min_norm_point(points: np.ndarray) -> np.ndarray:
    """(T,) weights on the simplex, of the point of least norm in the convex hull of the columns of
    a matrix.

    Args:
        points: A (P, T).
    """
    tasks = points.shape[1]
    largest = np.abs(points).max()
    if largest <= 0:
        return np.full(tasks, 1 / tasks)
    u = _shortest(points / largest, np.ones(tasks))
    return u / u.sum()


def _shortest(points: np.ndarray, total: np.ndarray) -> np.ndarray:
    """A multiple of the u >= 0 that minimises ``|A u|^2`` subject to ``r' u = 1``.

    Exact, as a non-negative least-squares problem: the u >= 0 that minimises ``|A u|^2 + (1 - r'
    u)^2`` has that direction, because for a fixed direction a with ``r' a = 1`` the best length
    leaves ``m / (1 + m)`` with ``m = |A a|^2``, which grows with m.

    Args:
        points: A (P, T).
        total: r (T,), positive.
    """
    target = np.append(np.zeros(len(points)), 1.0)
    return non_negative(np.vstack([points, total]), target)


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


def equal_cosines(cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of unit vectors that give a sum with the same projection on each of them.

    Args:
        cosines: C (N, N).

    Returns:
        x = C^+ 1 (N,), for which the projections are all 1, or nearest to 1 where they cannot all
        be equal and non-zero; and what keeps them from it: the component (N,) of the ones that no
        sum can reach, itself weights of a vanishing sum.
    """
    return solve_in_span(cosines, np.ones(len(cosines)))


def solve_in_span(cosines: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """C^+ target (N,), and the component (N,) of the target outside of the span of C (N, N)."""
    values, vectors = np.linalg.eigh(cosines)
    in_span = values > NO_RANK * values.max()
    coordinates = (target[:, None] * vectors).sum(0)
    solution = vectors[:, in_span] @ (coordinates[in_span] / values[in_span])
    return solution, vectors[:, ~in_span] @ coordinates[~in_span]


def onto_dual_cone(cosines: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(K, N) weights u + y of the nearest vectors that conflict with none of some unit vectors.

    The projection of ``sum_t u_t e_t`` is ``sum_t (u_t + y_t) e_t`` with the y >= 0 that makes it
    shortest, for which ``y * z = 0`` where ``z = C (u + y) >= 0``: a linear complementarity
    problem, solved by block principal pivoting, or by non-negative least squares where that does
    not settle.

    Args:
        cosines: C (N, N).
        points: (K, N) u, non-negative, one vector to project a row.
    """
    # nothing conflicts
    if cosines.min() >= 0:
        return points

    # guess where y is above 0: where a vector conflicts with the point, or, for many vectors, by
    # the signs of a row of the inverse, which is y if all the other vectors have y > 0
    size = len(cosines)
    if size > FEW:
        inverse = np.linalg.inv(cosines + 1e-3 * np.eye(size))
        guesses = (points @ inverse > 0) & (points == 0)
    else:
        guesses = points @ cosines < 0

    # z = C u + C y
    regularised = cosines + RIDGE * np.eye(size)
    projected = np.empty_like(points)
    missed = pivot_all(regularised, points, guesses, projected)

    # min |R (u + y)|^2 over y >= 0, C = R' R
    if missed.any():
        root = _root(cosines)
        for k in np.flatnonzero(missed):
            projected[k] = points[k] + non_negative(root, -root @ points[k])
    return projected


def mean_on_dual_cone(gram: np.ndarray) -> np.ndarray:
    """(T,) weights of the vector nearest to the mean gradient that conflicts with no gradient."""
    nonzero, cosines, norms = unit_rows(gram)
    lengths = norms / norms.max()
    weights = np.full(len(gram), 1 / len(gram))
    # sum_t g_t = sum_t n_t e_t in unit gradients e_t; back to weights of g_t
    weights[nonzero] *= onto_dual_cone(cosines, lengths[None])[0] / lengths
    return weights


def non_negative(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The x >= 0 that minimises ``|matrix x - target|``."""
    # here: it takes half a second to import, and a plan needs none of it
    from scipy.optimize import lsq_linear, nnls

    try:
        return nnls(matrix, target)[0]
    except RuntimeError:  # it goes round in circles on some degenerate problems
        return lsq_linear(matrix, target, bounds=(0, np.inf), method="bvls").x
