"""Losses of counts and amounts: labels of 0 or more on the scale that the data came with."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from mtlkit.losses._loss import Loss

ROUNDING = 1e-6
"""Of mean plus deviation: amounts below it count as 0, for labels are kept in single precision."""
LARGEST_LOG = 40.0  # of an expected amount, so that it stays finite


class CountLoss(Loss):
    """A loss whose logits say what amount is expected."""

    least_label = 0.0

    def amounts(self, labels: Tensor) -> Tensor:
        """Labels (B,) on the original scale, 0 or more."""
        amounts = self.task.original(labels)
        mean, std = self.task.scale or (0.0, 0.0)
        return torch.where(amounts > ROUNDING * (abs(mean) + std), amounts, 0.0)

    @abstractmethod
    def log_expected(self, logits: Tensor) -> Tensor:
        """The logarithm (B,) of the expected amount."""

    def prediction(self, logits: Tensor) -> Tensor:
        """The expected amount, on the scale of training."""
        mean, std = self.task.scale or (0.0, 1.0)
        return (self.log_expected(logits).clamp_max(LARGEST_LOG).exp() - mean) / std
