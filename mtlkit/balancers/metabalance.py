"""MetaBalance: auxiliary gradients are brought near the size of the target's, tensor by tensor.

m_t = b m_t + (1 - b) |g_t| in each tensor; g_t <- r g_t m_target / m_t + (1 - r) g_t; the step is
the sum. Mode ``A`` only shrinks, ``B`` only enlarges, ``C`` does both. A tensor that the target
does not reach is left alone, and so is a task that does not reach a tensor.

Paper: He et al., "MetaBalance: Improving Multi-Task Recommendations via Adapting Gradient
Magnitudes of Auxiliary Tasks", WWW 2022, arXiv:2203.06801.

When to use: one task matters, the others are there to help it.
When not: all tasks matter. With two tasks and r < 1 it changes the way, not where training rests:
the sum is 0 only where both norms are equal, and there the factor is 1.
Cost: one backward pass a task.
Deviations: running means are bias-corrected, which changes nothing as long as all tasks have had as
many steps; an idle task keeps its mean, and the others follow an idle target's last one. The
authors' code has mode C only, and leaves the loop over tensors at the first one without a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._step import SharedGradient, Step
from mtlkit.data.types import Task
from mtlkit.errors import UsageError
from mtlkit.settings import Settings


class MetaBalance(Balancer):
    """Adapted magnitudes of auxiliary gradients."""

    class Options(Settings):
        mode: Literal["A", "B", "C"] = Field(
            "C", description="A shrinks only, B enlarges only, C does both"
        )
        r: float = Field(0.7, ge=0, le=1, description="how near to the target's size; 0 is uniform")
        b: float = Field(
            0.9, ge=0, lt=1, description="share of the past in the running means of the norms"
        )
        target: str | None = Field(None, description="the task that matters; default the first")

    search_space: ClassVar = {"r": {"float": [0.1, 1]}, "b": {"float": [0.5, 0.99]}}
    needs = "rows"
    scale = "native"
    options: Options

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        names = [task.name for task in tasks]
        if options.target not in {None, *names}:
            raise UsageError(
                f"metabalance has no target {options.target!r}.",
                f"its tasks are {', '.join(names)}",
            )
        self.target = 0 if options.target is None else names.index(options.target)
        # (T, tensors) running sums of the norms, and in how many steps a task reached a tensor
        self.sizes: Tensor = nn.Buffer(torch.zeros(len(tasks), 0, dtype=torch.float64))
        self.counts: Tensor = nn.Buffer(torch.zeros(len(tasks), 0, dtype=torch.float64))

    def forward(self, step: Step) -> SharedGradient:
        jacobian, columns = step.jacobian(), list(step.jacobian_columns().values())
        if not columns:
            return SharedGradient(jacobian.sum(0))

        # |g_t| in each tensor, and the factors that follow from it
        by_tensor = [jacobian[:, tensor].double() for tensor in columns]
        norms = torch.stack([grads.norm(dim=1) for grads in by_tensor], 1)  # (T, tensors)
        factors = self._factors(norms)

        # the sum over tasks, tensor by tensor
        sums = [factors[:, k] @ grads for k, grads in enumerate(by_tensor)]
        return SharedGradient(torch.cat(sums).to(jacobian))

    def _factors(self, norms: Tensor) -> Tensor:
        """(T, tensors) for the norms (T, tensors) of one batch, which are 0 for idle tasks."""
        if not self.sizes.numel():
            self.sizes, self.counts = torch.zeros_like(norms), torch.zeros_like(norms)
        reached = norms > 0
        b, r = self.options.b, self.options.r

        # m_t = b m_t + (1 - b) |g_t|, divided by the share that it has seen so far
        self.counts.add_(reached)
        self.sizes.copy_(torch.where(reached, b * self.sizes + (1 - b) * norms, self.sizes))
        means = self.sizes / (1 - b**self.counts).clamp_min(1 - b)

        # r m_target / m_t + (1 - r)
        target_means = means[self.target]
        factors = r * target_means / torch.where(reached, means, 1.0) + (1 - r)
        factors = torch.where(reached & (target_means > 0), factors, 1.0)
        factors[self.target] = 1

        match self.options.mode:
            case "A":
                return factors.clamp_max(1)
            case "B":
                return factors.clamp_min(1)
            case _:
                return factors
