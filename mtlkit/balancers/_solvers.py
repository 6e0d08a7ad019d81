"""Compiled loops that methods share. In plain Python each would take T^2 turns a step."""

from __future__ import annotations

import numpy as np

from mtlkit.ops._numba import njit

compiled = njit(error_model="numpy")
vectorised = njit(error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
"""As ``compiled``, with sums in any order, so that they are vectorised."""

NO_LENGTH = 1e-12  # a gradient that is shorter than the longest by this factor counts as zero
RIDGE = 1e-13  # added to the diagonal of cosines, so that they are positive definite
ROUNDS = 12  # of principal pivoting


@compiled
def unit_rows(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cosines of the gradients that are not zero.

    Args:
        gram: (T, T), positive semidefinite.

    Returns:
        Positions (N,) of the non-zero gradients, their cosines (N, N) and their norms (N,).
    """
    all_norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    nonzero = np.flatnonzero(all_norms > NO_LENGTH * all_norms.max())
    norms = all_norms[nonzero]

    # cos_ab = <g_a, g_b> / (|g_a| |g_b|), symmetric and within [-1, 1] whatever the rounding
    size = len(nonzero)
    cosines = np.ones((size, size))
    for a in range(size):
        for b in range(a):
            i, j = nonzero[a], nonzero[b]
            cosine = (gram[i, j] + gram[j, i]) / 2 / norms[a] / norms[b]
            cosines[a, b] = cosines[b, a] = min(1.0, max(-1.0, cosine))
    return nonzero, cosines, norms


@vectorised
def solve_positive(matrix: np.ndarray, target: np.ndarray) -> bool:
    """Solve a positive definite system by Cholesky's method; returns whether the matrix is one.

    Args:
        matrix: (N, N), of which the lower triangle is read, and overwritten by its root.
        target: (N,) the right side, overwritten by the solution.
    """
    size = len(matrix)

    # matrix = L L', L lower triangular
    for i in range(size):
        for j in range(i + 1):
            row_i, row_j, dot = matrix[i], matrix[j], 0.0
            for k in range(j):
                dot += row_i[k] * row_j[k]
            rest = row_i[j] - dot
            if i == j:
                if not rest > 0:
                    return False
                matrix[i, i] = np.sqrt(rest)
            else:
                matrix[i, j] = rest / matrix[j, j]

    # L u = target, from the first row down
    for i in range(size):
        for k in range(i):
            target[i] -= matrix[i, k] * target[k]
        target[i] /= matrix[i, i]

    # L' x = u, from the last row up
    for i in range(size - 1, -1, -1):
        for k in range(i + 1, size):
            target[i] -= matrix[k, i] * target[k]
        target[i] /= matrix[i, i]
    return True


@compiled
def pivot(matrix: np.ndarray, offset: np.ndarray, active: np.ndarray, y: np.ndarray) -> bool:
    """Block principal pivoting (doi:10.1137/110821172): y >= 0 with z = matrix y + offset >= 0 and
    one of the two 0 in each entry.

    Args:
        matrix: (N, N), positive definite.
        offset: (N,).
        active: (N,) bool, the first guess where y is above 0; overwritten.
        y: (N,), overwritten by the answer.

    Returns:
        Whether it was found within ``ROUNDS`` rounds.
    """
    size = len(matrix)
    tolerance = 1e-12 * np.abs(offset).max()
    for _ in range(ROUNDS):
        # z = 0 where y is active: solve for y there, y is 0 elsewhere
        index = np.flatnonzero(active)
        block = np.empty((len(index), len(index)))
        solution = np.empty(len(index))
        for a in range(len(index)):
            solution[a] = -offset[index[a]]
            for b in range(a + 1):
                block[a, b] = matrix[index[a], index[b]]
        if not solve_positive(block, solution):
            return False
        y[:] = 0
        for a in range(len(index)):
            y[index[a]] = solution[a]

        # an entry with y < 0, or with z < 0, changes sides
        changed = 0
        for i in range(size):
            value = y[i]
            if not active[i]:
                value = offset[i]
                for a in range(len(index)):
                    value += matrix[i, index[a]] * solution[a]
            if value < -tolerance:
                active[i] = not active[i]
                changed += 1

        if changed == 0:
            for i in range(size):
                y[i] = max(y[i], 0.0)
            return True
    return False


@compiled
def pivot_all(
    matrix: np.ndarray, points: np.ndarray, guesses: np.ndarray, answers: np.ndarray
) -> np.ndarray:
    """:func:`pivot` for each of several points, with ``matrix @ point`` as the offset.

    Args:
        matrix: (N, N), positive definite.
        points: (K, N).
        guesses: (K, N) bool, overwritten.
        answers: (K, N), overwritten by each point plus its y.

    Returns:
        (K,) bool, where there is no answer.
    """
    missed = np.zeros(len(points), np.bool_)
    y = np.empty(len(matrix))
    for k in range(len(points)):
        missed[k] = not pivot(matrix, points[k] @ matrix, guesses[k], y)
        answers[k] = points[k] + y
    return missed
