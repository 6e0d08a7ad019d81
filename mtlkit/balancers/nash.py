"""Nash-MTL: the step on which the tasks agree as in a bargaining game.

The a > 0 with G a = 1 / a, G the Gram matrix: of all steps d of a given length, the one of the
largest product of gains prod_t <d, g_t>. It conflicts with no task, does not depend on the norms of
the gradients, and has length sqrt(T).

Paper: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, arXiv:2202.01017.

When to use: gradients of very different size; no task may get worse.
When not: plain SGD, as the step does not shrink near an optimum; almost opposite gradients, whose
weights are large.
Cost: one backward pass a task.
Deviations: solved to rounding errors by Newton's method; the official code takes some steps of a
convex-concave procedure on the Gram matrix divided by its norm, and then clips the step to length 1
(here: ``clip_norm`` of the training settings). Where gradients are exactly opposite, so that there
is no solution, the weights are large but finite and the step is next to 0.
Zero: a gradient that is 1e-12 times as long as the longest, or shorter, counts as none.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mtlkit.balancers._balancer import GramBalancer, GramProblem
from mtlkit.balancers.fairgrad import fair_weights


class Nash(GramBalancer):
    """Nash bargaining: alpha-fairness with alpha = 1, whose equation fairgrad solves."""

    scale = "native"
    same_as: ClassVar = {"bargaining": {}}

    def solve(self, problem: GramProblem) -> np.ndarray:
        return fair_weights(problem.gramian, alpha=1)
