"""ZILN: the log likelihood of amounts that are often 0, and else log-normal.

x = (a, m, b), d = softplus(b); loss = BCE(a, y > 0) + [y > 0] (log y + log d + log(2 pi) / 2 +
(log y - m)^2 / (2 d^2)), with y on its original scale; the prediction is s(a) exp(m + d^2 / 2).

Paper: Wang, Liu and Miao, "A Deep Probabilistic Model for Customer Lifetime Value Prediction",
2019, arXiv:1912.07753.

When to use: value, revenue, watch time: many zeros and a long tail.
When not: negative labels; a short tail without zeros (mse, target=log1p).
Cost: two more logits.
Deviations: d is bounded from below by 1e-3.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.losses._counts import CountLoss

LEAST_DEVIATION = 1e-3


class ZILN(CountLoss):
    """Zero-inflated log-normal."""

    kinds = ("regression",)
    outputs = 3
    stands_alone = True

    def log_expected(self, logits: Tensor) -> Tensor:
        a, mean, b = logits.unbind(1)
        return F.logsigmoid(a) + mean + _deviation(b).square() / 2

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        a, mean, b = logits.unbind(1)
        amounts = self.amounts(labels)
        is_positive = amounts > 0
        some = F.binary_cross_entropy_with_logits(a, is_positive.to(a.dtype), reduction="none")

        # Rows of 0 are set to 1 before the logarithm, so that their gradient is no NaN.
        log_amount = torch.where(is_positive, amounts, 1.0).log()
        deviation = _deviation(b)
        standardised = (log_amount - mean) / deviation
        how_much = log_amount + deviation.log() + math.log(2 * math.pi) / 2
        how_much = how_much + standardised.square() / 2
        return some + torch.where(is_positive, how_much, 0.0)


def _deviation(b: Tensor) -> Tensor:
    return F.softplus(b).clamp_min(LEAST_DEVIATION)
