"""ConFIG: the step that has the same cosine with every task's gradient.

With unit gradients U, direction d = U^+ 1 / |U^+ 1| and step (sum_t <g_t, d>) d: longer where the
tasks agree. In weights, with cosines C and norms n: C^+ 1 / n, rescaled. It points where imtl-g
points.

Paper: Liu et al., "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks",
ICLR 2025, arXiv:2408.11104.

When to use: gradients of very different size; no task may get worse.
When not: from three tasks on, conflicts can make weights negative; a task's own parameters then
rest, or move on with ``heads=plain``.
Cost: one backward pass a task.
Deviations: cosines are resolved to 1e-10, so directions that differ by less than about 1e-5 count
as one. Without the momentum variant (M-ConFIG), which saves backward passes.
Zero: a gradient that is 1e-12 times as long as the longest, or shorter, counts as none.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mtlkit.balancers._balancer import GramBalancer, GramProblem
from mtlkit.balancers._gramian import equal_cosines, scatter
from mtlkit.balancers._solvers import unit_rows


class ConFIG(GramBalancer):
    """Conflict-free inverse gradients."""

    scale = "native"
    signed = True
    same_as: ClassVar = {"equal cosines": {}}

    def solve(self, problem: GramProblem) -> np.ndarray:
        nonzero, cosines, norms = unit_rows(problem.gramian)
        x, _ = equal_cosines(cosines)  # C^+ 1

        # |U^+ 1|^2 = 1' C^+ C C^+ 1
        projections = cosines @ x
        square = x @ projections
        if square <= 1e-12:  # opposite gradients: no direction
            return np.zeros(len(problem.gramian))

        # (sum_t <g_t, d>) d, with d = U' x / |U^+ 1|
        weights = (norms @ projections) / square * x / norms
        return scatter(weights, nonzero, len(problem.gramian))
