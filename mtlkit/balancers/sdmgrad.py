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
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._simplex import on_simplex, project_on_simplex
from mtlkit.balancers._step import Step
from mtlkit.data.types import Task


class SDMGrad(Balancer):
    """Stochastic direction-oriented multi-objective gradient descent."""

    class Options(Balancer.Options):
        lam: float = Field(0.3, ge=0, description="pull towards the mean gradient")
        lr: float = Field(1.0, gt=0, description="learning rate of w")
        iterations: int = Field(20, gt=0, description="steps of w a batch")

    search_space: ClassVar = {"lam": {"log": [0.05, 5]}, "lr": {"log": [0.1, 10]}}
    needs = "rows"
    scopes = ("dense", "all")
    on_scale = True
    options: Options

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        self.w: Tensor = nn.Buffer(torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64))

    def forward(self, step: Step) -> Tensor:
        # gradients (T, P), 0 but for the tasks that have labels in all three batches
        first, second = step.fresh_batch(), step.fresh_batch()
        seen = step.active & first.active & second.active
        one = torch.where(seen[:, None], first.jacobian().double(), 0.0)
        two = torch.where(seen[:, None], second.jacobian().double(), 0.0)

        # <g_s, g_t> between the batches, with what else is needed, in one copy: (T, T + 2)
        size = one.norm() * two.norm()
        inner = torch.where(size > 0, one @ two.T / size, 0.0)
        packed = torch.cat([inner, self.w[:, None], seen[:, None].double()], 1).cpu().numpy()
        w, tasks = packed[:, -2].copy(), np.flatnonzero(packed[:, -1])

        # w of those tasks, which share what the others do not hold
        total = w[tasks].sum()
        inner_products = packed[:, :-2][np.ix_(tasks, tasks)]
        if inner_products.any() and total > 0:
            w[tasks] = self._descend(inner_products, w[tasks] / total) * total
            self.w.copy_(torch.from_numpy(w))

        # T (w_t + lam / T) / (1 + lam)
        scaled = on_simplex(self.w, step.active)  # T w
        scaled = torch.where(scaled.sum() > 0, scaled, 1.0)
        return on_simplex(scaled + self.options.lam, step.active).to(step.losses)

    def _descend(self, inner: np.ndarray, w: np.ndarray) -> np.ndarray:
        """w (A,) after some steps down |sum_t (w_t + lam / A) g_t|^2 on the simplex."""
        mean = self.options.lam / len(w)
        for _ in range(self.options.iterations):
            w = project_on_simplex(w - self.options.lr * inner @ (w + mean))
        return w
