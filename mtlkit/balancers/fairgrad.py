"""FairGrad: the step that shares the gains between the tasks by alpha-fairness.

The a > 0 with G a = a^(-1 / alpha), G the Gram matrix: of all steps d of some length, the one of
the largest sum_t <d, g_t>^(1 - alpha) / (1 - alpha). It conflicts with no task. Alpha near 0 is
uniform, 1 is nash, infinity looks only at the task that gains least.

Paper: Ban & Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, arXiv:2402.15638.

When to use: between uniform and worst-case, with a number to set; no task may get worse.
When not: plain SGD, as the step hardly shrinks near an optimum; almost opposite gradients, whose
weights are large.
Cost: one backward pass a task.
Deviations: solved to rounding errors by Newton's method, where the official code runs a bounded
least-squares solver from equal weights, and then clips the step to length 1. The default alpha is
2, as 1, the official code's, is nash.
Zero: a gradient that is 1e-12 times as long as the longest, or shorter, counts as none.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from mtlkit.balancers._balancer import GramBalancer, GramProblem
from mtlkit.balancers._gramian import NO_RANK, scatter
from mtlkit.balancers._solvers import compiled, solve_positive, unit_rows

STEPS = 100  # of Newton's method
LARGEST = 1e30  # a weight that a float32 can hold, with room


class FairGrad(GramBalancer):
    """Fair resource allocation."""

    class Options(GramBalancer.Options):
        alpha: float = Field(
            2.0, gt=0, description="higher cares more for the task that gains least"
        )

    search_space: ClassVar = {"alpha": {"log": [0.5, 5]}}
    scale = "native"
    same_as: ClassVar = {"bargaining": {"alpha": 1}}
    options: Options

    def solve(self, problem: GramProblem) -> np.ndarray:
        return fair_weights(problem.gramian, self.options.alpha)


def fair_weights(gram: np.ndarray, alpha: float) -> np.ndarray:
    """(T,) the a > 0 with ``G a = a ** (-1 / alpha)``; 0 where a gradient is zero.

    With norms n, h = n^((1 - alpha) / (1 + alpha)), cosines C and ``a = z / n`` this reads ``C z =
    h x^(-1/alpha)``, x = z / h: the minimum of ``z C z / 2 - sum h^2 p(x)``, p' = x^(-1/alpha),
    found by Newton's method with a line search. Where gradients oppose each other so that no step
    serves all, the solution would be infinite; a ridge of ``NO_RANK`` on C keeps it finite.

    Args:
        gram: G (T, T), positive semidefinite.
        alpha: Positive.
    """
    nonzero, cosines, norms = unit_rows(gram)
    unit = norms.max()
    exponent = (1 - alpha) / (1 + alpha)
    h = (norms / unit) ** exponent
    matrix = cosines + NO_RANK * np.eye(len(nonzero))

    # from the best multiple of h, the answer without conflict
    start = h * ((h @ h) / (h @ matrix @ h)) ** (alpha / (1 + alpha))
    z = fair_point(matrix, h, alpha, start)

    # a = z / n, in the unit of the gradients, scaled down if a float32 cannot hold it
    weights = scatter(z / norms * unit**exponent, nonzero, len(gram))
    return weights / max(1.0, np.abs(weights).max(initial=0) / LARGEST)


@compiled
def fair_point(matrix: np.ndarray, h: np.ndarray, alpha: float, start: np.ndarray) -> np.ndarray:
    """The z > 0 with ``matrix z = h (z / h) ** (-1 / alpha)``, by Newton with a line search."""
    z = start.copy()
    last_change = np.inf
    for _ in range(STEPS):
        # gradient and Hessian of z C z / 2 - sum h^2 p(z / h)
        force = h * (z / h) ** (-1 / alpha)
        slope = matrix @ z - force
        hessian = matrix + np.diag(force / (alpha * z))
        move = -slope
        failed = not solve_positive(hessian, move)

        # down to rounding errors, or so near that the last step squares the error
        change = np.abs(move / z).max()
        if failed or 0.5 * last_change < change < 1e-3:
            break
        if change < 1e-8:
            z = z + move
            break

        # the longest step that keeps z > 0 and does not go uphill again at its end
        length = 0.95 / max(0.95, (-move / z).max())
        downhill = slope @ move
        while length > 1e-12:
            end = z + length * move
            if (matrix @ end - h * (end / h) ** (-1 / alpha)) @ move <= -0.5 * downhill:
                break
            length /= 2
        z = z + length * move
        last_change = change
    return z
