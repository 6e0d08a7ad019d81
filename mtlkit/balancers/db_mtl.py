"""DB-MTL: gradients of log losses, all as long as the longest.

h_t = running mean of grad log L_t; the step is sum_t h_t max_k |h_k| / |h_t|. The logarithm
balances losses, the common length balances gradients.

Paper: Lin et al., "Dual-Balancing for Multi-Task Learning", 2023, arXiv:2308.12029.

When to use: losses and gradients of different size.
When not: a task with a small, noisy gradient, which is made as long as the others.
Cost: one backward pass a task; a copy of the shared parameters for each task in memory.
Deviations: the running mean starts at the first gradient; in the authors' code (LibMTL) it starts
at 0, which shortens the first steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._step import SharedGradient, Step
from mtlkit.data.types import Task
from mtlkit.settings import Settings

EPSILON = 1e-8  # in the logarithm, as in the authors' code


class DualBalancing(Balancer):
    """Dual balancing."""

    class Options(Settings):
        beta: float = Field(0.9, ge=0, lt=1, description="share of the past in the running mean")
        sigma: float = Field(0.0, ge=0, description="the share falls as beta / step^sigma")

    search_space: ClassVar = {"beta": {"float": [0.5, 0.99]}}
    needs = "rows"
    scopes = ("dense", "all")
    scale = "native"
    same_as: ClassVar = {"bisector": {"beta": 0}}
    options: Options

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        self.means: Tensor = nn.Buffer(torch.zeros(len(tasks), 0, dtype=torch.float64))  # (T, P)
        self.counts: Tensor = nn.Buffer(torch.zeros(len(tasks), dtype=torch.float64))

    def forward(self, step: Step) -> SharedGradient:
        jacobian, active = step.jacobian(), step.active

        # grad log L_t = g_t / L_t
        log_gradients = jacobian.double() / (step.losses.double() + EPSILON)[:, None]  # (T, P)
        if not self.means.numel():
            self.means = torch.zeros_like(log_gradients)

        # h_t, which starts at the first gradient
        self.counts.add_(active)
        past = self.options.beta / self.counts.clamp_min(1) ** self.options.sigma
        past = torch.where(self.counts > 1, past, 0.0)[:, None]
        means = log_gradients + past * (self.means - log_gradients)
        self.means.copy_(torch.where(active[:, None], means, self.means))

        # sum_t h_t max_k |h_k| / |h_t|
        norms = torch.where(active, self.means.norm(dim=1), 0.0)
        factors = torch.where(norms > 0, norms.max() / norms, 0.0)
        limit = torch.finfo(jacobian.dtype).max
        return SharedGradient((factors @ self.means).clamp(-limit, limit).to(jacobian))
