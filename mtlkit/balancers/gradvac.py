"""GradVac: turns gradients towards each other until their cosines reach those of past steps.

For each task i, over the others in random order: where phi = cos(g_i, g_j) is below the target
rho_ij, g_i += |g_i| (rho sqrt(1 - phi^2) - phi sqrt(1 - rho^2)) / (|g_j| sqrt(1 - rho^2)) g_j, with
the original g_j, after which the cosine is rho; then rho_ij <- (1 - beta) rho_ij + beta phi. The
step is the sum. rho starts at 0, where the rule is that of pcgrad; with ``beta=0`` it stays there.

Paper: Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task Optimization in
Massively Multilingual Models", ICLR 2021, arXiv:2010.05874.

When to use: tasks that are known to agree, whose gradients agree less in some steps.
When not: a few steps of training: rho needs about 1 / beta of them; negative targets let conflict
pass.
Cost: one backward pass a task.
Deviations: one cosine for all shared parameters, not one a layer; rho is kept below .999, as at 1
nothing reaches it. There is no official code; LibMTL's moves rho only where phi < rho, so that
targets never rise, with beta .5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.balancers._balancer import GramBalancer, GramProblem
from mtlkit.balancers._solvers import compiled
from mtlkit.balancers.pcgrad import random_orders
from mtlkit.data.types import Task

HIGHEST = 0.999  # target
VANISHED = 1e-7  # a gradient that is shorter than it was by this factor has no direction


class GradVac(GramBalancer):
    """Gradient vaccine."""

    class Options(GramBalancer.Options):
        beta: float = Field(
            0.01, ge=0, le=1, description="how fast the target cosines follow the present ones"
        )

    search_space: ClassVar = {"beta": {"log": [1e-3, 0.5]}}
    scale = "native"
    same_as: ClassVar = {"surgery": {"beta": 0}}
    options: Options

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        self.target: Tensor = nn.Buffer(torch.zeros(len(tasks), len(tasks)))  # rho (T, T)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Only the host reads the targets. On a GPU each step would wait for them once more.
        return self

    def solve(self, problem: GramProblem) -> np.ndarray:
        # the targets of the active tasks
        active = np.ix_(problem.tasks, problem.tasks)
        all_targets = self.target.double().numpy().copy()
        targets = all_targets[active]

        weights = vaccination(problem.gramian, random_orders(problem), targets, self.options.beta)

        all_targets[active] = targets
        self.target.copy_(torch.from_numpy(all_targets))
        return weights


@compiled
def vaccination(
    gram: np.ndarray, orders: np.ndarray, targets: np.ndarray, beta: float
) -> np.ndarray:
    """(T,) weights of the sum of the turned gradients.

    Args:
        gram: (T, T).
        orders: (T, T) in which order the gradient of each row meets the others.
        targets: rho (T, T), which follows the present cosines.
        beta: How fast it does.
    """
    size = len(gram)
    norms = np.sqrt(np.maximum(np.diag(gram), 0))
    weights = np.zeros(size)
    inner = np.empty(size)  # <g_i, g_j> for all j, with the present g_i
    for i in range(size):
        weights[i] += 1
        inner[:] = gram[i]
        norm = norms[i]  # |g_i|
        for j in orders[i]:
            # nothing to turn, or to turn to
            if j == i or norms[j] <= 0 or norm <= VANISHED * norms[i]:
                continue

            phi = min(1.0, max(-1.0, inner[j] / norm / norms[j]))
            rho = min(targets[i, j], HIGHEST)
            if phi < rho:
                # |g_i| sqrt(1 - phi^2), what is orthogonal to g_j, stays; the rest follows rho
                growth = np.sqrt(1 - phi**2) / np.sqrt(1 - rho**2)
                step = norm / norms[j] * (rho * growth - phi)
                weights[j] += step
                inner += step * gram[j]
                norm *= growth
            targets[i, j] += beta * (phi - targets[i, j])
    return weights
