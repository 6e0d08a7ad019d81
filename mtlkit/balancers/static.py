"""Static: fixed task weights, chosen by hand.

w_t proportional to the given numbers, scaled to sum to T. Linear scalarization; swept over the
simplex it is the baseline that every other balancer must beat.

Paper: Xin et al., "Do Current Multi-Task Optimization Methods in Deep Learning Even Help?", NeurIPS
2022, arXiv:2209.11379.

When to use: a known preference between tasks, or a sweep, e.g. ``'static[w=1:2]','static[w=2:1]'``.
When not: no budget to search weights.
Cost: one backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._simplex import on_simplex
from mtlkit.balancers._step import Step
from mtlkit.data.types import Task
from mtlkit.errors import UsageError
from mtlkit.settings import Floats, Settings


class Static(Balancer):
    """Constant weights."""

    class Options(Settings):
        w: Floats = Field(
            (),
            description="a positive weight for each task, in the order of the tasks; default equal",
        )

    search_space: ClassVar = {"w": {"simplex": 0.1}}
    constant_weights = True
    same_every_step = True
    on_scale = True
    weights_option = "w"
    same_as: ClassVar = {"sum": {"w": None}}

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        weights = options.w or (1.0,) * len(tasks)
        if len(weights) != len(tasks) or min(weights) <= 0:
            names = ", ".join(task.name for task in tasks)
            example = ":".join(str(t + 1) for t in range(len(tasks)))
            raise UsageError(
                f"static needs one positive weight for each of {names}.",
                f"mtlkit bench --balancers 'static[w={example}]'",
            )
        self.weights: Tensor = nn.Buffer(torch.tensor(weights))

    def forward(self, step: Step) -> Tensor:
        return on_simplex(self.weights, step.active)
