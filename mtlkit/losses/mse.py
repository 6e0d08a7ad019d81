"""MSE: the squared error, for the mean of a number.

loss = (x - y)^2, on the scale of training.

Paper: none; least squares.

When to use: regression; the default of its labels.
When not: outliers (huber, l1); counts and amounts with many zeros (poisson, ziln).
Cost: none to speak of.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mtlkit.losses._loss import Loss


class MSE(Loss):
    """Squared error."""

    kinds = ("binary", "regression")

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(logits, labels, reduction="none")
