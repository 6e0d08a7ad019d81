"""DualProj: the mean gradient is projected on the steps that conflict with no task.

The nearest vector to mean_t g_t in the cone {d: <d, g_t> >= 0 for all t}.

Papers: Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017,
arXiv:1706.08840; for several tasks at once: Quinton & Rey, "Jacobian Descent for Multi-Objective
Optimization", 2024, arXiv:2406.16232.

When to use: no task may get worse, and otherwise the plain mean is wanted.
When not: as long as the mean conflicts with no task it is exactly uniform (divided by T).
Cost: one backward pass a task.
Deviations: exact, where torchjd adds 1e-4 of the trace to the diagonal of the Gram matrix.
Zero: a gradient that is 1e-12 times as long as the longest, or shorter, counts as none.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mtlkit.balancers._balancer import GramBalancer, GramProblem
from mtlkit.balancers._gramian import mean_on_dual_cone


class DualProj(GramBalancer):
    """Projection of the mean on the dual cone."""

    scale = "native"
    same_as: ClassVar = {"sum without conflict": {}, "sum without conflict with the sum": {}}

    def solve(self, problem: GramProblem) -> np.ndarray:
        return mean_on_dual_cone(problem.gramian)
