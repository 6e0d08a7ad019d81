"""RLW: weights drawn at random in each step.

w = T softmax(z), z from a standard normal distribution. In the mean it is uniform: a check of what
others add to noise.

Paper: Lin et al., "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task
Learning", TMLR 2022, arXiv:2111.10603.

When to use: as the baseline of methods that claim more than noise.
When not: small batches, whose gradients are noisy enough.
Cost: one backward pass.
Deviations: weights sum to T, in the authors' code (LibMTL) to 1. Of its distributions there is the
default, normal.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._draws import StepDraws
from mtlkit.balancers._simplex import softmax_over
from mtlkit.balancers._step import Step
from mtlkit.data.types import Task
from mtlkit.settings import Settings


class RLW(Balancer):
    """Random loss weighting."""

    on_scale = True

    def __init__(self, tasks: Sequence[Task], options: Settings) -> None:
        super().__init__(tasks, options)
        self.z = StepDraws("standard_normal", len(tasks))

    def forward(self, step: Step) -> Tensor:
        return softmax_over(self.z.of(step), step.active) * step.active.sum()
