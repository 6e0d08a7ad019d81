"""UWL: uncertainty weighting; each task's weight is learned as its noise.

Minimises sum_t c_t exp(-s_t) L_t + s_t / 2 over s as well, c = 1 for classification and 1/2 for
regression; w_t = c_t exp(-s_t), which tends to 1 / (2 L_t).

Paper: Kendall et al., "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
Semantics", CVPR 2018, arXiv:1705.07115.

When to use: losses of different size; cheap.
When not: a rare label such as purchase, whose tiny loss drives its weight to hundreds (watch the
weights figure).
Cost: one backward pass.
Deviations: s has its own Adam without weight decay, never clamped: ports that clamp it at 0 are
uniform for L < .5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.balancers._adam import Adam
from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._step import Step
from mtlkit.data.types import Task


class UWL(Balancer):
    """Uncertainty-weighted losses."""

    class Options(Balancer.Options):
        lr: float = Field(0.01, gt=0, description="learning rate of s")

    search_space: ClassVar = {"lr": {"log": [1e-3, 1e-1]}}
    scale = "native"
    same_every_step = True
    on_scale = True

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        factor = [0.5 if task.kind == "regression" else 1.0 for task in tasks]  # c
        self.factor: Tensor = nn.Buffer(torch.tensor(factor))
        self.s: Tensor = nn.Buffer(torch.zeros(len(tasks)))
        self.adam = Adam(len(tasks), options.lr)

    def forward(self, step: Step) -> Tensor:
        weights = self.factor * torch.exp(-self.s)
        # d/ds_t (c_t exp(-s_t) L_t + s_t / 2)
        self.adam.step(self.s, 0.5 - weights * step.losses, step.active)
        return weights * step.active
