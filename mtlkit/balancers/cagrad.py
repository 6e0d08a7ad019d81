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
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from mtlkit.balancers._balancer import GramBalancer, GramProblem
from mtlkit.balancers._gramian import factor, mean_on_dual_cone, min_norm_point


class CAGrad(GramBalancer):
    """Conflict-averse gradient descent."""

    class Options(GramBalancer.Options):
        """Options of cagrad."""

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
        return uniform + radius / np.sqrt(square) * np.where(norms > 0, w, 0)

    # g_w = 0: towards the nearest step to g_0 that conflicts with no task, which is within reach,
    # up to rounding errors
    move = mean_on_dual_cone(gram) - uniform
    distance = np.sqrt(((gradients @ move) ** 2).sum())
    return uniform + move * radius / max(distance, radius)


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
