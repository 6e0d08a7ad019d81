"""GradDrop: in each coordinate the tasks of one sign are kept, those of the other dropped.

P = (1 + sum_t g_t / sum_t |g_t|) / 2 in each coordinate; with probability P the positive entries
are kept, otherwise the negative ones; the step is their sum. Its mean is the plain sum of
gradients.

Paper: Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout",
NeurIPS 2020, arXiv:2010.06808.

When to use: opposing gradients, and training that can bear noise.
When not: agreeing gradients, where it is uniform.
Cost: one backward pass a task.
Deviations: signs are those of the gradients of shared parameters; the paper works on the output of
the shared layers, with signs of the gradient times the output, summed over the batch.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._step import SharedGradient, Step
from mtlkit.settings import Settings


class GradDrop(Balancer):
    """Gradient sign dropout."""

    class Options(Settings):
        leak: float = Field(
            0.0, ge=0, le=1, description="share of the dropped entries that is kept; 1 is uniform"
        )

    search_space: ClassVar = {"leak": {"float": [0, 0.9]}}
    needs = "rows"
    scale = "native"
    options: Options

    def forward(self, step: Step) -> SharedGradient:
        jacobian = step.jacobian()  # (T, P)

        # the sum of the entries of each sign in each coordinate
        positive = jacobian.clamp_min(0).sum(0)  # (P,)
        negative = jacobian.clamp_max(0).sum(0)  # (P,)

        # P = (1 + sum g / sum |g|) / 2 = positive / (positive - negative)
        rng = np.random.default_rng([step.seed, step.index])
        draws = torch.from_numpy(rng.random(jacobian.shape[1], dtype=np.float32)).to(jacobian)
        keep_positive = draws * (positive - negative) < positive

        kept = torch.where(keep_positive, positive, negative)
        dropped = torch.where(keep_positive, negative, positive)
        return SharedGradient(kept + self.options.leak * dropped)
