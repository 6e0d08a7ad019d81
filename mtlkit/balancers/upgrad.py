"""UPGrad: the mean of the task gradients, each projected on the steps that conflict with no task.

mean over t of P(g_t), P(v) the nearest vector to v in the cone {d: <d, g_s> >= 0 for all s}.

Paper: Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, arXiv:2406.16232.

When to use: no task may get worse, and a larger gradient should count for more.
When not: cosines of 0 and above, where it is exactly uniform (divided by T).
Cost: one backward pass a task, and one small quadratic program a task.
Deviations: exact, where torchjd, the official code, adds 1e-4 of the trace to the diagonal of the
Gram matrix.
Zero: a gradient that is 1e-12 times as long as the longest, or shorter, counts as none.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mtlkit.balancers._balancer import GramBalancer, GramProblem
from mtlkit.balancers._gramian import FEW, onto_dual_cone
from mtlkit.balancers._solvers import RIDGE, compiled, pivot, unit_rows


class UPGrad(GramBalancer):
    """Unconflicting projection of gradients."""

    scale = "native"
    same_as: ClassVar = {"sum without conflict": {}, "surgery of two": {}}

    def solve(self, problem: GramProblem) -> np.ndarray:
        # few tasks: one compiled call, where numpy would need dozens
        if len(problem.gramian) <= FEW:
            weights, solved = mean_of_projections(problem.gramian)
            if solved:
                return weights

        # P(g_t) = n_t P(e_t) in unit gradients e_t; back to weights of g_t
        nonzero, cosines, norms = unit_rows(problem.gramian)
        projections = onto_dual_cone(cosines, np.eye(len(nonzero)))  # (N, N)
        weights = np.ones(len(problem.gramian))
        weights[nonzero] = norms @ projections / norms
        return weights / len(weights)


@compiled
def mean_of_projections(gram: np.ndarray) -> tuple[np.ndarray, bool]:
    """(T,) weights of the mean over t of P(g_t), and whether all projections were found."""
    nonzero, cosines, norms = unit_rows(gram)
    size = len(nonzero)
    regularised = cosines + RIDGE * np.eye(size)
    total = norms.copy()  # weights of unit gradients: each gradient itself, and then what P adds
    y = np.empty(size)
    for k in range(size):
        # P(e_k) = e_k + sum_t y_t e_t
        if cosines[k].min() < 0:
            if not pivot(regularised, cosines[k].copy(), cosines[k] < 0, y):
                return total, False
            total += norms[k] * y
    weights = np.ones(len(gram))
    weights[nonzero] = total / norms
    return weights / len(gram), True
