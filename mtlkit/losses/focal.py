"""Focal: log loss in which rows that are right already count little.

loss = [a y (1 - p)^g + (1 - a) (1 - y) p^g] BCE(x, y), p = s(x).

Paper: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, arXiv:1708.02002.

When to use: rare positives that easy negatives drown.
When not: the level of the probability matters: it is pulled towards 1/2 and, unless a = 1/2, aside.
Cost: none to speak of.
Deviations: with ``detach`` no gradient flows through the factor in brackets, which then is a weight
of the row, as in some recommenders; these also take a = 1/2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mtlkit.losses._loss import Loss


class Focal(Loss):
    """Focal loss."""

    class Options(Loss.Options):
        gamma: float = Field(2.0, ge=0, description="how little a row that is right counts")
        alpha: float = Field(0.25, ge=0, le=1, description="share of the positives' weight")
        detach: bool = Field(False, description="whether the factor is a weight without gradient")

    options: Options

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        gamma, alpha = self.options.gamma, self.options.alpha
        # p^g by its logarithm: powers of 0 have no gradient
        missed = F.logsigmoid(torch.where(labels > 0, -logits, logits))  # log(1 - p), log p
        factor = (gamma * missed).exp() * (alpha * labels + (1 - alpha) * (1 - labels))
        if self.options.detach:
            factor = factor.detach()
        return factor * F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
