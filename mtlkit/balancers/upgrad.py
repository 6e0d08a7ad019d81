"""UPGrad: the mean of the task gradients, each projected on the steps that conflict with no task.

mean over t of P(g_t), P(v) the nearest vector to v in the cone {d: <d, g_s> >= 0 for all s}.

Paper: Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, arXiv:2406.16232.

When to use: no task may get worse, and a larger gradient should count for more.
When not: cosines of 0 and above, where it is exactly uniform (divided by T).
Cost: one backward pass a task, and one small quadratic program a task.
Deviations: exact, where torchjd, the official code, adds 1e-4 of the trace to the diagonal of the
Gram matrix.
"""

from __future__ import annotations

import numpy as np

from mtlkit.balancers._base import GramBalancer, GramProblem
from mtlkit.balancers._gramian import FEW, onto_dual_cone
from mtlkit.balancers._solvers import mean_of_projections, unit_rows


class UPGrad(GramBalancer):
    """Unconflicting projection of gradients."""

    scale = "native"

    def solve(self, problem: GramProblem) -> np.ndarray:
        if len(problem.gram) <= FEW:
            weights, found = mean_of_projections(problem.gram)
            if found:
                return weights
        place, cosines, norms = unit_rows(problem.gram)
        weights = np.ones(len(problem.gram))
        weights[place] = norms @ onto_dual_cone(cosines, np.eye(len(place))) / norms
        return weights / len(weights)
