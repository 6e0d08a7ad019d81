"""SDMGrad: a common descent direction near the mean gradient, from independent batches.

w descends |sum_t (w_t + lam / T) g_t|^2 on the simplex; weights are T (w_t + lam / T) / (1 + lam).
Inner products are taken between the gradients of two further batches, since those within one batch
are biased by its noise.

Paper: Xiao et al., "Direction-oriented Multi-objective Learning: Simple and Provable Stochastic
Algorithms", NeurIPS 2023, arXiv:2305.18409.

When to use: as mgda or pareto, with small batches.
When not: batches large enough for exact gradients; there it is pareto with c = lam / (T (1 + lam)).
Cost: two more batches with one backward pass a task each, and one backward pass.
Deviations: the inner products are divided by the product of the two batches' Frobenius norms, so
that steps of length 1 converge; the authors' code divides by the mean squared norm and takes 20
steps of 10 with momentum. There the three batches' gradients are written to one tensor, so that the
third stands for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mtlkit.balancers._base import Balancer, Step, on_simplex
from mtlkit.balancers._gramian import project_on_simplex
from mtlkit.data.types import Task


class SDMGrad(Balancer):
    """Stochastic direction-oriented multi-objective gradient descent."""

    class Options(Balancer.Options):
        """Options of sdmgrad."""

        lam: float = Field(0.3, ge=0, description="pull towards the mean gradient")
        lr: float = Field(1.0, gt=0, description="learning rate of w")
        iterations: int = Field(20, gt=0, description="steps of w a batch")

    needs = "rows"
    scopes = ("dense", "all")
    options: Options

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        self.w: Tensor
        self.register_buffer("w", torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64))

    def forward(self, step: Step) -> Tensor:
        first, second = step.fresh_batch(), step.fresh_batch()
        seen = step.active & first.active & second.active
        one, two = first.jacobian()[seen].double(), second.jacobian()[seen].double()
        size = float(one.norm() * two.norm())
        held = float(self.w[seen].sum())  # what the other tasks do not hold
        if size > 0 and held > 0:
            w = self._descend(
                (one @ two.T / size).cpu().numpy(), (self.w[seen] / held).cpu().numpy()
            )
            self.w.masked_scatter_(seen, torch.from_numpy(w * held).to(self.w))
        own = on_simplex(self.w, step.active)  # (T,) sums to the number of active tasks
        own = torch.where(own.sum() > 0, own, 1.0)
        return on_simplex(own + self.options.lam, step.active).to(step.losses)

    def _descend(self, inner: np.ndarray, w: np.ndarray) -> np.ndarray:
        mean = self.options.lam / len(w)
        for _ in range(self.options.iterations):
            w = project_on_simplex(w - self.options.lr * inner @ (w + mean))
        return w
