"""IMTL-L: losses are scaled to the same size by learned factors.

Minimises sum_t exp(s_t) L_t - s_t over s as well; w_t = exp(s_t), which tends to 1 / L_t.

Papers: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021 (openreview IMPnRXEWpvr, no
arXiv number); Lin et al., "Dual-Balancing for Multi-Task Learning", 2023, arXiv:2308.12029: with s
at rest it minimises sum_t log L_t.

When to use: losses of different size; cheap.
When not: a rare label such as purchase, whose tiny loss drives its weight to thousands (watch the
weights figure).
Cost: one backward pass.
Deviations: s has its own Adam without weight decay. For regression tasks it is twice uwl, with s of
the other sign; for classification it rests at twice uwl's weights.
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


class IMTLL(Balancer):
    """Impartial multi-task learning, loss balance."""

    class Options(Balancer.Options):
        lr: float = Field(0.01, gt=0, description="learning rate of s")

    search_space: ClassVar = {"lr": {"log": [1e-3, 1e-1]}}
    scale = "native"
    same_every_step = True
    on_scale = True

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        self.s: Tensor = nn.Buffer(torch.zeros(len(tasks)))
        self.adam = Adam(len(tasks), options.lr)

    def forward(self, step: Step) -> Tensor:
        weights = torch.exp(self.s)
        # d/ds_t (exp(s_t) L_t - s_t)
        self.adam.step(self.s, weights * step.losses - 1, step.active)
        return weights * step.active
