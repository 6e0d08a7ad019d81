"""GradVac: turns gradients towards each other until their cosines reach a moving average of past
ones.

For each task i, over the others in random order: where phi = cos(g_i, g_j) is below the target
rho_ij, g_i += |g_i| (rho sqrt(1 - phi^2) - phi sqrt(1 - rho^2)) / (|g_j| sqrt(1 - rho^2)) g_j, with
the original g_j, after which the cosine is rho; then rho_ij <- (1 - beta) rho_ij + beta phi. The
step is the sum. rho starts at 0, where the rule is that of pcgrad; with ``beta=0`` it stays there.

Paper: Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task Optimization in
Massively Multilingual Models", ICLR 2021, arXiv:2010.05874.

When to use: tasks that are known to agree, whose gradients agree less in some steps. When not: a
few steps of training: rho needs about 1 / beta of them; negative targets let conflict pass.
Cost: one backward pass a task.
Deviations: one cosine for all shared parameters, not one a layer; rho is kept below .999, as at 1
nothing reaches it. There is no official code; LibMTL's moves rho only where phi < rho, so that
targets never rise, with beta .5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mtlkit.balancers._base import GramBalancer, GramProblem
from mtlkit.balancers._solvers import vaccination
from mtlkit.data.types import Task

HIGHEST = 0.999


class GradVac(GramBalancer):
    """Gradient vaccine."""

    class Options(GramBalancer.Options):
        """Options of gradvac."""

        beta: float = Field(
            0.01, ge=0, le=1, description="how fast the target cosines follow the present ones"
        )

    scale = "native"
    options: Options

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        self.target: Tensor
        self.register_buffer("target", torch.zeros(len(tasks), len(tasks)))  # rho (T, T)

    def solve(self, problem: GramProblem) -> np.ndarray:
        rng = problem.rng
        orders = np.stack([rng.permutation(len(problem.gram)) for _ in problem.gram])
        own = np.ix_(problem.tasks, problem.tasks)
        target = self.target.double().cpu().numpy().copy()
        goals = target[own]
        weights = vaccination(problem.gram, orders, goals, self.options.beta, HIGHEST)
        target[own] = goals
        self.target.copy_(torch.from_numpy(target))
        return weights
