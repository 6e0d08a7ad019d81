"""PCGrad: each task's gradient loses what points against another's.

For each task i, over the others in random order: if <g_i, g_j> < 0 then g_i -= <g_i, g_j> / |g_j|^2
g_j, with the original g_j; the step is the sum. Worked out in inner products, it is a weighted sum
of the task gradients.

Paper: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, arXiv:2001.06782.

When to use: opposing gradients (see the cosine heatmap).
When not: cosines of 0 and above, where it is exactly uniform.
Cost: one backward pass a task.
Deviations: none in the shared parameters; what the rest receives is the recorded ``heads`` setting,
as for all.
"""

from __future__ import annotations

import numpy as np

from mtlkit.balancers._base import GramBalancer, GramProblem
from mtlkit.balancers._solvers import surgery


class PCGrad(GramBalancer):
    """Projecting conflicting gradients."""

    scale = "native"

    def solve(self, problem: GramProblem) -> np.ndarray:
        rng = problem.rng
        orders = np.stack([rng.permutation(len(problem.gram)) for _ in problem.gram])
        return surgery(problem.gram, orders)
