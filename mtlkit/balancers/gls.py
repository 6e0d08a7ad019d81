"""GLS: the geometric mean of the losses.

Minimises (prod_t L_t)^(1/T); its gradient is that of sum_t w_t L_t with w_t = (prod L)^(1/T) / (T
L_t). The unit of a loss does not matter: every task's relative improvement counts the same.

Paper: Chennupati et al., "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy
for Multi-Task Learning", CVPR Workshops 2019, arXiv:1904.08492.

When to use: losses of different size or unit; cheap, nothing to tune.
When not: a loss that comes close to 0, which takes all the weight.
Cost: one backward pass.
Deviations: computed in logarithms. The weights that LibMTL's GLS reports are L / (T prod L), which
is not the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._step import Step


class GLS(Balancer):
    """Geometric loss strategy."""

    scale = "native"
    same_every_step = True
    on_scale = True

    def forward(self, step: Step) -> Tensor:
        count = step.active.sum().clamp_min(1)
        log_losses = step.losses.clamp_min(torch.finfo(step.losses.dtype).tiny).log()

        # (prod L)^(1/T) / (T L_t), in logarithms
        log_mean = torch.where(step.active, log_losses, 0.0).sum() / count
        return torch.where(step.active, torch.exp(log_mean - log_losses) / count, 0.0)
