"""ExcessMTL: tasks that are farther from their optimum weigh more, whatever their loss is there.

e_t = sum_p g_tp^2 / sqrt(s_tp), s_tp the sum of all g_tp^2 so far: an estimate of the excess risk
with a diagonal Hessian. w_t <- w_t exp(eta e_t / e_t(first)), scaled to sum to T.

Paper: He et al., "Robust Multi-Task Learning with Excess Risks", ICML 2024, arXiv:2402.02009.

When to use: noisy labels in some tasks, whose large loss would draw a loss-based method.
When not: gradients whose size says little about the distance, e.g. with tasks of few labels.
Cost: one backward pass a task; a copy of the shared parameters for each task in memory.
Deviations: no constant under the root, so that the unit of a loss does not matter; e_t(first) is
that of the first step as in the authors' code, where the paper averages over three epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._simplex import softmax_over
from mtlkit.balancers._step import Step
from mtlkit.data.types import Task


class ExcessMTL(Balancer):
    """Weights by excess risk."""

    class Options(Balancer.Options):
        eta: float = Field(0.01, gt=0, description="learning rate of the weights")

    search_space: ClassVar = {"eta": {"log": [1e-3, 1]}}
    needs = "rows"
    scopes = ("dense", "all")
    on_scale = True
    options: Options

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        self.squares: Tensor = nn.Buffer(torch.zeros(len(tasks), 0, dtype=torch.float64))  # (T, P)
        self.first: Tensor = nn.Buffer(torch.zeros(len(tasks), dtype=torch.float64))
        self.logits: Tensor = nn.Buffer(torch.zeros(len(tasks), dtype=torch.float64))

    def forward(self, step: Step) -> Tensor:
        active = step.active

        # s_tp, the sum of all g_tp^2 so far
        squares = step.jacobian().double() ** 2  # (T, P), 0 for idle tasks
        if not self.squares.numel():
            self.squares = torch.zeros_like(squares)
        self.squares.add_(squares)

        # e_t = sum_p g_tp^2 / sqrt(s_tp)
        excess = torch.where(self.squares > 0, squares / self.squares.sqrt(), 0.0).sum(1)

        # w_t <- w_t exp(eta e_t / e_t(first)), in logarithms; the first step only sets e_t(first)
        gain = torch.where(self.first > 0, self.options.eta * excess / self.first, 0.0)
        self.first.copy_(torch.where(self.first > 0, self.first, excess))
        logits = self.logits + gain

        # the active tasks together keep their share, and so do the idle ones
        logits += _log_total(self.logits, active) - _log_total(logits, active)
        self.logits.copy_(torch.where(active, logits, self.logits))
        return (softmax_over(self.logits, active) * active.sum()).to(step.losses)


def _log_total(logits: Tensor, active: Tensor) -> Tensor:
    """The logarithm of the active tasks' sum."""
    return torch.where(active, logits, -torch.inf).logsumexp(0)
