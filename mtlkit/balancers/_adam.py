"""Adam for the few numbers that a balancer learns, one a task."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Adam(nn.Module):
    """Adam (arXiv:1412.6980) on a small tensor of a balancer, with all of its state in buffers."""

    def __init__(self, size: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.mean: Tensor = nn.Buffer(torch.zeros(size))
        self.square: Tensor = nn.Buffer(torch.zeros(size))
        self.count: Tensor = nn.Buffer(torch.zeros(size))

    @torch.no_grad()
    def step(self, value: Tensor, grad: Tensor, active: Tensor) -> None:
        """Update ``value`` (T,) in place where ``active``; the rest and its state stay."""
        grad = torch.where(active, grad, 0.0)

        # running means of the gradient and of its square
        mean = 0.9 * self.mean + 0.1 * grad
        square = 0.999 * self.square + 0.001 * grad**2
        self.count.add_(active)
        self.mean.copy_(torch.where(active, mean, self.mean))
        self.square.copy_(torch.where(active, square, self.square))

        # both start at 0: divide by the share that they have seen so far
        count = self.count.clamp_min(1)
        mean = self.mean / (1 - 0.9**count)
        square = self.square / (1 - 0.999**count)
        value.sub_(torch.where(active, self.lr * mean / (square.sqrt() + 1e-8), 0.0))
