"""Compiled loops of the solvers: what would take T^2 or more turns of the interpreter a step."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

kernel: Any = numba.njit(nogil=True, cache=True, error_model="numpy")
sums: Any = numba.njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"}
)
"""As ``kernel``, with sums in any order, so that they are vectorised."""

NO_LENGTH = 1e-12  # a gradient that is shorter than the longest by this factor counts as zero
ROUNDS = 12  # of principal pivoting
STEPS = 100  # of Newton's method


@kernel
def surgery(gram: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """(T,) weights of pcgrad: gradient i meets the others in the order ``orders[i]`` (T, T)."""
    size = len(gram)
    total = np.zeros(size)
    inner = np.empty(size)  # of the gradient at hand with all
    for i in range(size):
        total[i] += 1
        inner[:] = gram[i]
        for j in orders[i]:
            if j != i and gram[j, j] > 0 and inner[j] < 0:
                more = -inner[j] / gram[j, j]
                total[j] += more
                inner += more * gram[j]
    return total


@kernel
def vaccination(
    gram: np.ndarray, orders: np.ndarray, goals: np.ndarray, beta: float, highest: float
) -> np.ndarray:
    """(T,) weights of gradvac; ``goals`` (T, T), the target cosines, follow the present ones."""
    size = len(gram)
    norms = np.sqrt(np.maximum(np.diag(gram), 0))
    total = np.zeros(size)
    inner = np.empty(size)
    for i in range(size):
        total[i] += 1
        inner[:] = gram[i]
        norm = norms[i]
        for j in orders[i]:
            if j == i or norms[j] <= 0 or norm <= 1e-7 * norms[i]:  # nothing to turn, or to turn to
                continue
            phi = min(1.0, max(-1.0, inner[j] / norm / norms[j]))
            goal = min(goals[i, j], highest)
            if phi < goal:
                longer = np.sqrt(1 - phi**2) / np.sqrt(
                    1 - goal**2
                )  # what is orthogonal to g_j stays
                more = norm / norms[j] * (goal * longer - phi)
                total[j] += more
                inner += more * gram[j]
                norm *= longer
            goals[i, j] += beta * (phi - goals[i, j])
    return total


@kernel
def unit_rows(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cosines of the gradients that are not zero.

    Args:
        gram: (T, T), positive semidefinite.

    Returns:
        Positions (N,) of the non-zero gradients, their cosines (N, N) and their norms (N,).
    """
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    place = np.flatnonzero(norms > NO_LENGTH * norms.max())
    size = len(place)
    cosines, kept = np.ones((size, size)), norms[place]
    for a in range(size):
        for b in range(a):
            value = (gram[place[a], place[b]] + gram[place[b], place[a]]) / 2 / kept[a] / kept[b]
            cosines[a, b] = cosines[b, a] = min(1.0, max(-1.0, value))
    return place, cosines, kept


@sums
def solve_positive(matrix: np.ndarray, target: np.ndarray) -> bool:
    """Solve a positive definite system by Cholesky's method; the lower triangle and ``target`` are
    overwritten.

    Returns:
        Whether it is positive definite.
    """
    size = len(matrix)
    for i in range(size):
        for j in range(i + 1):
            one, other, dot = matrix[i], matrix[j], 0.0
            for k in range(j):
                dot += one[k] * other[k]
            value = one[j] - dot
            if i == j:
                if not value > 0:
                    return False
                matrix[i, i] = np.sqrt(value)
            else:
                matrix[i, j] = value / matrix[j, j]
    for i in range(size):
        for k in range(i):
            target[i] -= matrix[i, k] * target[k]
        target[i] /= matrix[i, i]
    for i in range(size - 1, -1, -1):
        for k in range(i + 1, size):
            target[i] -= matrix[k, i] * target[k]
        target[i] /= matrix[i, i]
    return True


@kernel
def pivot(matrix: np.ndarray, offset: np.ndarray, active: np.ndarray, y: np.ndarray) -> bool:
    """Block principal pivoting: y >= 0 with z = matrix y + offset >= 0 and one of the two 0 in each
    entry.

    Args:
        matrix: (N, N), positive definite.
        offset: (N,).
        active: (N,) bool, the first guess where y is above 0; overwritten.
        y: (N,), the answer.

    Returns:
        Whether it was found within ``ROUNDS`` rounds.
    """
    size = len(matrix)
    tolerance = 1e-12 * np.abs(offset).max()
    for _ in range(ROUNDS):
        place = np.flatnonzero(active)
        part = np.empty((len(place), len(place)))
        answer = np.empty(len(place))
        for a in range(len(place)):
            answer[a] = -offset[place[a]]
            for b in range(a + 1):
                part[a, b] = matrix[place[a], place[b]]
        if not solve_positive(part, answer):
            return False
        y[:] = 0
        for a in range(len(place)):
            y[place[a]] = answer[a]
        wrong = 0
        for i in range(size):
            value = y[i]
            if not active[i]:
                value = offset[i]
                for a in range(len(place)):
                    value += matrix[i, place[a]] * answer[a]
            if value < -tolerance:
                active[i] = not active[i]
                wrong += 1
        if wrong == 0:
            for i in range(size):
                y[i] = max(y[i], 0.0)
            return True
    return False


@kernel
def pivot_all(
    matrix: np.ndarray, points: np.ndarray, guesses: np.ndarray, out: np.ndarray
) -> np.ndarray:
    """:func:`pivot` for the offset of each point; ``out`` is the point plus its y.

    Args:
        matrix: (N, N), positive definite.
        points: (K, N).
        guesses: (K, N) bool, overwritten.
        out: (K, N).

    Returns:
        (K,) bool, where there is no answer.
    """
    missed = np.zeros(len(points), np.bool_)
    y = np.empty(len(matrix))
    for k in range(len(points)):
        missed[k] = not pivot(matrix, points[k] @ matrix, guesses[k], y)
        out[k] = points[k] + y
    return missed


@kernel
def mean_of_projections(gram: np.ndarray) -> tuple[np.ndarray, bool]:
    """(T,) weights of upgrad for a few tasks, and whether they were found: one call, where numpy
    would need dozens.
    """
    place, cosines, norms = unit_rows(gram)
    size = len(place)
    firm = cosines + 1e-13 * np.eye(size)
    total = norms.copy()  # of unit vectors, before the projections add to it
    y = np.empty(size)
    for k in range(size):
        if cosines[k].min() < 0:
            if not pivot(firm, cosines[k].copy(), cosines[k] < 0, y):
                return total, False
            total += norms[k] * y
    weights = np.ones(len(gram))
    weights[place] = total / norms
    return weights / len(gram), True


@kernel
def fair_point(matrix: np.ndarray, h: np.ndarray, alpha: float, start: np.ndarray) -> np.ndarray:
    """The z > 0 with ``matrix z = h (z / h) ** (-1 / alpha)``, by Newton's method with a line
    search.
    """
    z = start.copy()
    last = np.inf
    for _ in range(STEPS):
        force = h * (z / h) ** (-1 / alpha)
        slope = matrix @ z - force
        system = matrix + np.diag(force / (alpha * z))
        move = -slope
        failed = not solve_positive(system, move)
        change = np.abs(move / z).max()
        if failed or 0.5 * last < change < 1e-3:  # down to rounding errors
            break
        if change < 1e-8:  # which Newton's method squares
            z = z + move
            break
        length = 0.95 / max(0.95, (-move / z).max())
        downhill = slope @ move
        while length > 1e-12:
            end = z + length * move
            if (matrix @ end - h * (end / h) ** (-1 / alpha)) @ move <= -0.5 * downhill:
                break
            length /= 2
        z = z + length * move
        last = change
    return z
