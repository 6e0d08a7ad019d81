"""L1: the absolute error, for the median of a number.

loss = |x - y|, on the scale of training.

Paper: none; least absolute deviations.

When to use: regression with outliers that are to count little.
When not: the mean is wanted, as of amounts that are summed up.
Cost: none to speak of.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mtlkit.losses._loss import Loss


class L1(Loss):
    """Absolute error."""

    kinds = ("binary", "regression")

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.l1_loss(logits, labels, reduction="none")
