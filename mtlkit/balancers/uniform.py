"""Uniform: the plain sum of the losses.

w_t = 1. The baseline that costs nothing and is often hard to beat.

Paper: Kurin et al., "In Defense of the Unitary Scalarization for Deep Multi-Task Learning", NeurIPS
2022, arXiv:2201.04122.

When to use: first, and as the baseline of everything else.
When not: losses of very different size, where the largest one decides.
Cost: one backward pass.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._step import Step
from mtlkit.settings import Settings


class Uniform(Balancer):
    """Equal weights."""

    class Options(Settings):
        """None."""

    constant_weights = True
    same_every_step = True
    on_scale = True
    same_as: ClassVar = {"sum": {}}

    def forward(self, step: Step) -> Tensor:
        return step.active.to(step.losses.dtype)
