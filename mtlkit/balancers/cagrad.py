"""CAGrad: near the mean gradient, the step whose worst gain over all tasks is best.

max over d of min_t <d, g_t> subject to |d - g_0| <= c |g_0|, g_0 the mean. Solved by d = g_0 + c
|g_0| g_w / |g_w|, w the argmin over the simplex of <g_w, g_0> + c |g_0| |g_w|, g_w = sum_t w_t g_t.

Paper: Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021,
arXiv:2110.14048.

When to use: some care for the task that gains least, without leaving the mean loss as the aim.
When not: c of 1 or more, where it no longer approaches a minimum of the mean loss.
Cost: one backward pass a task.
Deviations: the minimum is exact (a root over exact quadratic programs), not SLSQP's. Where it is at
g_w = 0, which the official code meets with a small number in the denominator, several steps are
best, and the nearest to g_0 is taken. The official code divides the step by 1 + c^2 by default
(``rescale=1``), the paper does not.
Zero: a gradient that is 1e-12 times as long as the longest, or shorter, counts as none.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from mtlkit.balancers._balancer import GramBalancer, GramProblem
from mtlkit.balancers._gramian import factor, mean_on_dual_cone, min_norm_point, scatter
from mtlkit.balancers._solvers import unit_rows

FAR_APART = 1e-3  # norms in a ratio below it


class CAGrad(GramBalancer):
    """Conflict-averse gradient descent."""

    class Options(GramBalancer.Options):
        c: float = Field(
            0.4, ge=0, description="how far from the mean gradient the step may be, in its length"
        )
        rescale: int = Field(
            0, ge=0, le=2, description="what the step is divided by: 0: 1, 1: 1 + c^2, 2: 1 + c"
        )

    search_space: ClassVar = {"c": {"float": [0.05, 0.95]}}
    scale = "native"
    same_as: ClassVar = {"sum": {"c": 0}}
    options: Options

    def solve(self, problem: GramProblem) -> np.ndarray:
        c = self.options.c
        divisor = (1.0, 1 + c**2, 1 + c)[self.options.rescale]
        return worst_case(problem.gramian, c) / divisor


def worst_case(gram: np.ndarray, c: float) -> np.ndarray:
    """(T,) weights of d."""
    # gradients as columns of length 1 or less, their mean g_0, and the ball around it
    gradients = factor(gram / gram.diagonal().max())  # (P, T)
    norms = np.sqrt((gradients**2).sum(0))
    mean = gradients.mean(1)
    radius = c * np.sqrt(mean @ mean)
    uniform = np.full(len(gram), 1 / len(gram))
    if radius <= 1e-10 * norms.mean():
        return uniform

    # d = g_0 + radius g_w / |g_w|
    w, square = _dual_minimum(gradients, norms, mean, radius)
    if square > (1e-5 * (w @ norms)) ** 2:
        if norms.min() < FAR_APART * norms.max():
            sharp = _on_active(gram, c, w > 0)
            if sharp is not None:
                return uniform + sharp
        return uniform + radius / np.sqrt(square) * np.where(norms > 0, w, 0)

    # g_w = 0: towards the nearest step to g_0 that conflicts with no task, which is within reach,
    # up to rounding errors
    move = mean_on_dual_cone(gram) - uniform
    distance = np.sqrt(((gradients @ move) ** 2).sum())
    return uniform + move * radius / max(distance, radius)


def _on_active(gram: np.ndarray, c: float, active: np.ndarray) -> np.ndarray | None:
    """The step for norms that lie far apart, of which :func:`_dual_minimum` knows no more than the
    tasks of the worst gain.

    With unit gradients e_t, d - g_0 is a sum of y_t e_t over these tasks, of length r = c |g_0|,
    and <d, e_t> = v / |g_t| for each of them: two linear systems, and a quadratic equation for v.

    Args:
        gram: (T, T).
        c: Radius in lengths of g_0.
        active: (T,) bool, the tasks whose gain is the worst, as a first guess.

    Returns:
        (T,) weights of d - g_0; None where no set of such tasks is found.
    """
    nonzero, cosines, norms = unit_rows(gram)
    scale = norms.min() / norms
    towards_mean = cosines @ norms / len(gram)  # <g_0, e_t>
    radius = c * np.sqrt(norms @ towards_mean / len(gram))
    in_set = active[nonzero]
    for _ in range(2 * len(gram)):
        index = np.flatnonzero(in_set)
        if not len(index):
            return None
        right = np.stack([scale[index], towards_mean[index]], 1)
        by_gain, by_mean = np.linalg.lstsq(cosines[np.ix_(index, index)], right, rcond=None)[0].T

        # y = (v by_gain - by_mean) / r has length 1 for the larger root of a v^2 - 2 b v + e = 0
        a, b = scale[index] @ by_gain, scale[index] @ by_mean
        e = towards_mean[index] @ by_mean - radius**2
        root = np.sqrt(max(b * b - a * e, 0.0))
        v = (b + root) / a if b > 0 else e / (b - root)
        y = v * by_gain - by_mean

        # the answer, unless a task of the set pulls the wrong way, or another one gains less
        slack = towards_mean + cosines[:, index] @ y - v * scale
        slack[index] = 0
        if y.min() < 0:
            in_set[index[y.argmin()]] = False
        elif slack.min() < -1e-12 * radius:
            in_set[slack.argmin()] = True
        else:
            return scatter(y / norms[index], nonzero[index], len(gram))
    return None


def _dual_minimum(
    gradients: np.ndarray, norms: np.ndarray, mean: np.ndarray, radius: float
) -> tuple[np.ndarray, float]:
    """The w on the simplex of least <g_w, g_0> + radius |g_w|, and |g_w|^2.

    |g_w| is the minimum over s > 0 of (|g_w|^2 / s + s) / 2, and for a fixed s the best w gives the
    point of least norm among the g_t + (s / radius) g_0. So the root of |g_w|^2 = s^2 is wanted,
    in which both sides are piecewise linear in s^2.
    """

    def solution_at(square: float) -> tuple[np.ndarray, float]:
        w = min_norm_point(gradients + np.sqrt(square) / radius * mean[:, None])
        mixture = gradients @ w
        return w, mixture @ mixture

    # no root above the lowest s: g_w is 0
    low, high = (1e-6 * norms[norms > 0].min()) ** 2, 2.0  # the longest gradient has norm 1
    w, length = solution_at(low)
    if length <= low:
        return w, 0.0

    previous, square = (low, length), length
    while high - low > 1e-13 * high:
        w, length = solution_at(square)
        if abs(length - square) <= 1e-13 * square:
            break
        if length > square:
            low = square
        else:
            high = square

        # by secants, which are exact once both points are on one piece; by halving where they
        # leave the interval
        slope = (length - previous[1]) / (square - previous[0])
        previous = (square, length)
        square = (length - slope * square) / (1 - slope) if slope < 1 else high
        if not low < square < high:
            square = np.sqrt(low * high)
    return w, length
