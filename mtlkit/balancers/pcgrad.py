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

from typing import ClassVar

import numpy as np

from mtlkit.balancers._balancer import GramBalancer, GramProblem
from mtlkit.balancers._solvers import compiled


class PCGrad(GramBalancer):
    """Projecting conflicting gradients."""

    scale = "native"
    same_as: ClassVar = {"surgery": {}}

    def solve(self, problem: GramProblem) -> np.ndarray:
        return surgery(problem.gramian, random_orders(problem))


def random_orders(problem: GramProblem) -> np.ndarray:
    """(A, A) for each active task, all of them in random order."""
    rng = problem.rng
    return np.stack([rng.permutation(len(problem.gramian)) for _ in problem.gramian])


@compiled
def surgery(gram: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """(T,) weights of the sum of the projected gradients.

    Args:
        gram: (T, T).
        orders: (T, T) in which order the gradient of each row meets the others.
    """
    size = len(gram)
    weights = np.zeros(size)
    inner = np.empty(size)  # <g_i, g_j> for all j, with the present g_i
    for i in range(size):
        weights[i] += 1
        inner[:] = gram[i]
        for j in orders[i]:
            # if <g_i, g_j> < 0 then g_i -= <g_i, g_j> / |g_j|^2 g_j
            if j != i and gram[j, j] > 0 and inner[j] < 0:
                step = -inner[j] / gram[j, j]
                weights[j] += step
                inner += step * gram[j]
    return weights
