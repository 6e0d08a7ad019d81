"""MoCo: the common descent direction of running means of the gradients.

y_t <- y_t - beta_k (y_t - L_t g_t / |g_t|); a <- projection of a - gamma_k (Y Y' + rho I) a on the
simplex; the step is sum_t a_t y_t; beta_k = beta / k^sigma, gamma_k = gamma / k^sigma in step k.
With exact gradients it tends to MGDA; the running means take away the bias that noise gives its
weights.

Paper: Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent
Stochastic Approach", ICLR 2023, arXiv:2210.12624.

When to use: no task may get worse, and gradients are noisy.
When not: short runs, in which a hardly leaves its start.
Cost: one backward pass a task; a copy of the shared parameters for each task in memory.
Deviations: gradients of unit length times the loss as in LibMTL's version, made with the authors'
help, where the paper has plain ones. ``update=softmax`` is LibMTL's step for a, softmax in place of
the projection, which stays near uniform.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._simplex import project_on_simplex, softmax_over
from mtlkit.balancers._step import SharedGradient, Step
from mtlkit.data.types import Task
from mtlkit.settings import Settings


class MoCo(Balancer):
    """Multi-objective gradient correction."""

    class Options(Settings):
        beta: float = Field(
            0.5, gt=0, le=1, description="share of the present in the running means, at first"
        )
        gamma: float = Field(0.1, gt=0, description="learning rate of the weights, at first")
        sigma: float = Field(0.5, ge=0, description="both fall with step^-sigma")
        rho: float = Field(0.0, ge=0, description="pull of the weights towards equal ones")
        update: Literal["projection", "softmax"] = Field(
            "projection", description="how weights come to sum to 1"
        )

    search_space: ClassVar = {"beta": {"float": [0.1, 1]}, "gamma": {"log": [1e-2, 1]}}
    needs = "rows"
    scopes = ("dense", "all")
    scale = "native"
    options: Options

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        self.means: Tensor = nn.Buffer(torch.zeros(len(tasks), 0, dtype=torch.float64))  # y (T, P)
        self.weights: Tensor = nn.Buffer(
            torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64)
        )
        self.counts: Tensor = nn.Buffer(torch.zeros(len(tasks), dtype=torch.float64))

    def forward(self, step: Step) -> SharedGradient:
        jacobian, active, options = step.jacobian(), step.active, self.options

        # L_t g_t / |g_t|
        gradients = jacobian.double()
        norms = gradients.norm(dim=1)
        units = torch.where((norms > 0)[:, None], gradients / norms[:, None], 0.0)
        scaled = units * step.losses.double()[:, None]
        if not self.means.numel():
            self.means = torch.zeros_like(gradients)

        # y_t <- y_t - beta_k (y_t - L_t g_t / |g_t|)
        self.counts.add_(active)
        pace = self.counts.clamp_min(1) ** -options.sigma
        means = self.means + (options.beta * pace)[:, None] * (scaled - self.means)
        self.means.copy_(torch.where(active[:, None], means, self.means))

        # a of the active tasks, which share what the idle ones do not hold
        a = torch.where(active, self.weights, 0.0)
        total = a.sum()
        a = torch.where(total > 0, a / total, active / active.sum().clamp_min(1))

        # a <- projection of a - gamma_k (Y Y' + rho I) a
        slope = self.means @ (a @ self.means) + options.rho * a
        a = self._on_simplex(a - options.gamma * pace * slope, active)
        self.weights.copy_(torch.where(active, a * total, self.weights))

        # sum_t a_t y_t
        limit = torch.finfo(jacobian.dtype).max
        return SharedGradient((a @ self.means).clamp(-limit, limit).to(jacobian))

    def _on_simplex(self, point: Tensor, active: Tensor) -> Tensor:
        """A point (T,) brought to the simplex of the active tasks."""
        if self.options.update == "softmax":
            return softmax_over(point, active)

        # on the host, with one copy each way
        packed = torch.stack([point, active.to(point)]).cpu().numpy()
        tasks = np.flatnonzero(packed[1])
        projected = np.zeros(len(point))
        if len(tasks):
            coordinates = packed[0, tasks]
            coordinates -= coordinates.max()  # changes nothing but rounding
            projected[tasks] = project_on_simplex(coordinates)
        return torch.from_numpy(projected).to(point)
