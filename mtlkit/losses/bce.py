"""BCE: the log loss of a binary label.

loss = -y log s(x) - (1 - y) log(1 - s(x)), with y (1 - e) + e / 2 instead of y for smoothing e.

Paper: label smoothing is that of Szegedy et al., "Rethinking the Inception Architecture for
Computer Vision", CVPR 2016, arXiv:1512.00567.

When to use: binary labels; the default of theirs.
When not: smoothing where the level of the probability matters: it pulls it towards 1/2.
Cost: none to speak of.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mtlkit.losses._loss import Loss


class BCE(Loss):
    """Binary cross entropy."""

    class Options(Loss.Options):
        smoothing: float = Field(0.0, ge=0, lt=1, description="share of a label that is spread")

    options: Options

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = self.options.smoothing
        if smoothing:
            labels = labels * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
