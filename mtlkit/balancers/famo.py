"""FAMO: all losses fall at the same relative rate.

z = softmax(v); minimises sum_t z_t log(L_t - floor_t + eps) / c with c = sum z / (L - floor + eps)
held fixed, so w_t = z_t / (L_t - floor_t + eps) / c, which sum to 1. After the optimiser's step the
losses on the same batch are taken again, and v descends sum_t z_t (log L_t before - log L_t after):
a task that fell less gains.

Paper: Liu et al., "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023, arXiv:2306.03792.

When to use: many tasks, as the cost does not grow with their number; losses of different size or
speed.
When not: losses that are noisy within a batch, e.g. through much dropout.
Cost: one backward pass and one more forward pass.
Deviations: the authors' code clips the shared gradient to norm 1, here the training setting
``clip_norm`` does; the weight decay is the paper's, their code has 0.01 in famo.py and 0.00001 in
the experiments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.balancers._adam import Adam
from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._options import per_task
from mtlkit.balancers._simplex import softmax_over
from mtlkit.balancers._step import Step
from mtlkit.data.types import Task
from mtlkit.settings import Floats

EPSILON = 1e-8


class FAMO(Balancer):
    """Fast adaptive multitask optimization."""

    class Options(Balancer.Options):
        lr: float = Field(0.025, gt=0, description="learning rate of the logits")
        decay: float = Field(0.001, ge=0, description="weight decay of the logits")
        floor: Floats = Field(
            (),
            description="a lower bound of each task's loss, in the order of the tasks; default 0",
        )

    search_space: ClassVar = {"lr": {"log": [1e-3, 1e-1]}, "decay": {"log": [1e-5, 1e-1]}}
    scale = "native"
    on_scale = True
    options: Options

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        self.floor: Tensor = nn.Buffer(per_task("floor", options.floor, tasks, 0.0))
        self.logits: Tensor = nn.Buffer(torch.zeros(len(tasks)))
        self.adam = Adam(len(tasks), options.lr)

    def forward(self, step: Step) -> Tensor:
        active = step.active
        logs_before = self._log_losses(step.losses)

        def learn(losses: Tensor) -> None:
            # d/dv sum_t z_t (log L_t before - log L_t after), z = softmax(v)
            z = softmax_over(self.logits, active)
            fall = torch.where(active, logs_before - self._log_losses(losses), 0.0)
            grad = z * (fall - (z * fall).sum())
            self.adam.step(self.logits, grad + self.options.decay * self.logits, active)

        step.after_step(learn)

        # z_t / (L_t - floor_t + eps), scaled to sum to 1
        return softmax_over(self.logits - logs_before, active)

    def _log_losses(self, losses: Tensor) -> Tensor:
        return ((losses - self.floor).clamp_min(0) + EPSILON).log()
