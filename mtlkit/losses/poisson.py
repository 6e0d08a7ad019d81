"""Poisson: the log likelihood of counts whose logarithm of the mean is predicted.

loss = exp(x) - y x, with y on its original scale; the prediction is exp(x).

Paper: none; Poisson regression.

When to use: counts, and amounts whose spread grows with their mean.
When not: negative labels; labels that are mostly 0 and else large (ziln).
Cost: none to speak of.
Deviations: log(y!) is left out. exp(x) goes on as a line beyond x = 40.
"""

from __future__ import annotations

from torch import Tensor

from mtlkit.losses._counts import LARGEST_LOG, CountLoss


class Poisson(CountLoss):
    """Poisson regression."""

    kinds = ("regression",)
    stands_alone = True

    def log_expected(self, logits: Tensor) -> Tensor:
        return logits

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        bounded = logits.clamp_max(LARGEST_LOG)
        expected = bounded.exp() * (1 + logits - bounded)
        return expected - self.amounts(labels) * logits
