"""Huber: squared error near the label, absolute error far from it.

loss = e^2 / 2 where |e| = |x - y| <= d, and d (|e| - d / 2) beyond, on the scale of training.

Paper: Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics 1964,
doi:10.1214/aoms/1177703732.

When to use: regression with some outliers.
When not: none are expected (mse); d far from the size of the errors.
Cost: none to speak of.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mtlkit.losses._loss import Loss


class Huber(Loss):
    """Huber's loss."""

    class Options(Loss.Options):
        delta: float = Field(1.0, gt=0, description="error from which it is linear")

    kinds = ("binary", "regression")
    options: Options

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.huber_loss(logits, labels, reduction="none", delta=self.options.delta)
