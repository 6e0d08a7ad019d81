"""STCH: the smooth maximum of the losses, relative to where a warm-up left them.

Minimises T mu logsumexp_t(log(L_t / nadir_t) / mu), so w_t = T softmax(log(L / nadir) / mu)_t /
L_t: the smaller mu, the more it cares for the task that is worst off alone. The warm-up minimises
sum_t log L_t, w_t = 1 / L_t; nadir_t is the mean loss over its last fifth.

Paper: Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", ICML 2024,
arXiv:2402.19078.

When to use: no task may stay behind; cheap.
When not: runs not much longer than the warm-up; a loss close to 0, whose 1 / L explodes.
Cost: one backward pass.
Deviations: the formula is that of the authors' code for multi-task learning (the paper's own has L
- ideal in place of log(L / nadir)); the code's warm-up is 4 epochs and its nadir the mean of a
fifth, here it is counted in steps. A task without a label in that time takes the first loss it has
afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._simplex import softmax_over
from mtlkit.balancers._step import Step
from mtlkit.data.types import Task

TINY = 1e-20  # as in the authors' code


class STCH(Balancer):
    """Smooth Tchebycheff scalarization."""

    class Options(Balancer.Options):
        mu: float = Field(
            1.0, gt=0, description="smoothness; near 0 the largest relative loss counts alone"
        )
        warmup: int = Field(100, gt=0, description="steps on the sum of log losses")

    search_space: ClassVar = {"mu": {"log": [0.1, 10]}}
    scale = "native"
    on_scale = True
    options: Options

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        self.sums: Tensor = nn.Buffer(torch.zeros(len(tasks)))
        self.counts: Tensor = nn.Buffer(torch.zeros(len(tasks)))

    def forward(self, step: Step) -> Tensor:
        active, losses, warmup = step.active, step.losses, self.options.warmup

        # warm-up: w_t = 1 / L_t; the nadir is the mean loss over its last fifth
        if step.index < warmup:
            if step.index >= warmup - max(1, warmup // 5):
                self._remember(losses, active)
            return torch.where(active, 1 / (losses + TINY), 0.0)

        # a task without a label in that time takes the first loss it has afterwards
        self._remember(losses, active & (self.counts == 0))
        nadir = self.sums / self.counts.clamp_min(1)

        # w_t = T softmax(log(L / nadir) / mu)_t / L_t
        ratio = losses / nadir.clamp_min(torch.finfo(nadir.dtype).tiny)
        shares = softmax_over(torch.log(ratio + TINY) / self.options.mu, active)
        return torch.where(active, active.sum() * shares / (losses + TINY), 0.0)

    def _remember(self, losses: Tensor, where: Tensor) -> None:
        self.sums.add_(torch.where(where, losses, 0.0))
        self.counts.add_(where)
