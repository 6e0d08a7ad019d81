"""Quantile: the pinball loss, for a quantile of a number.

loss = max(q (y - x), (q - 1) (y - x)), least where a share q of the labels lies below x.

Paper: Koenker and Bassett, "Regression Quantiles", Econometrica 1978, doi:10.2307/1913643.

When to use: a bound that a share q of the labels keeps, such as of delays or watch times.
When not: the mean is wanted; metrics of means then look bad for any q.
Cost: none to speak of.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mtlkit.losses._loss import Loss


class Quantile(Loss):
    """Pinball loss."""

    class Options(Loss.Options):
        q: float = Field(0.5, gt=0, lt=1, description="share of labels below the prediction")

    kinds = ("regression",)
    options: Options

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        error = labels - logits
        return torch.maximum(self.options.q * error, (self.options.q - 1) * error)
