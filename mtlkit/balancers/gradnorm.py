"""GradNorm: weights that give all tasks gradients of like size, larger for those that learn slowly.

Minimises over w: sum_t |w_t n_t - target_t|, n_t the gradient norm at the last shared layer,
target_t = mean(w n) r_t^a held fixed, r_t = (L_t / L_t(0)) / mean over tasks; w stays positive and
sums to T.

Paper: Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
Networks", ICML 2018, arXiv:1711.02257.

When to use: gradients of different size that drown a task.
When not: tasks without a common layer; a first loss L(0) that is not typical.
Cost: one backward pass, and one a task through the layers above the last shared one.
Deviations: w has its own Adam, and is at least 1e-3 before it is rescaled to sum to T; L(0) is the
loss on the first batch in which the task is active. The last shared layer is that of the tasks' own
predictions: what only a calibrator or a product shares is not meant. Without a shared layer it is
the embedding tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.balancers._adam import Adam
from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._simplex import on_simplex
from mtlkit.balancers._step import Step
from mtlkit.data.types import Task


class GradNorm(Balancer):
    """Gradient normalization."""

    class Options(Balancer.Options):
        alpha: float = Field(
            1.5, ge=0, description="strength of the pull towards equal training rates"
        )
        lr: float = Field(0.025, gt=0, description="learning rate of w")

    search_space: ClassVar = {"alpha": {"float": [0, 3]}, "lr": {"log": [1e-3, 1e-1]}}
    needs = "norms"
    on_scale = True
    options: Options

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        self.w: Tensor = nn.Buffer(torch.ones(len(tasks)))
        self.first: Tensor = nn.Buffer(torch.full((len(tasks),), torch.nan))
        self.adam = Adam(len(tasks), options.lr)

    def forward(self, step: Step) -> Tensor:
        active, count = step.active, step.active.sum().clamp_min(1)
        weights = on_simplex(self.w, active)

        # L_t(0)
        tiny = torch.finfo(self.w.dtype).tiny
        is_first = active & self.first.isnan()
        self.first.copy_(torch.where(is_first, step.losses.clamp_min(tiny), self.first))

        # r_t = (L_t / L_t(0)) / mean over tasks
        ratio = torch.where(active, step.losses / self.first, 0.0)
        rate = ratio / (ratio.sum() / count).clamp_min(tiny)

        # d/dw_t |w_t n_t - target_t|, target_t = mean(w n) r_t^a held fixed
        norms = torch.where(active, step.grad_norms("last"), 0.0)
        target = (self.w * norms).sum() / count * rate**self.options.alpha
        grad = torch.sign(self.w * norms - target) * norms
        self.adam.step(self.w, grad, active & (norms > 0))

        # w stays positive and sums to T, of which idle tasks keep what they have
        floored = self.w.clamp_min(1e-3)
        room = len(self.w) - torch.where(active, 0.0, self.w).sum()
        scaled = floored * room / (floored * active).sum().clamp_min(tiny)
        self.w.copy_(torch.where(active, scaled, self.w))
        return weights
