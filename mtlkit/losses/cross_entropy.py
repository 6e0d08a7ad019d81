"""Cross entropy: the log loss of one class of many.

loss = -sum_c q_c log softmax(x)_c, q = 1 at the label, or (1 - e) there plus e / C everywhere.

Paper: label smoothing is that of Szegedy et al., "Rethinking the Inception Architecture for
Computer Vision", CVPR 2016, arXiv:1512.00567.

When to use: labels that are classes; the default of theirs.
When not: classes in an order, of which a regression may make more.
Cost: one logit a class.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mtlkit.losses._loss import Loss


class CrossEntropy(Loss):
    """Softmax cross entropy."""

    class Options(Loss.Options):
        smoothing: float = Field(0.0, ge=0, lt=1, description="share of a label that is spread")

    kinds = ("multiclass",)
    options: Options

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = self.options.smoothing
        return F.cross_entropy(logits, labels.long(), reduction="none", label_smoothing=smoothing)
