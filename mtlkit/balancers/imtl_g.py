"""IMTL-G: the step with the same projection on every task's unit gradient.

g = sum_t a_t g_t with <g, g_t / |g_t|> equal for all t, and sum a = 1. With cosines C and norms n:
a = C^+ 1 / n, rescaled. It points where config points, which gives it another length.

Papers: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021,
openreview.net/forum?id=IMPnRXEWpvr; the pseudo-inverse for dependent gradients: Quinton & Rey,
"Jacobian Descent for Multi-Objective Optimization", 2024, arXiv:2406.16232.

When to use: gradients of very different size that should count alike.
When not: from three tasks on, conflicts can make weights negative; a task's own parameters then
rest, or move on with ``heads=plain``.
Cost: one backward pass a task.
Deviations: where sum a is below a tenth of sum |a|, the latter sets the length: the paper's sum a =
1 would give a step without bounds, or, if sum a is negative, one that makes every task worse.
Opposite gradients, between which only 0 has equal projections, give a step of 0, as in the paper's
formula; a pseudo-inverse of the Gram matrix does not.
Zero: a gradient that is 1e-12 times as long as the longest, or shorter, counts as none.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mtlkit.balancers._balancer import GramBalancer, GramProblem
from mtlkit.balancers._gramian import equal_cosines, scatter
from mtlkit.balancers._solvers import unit_rows


class IMTLG(GramBalancer):
    """Impartial multi-task learning, its gradient part."""

    scale = "native"
    signed = True
    same_as: ClassVar = {"equal cosines": {}}

    def solve(self, problem: GramProblem) -> np.ndarray:
        nonzero, cosines, norms = unit_rows(problem.gramian)

        # equal projections, or a vanishing sum where they cannot be equal
        x, out_of_reach = equal_cosines(cosines)
        if out_of_reach @ out_of_reach > 1e-8 * len(out_of_reach):
            x = out_of_reach

        # a = C^+ 1 / n, sum a = 1
        a = x / (norms / norms.min())
        a = a / max(a.sum(), 0.1 * np.abs(a).sum())
        return scatter(a, nonzero, len(problem.gramian))
