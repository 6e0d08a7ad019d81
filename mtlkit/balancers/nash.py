"""Nash-MTL: the step on which the tasks agree as in a bargaining game.

The a > 0 with G a = 1 / a, G the Gram matrix: of all steps d of a given length, the one of the largest product of
gains prod_t <d, g_t>. It conflicts with no task, does not depend on the norms of the gradients, and has length sqrt(T).

Paper: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, arXiv:2202.01017.

When to use: gradients of very different size; no task may get worse.
When not: plain SGD, as the step does not shrink near an optimum; almost opposite gradients, whose weights are large.
Cost: one backward pass a task; with ``update_every=k`` only in every k-th step.
Deviations: solved to rounding errors by Newton's method; the official code takes some steps of a convex-concave
procedure on the Gram matrix divided by its norm, and then clips the step to length 1 (here: ``clip_norm`` of the
training settings). Where gradients are exactly opposite, so that there is no solution, the weights are large but
finite and the step is next to 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mtlkit.balancers.base import GramBalancer, GramProblem, Step
from mtlkit.balancers.gram import fair_weights
from mtlkit.config import Settings
from mtlkit.data.schema import Task


class Nash(GramBalancer):
    """Nash bargaining."""

    class Options(Settings):
        """Options of nash."""

        update_every: int = Field(1, gt=0, description="steps for which weights are used again")

    scale = "native"
    options: Options

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        self.weights: Tensor
        self.known: Tensor
        self.register_buffer("weights", torch.zeros(len(tasks)))
        self.register_buffer("known", torch.zeros(len(tasks), dtype=torch.bool))

    def forward(self, step: Step) -> Tensor:
        if step.index % self.options.update_every == 0 or not self.known[step.active].all():
            return super().forward(step)
        return torch.where(step.active, self.weights, 0.0).to(step.losses)

    def solve(self, problem: GramProblem) -> np.ndarray:
        solution = fair_weights(problem.gram, alpha=1)
        tasks = torch.from_numpy(problem.tasks).to(self.weights.device)
        self.weights[tasks] = torch.from_numpy(solution).to(self.weights)
        self.known[tasks] = True
        return solution
