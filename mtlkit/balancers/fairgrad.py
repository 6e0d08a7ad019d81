"""FairGrad: the step that shares the gains between the tasks by alpha-fairness.

The a > 0 with G a = a^(-1 / alpha), G the Gram matrix: of all steps d of some length, the one of
the largest sum_t <d, g_t>^(1 - alpha) / (1 - alpha). It conflicts with no task. Alpha near 0 is
uniform, 1 is nash, infinity looks only at the task that gains least.

Paper: Ban & Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, arXiv:2402.15638.

When to use: between uniform and worst-case, with a number to set; no task may get worse. When not:
plain SGD, as the step hardly shrinks near an optimum; almost opposite gradients, whose weights are
large.
Cost: one backward pass a task.
Deviations: solved to rounding errors by Newton's method, where the official code runs a bounded
least-squares solver from equal weights, and then clips the step to length 1. The default alpha is
2, as 1, the official code's, is nash.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from mtlkit.balancers._base import GramBalancer, GramProblem
from mtlkit.balancers._gramian import fair_weights


class FairGrad(GramBalancer):
    """Fair resource allocation."""

    class Options(GramBalancer.Options):
        """Options of fairgrad."""

        alpha: float = Field(
            2.0, gt=0, description="higher cares more for the task that gains least"
        )

    scale = "native"
    options: Options

    def solve(self, problem: GramProblem) -> np.ndarray:
        return fair_weights(problem.gram, self.options.alpha)
