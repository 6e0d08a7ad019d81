"""JRC: log loss and ranking within a session, of the same two logits.

x = (x0, x1), p = softmax(x)_1; loss = alpha CE(x, y) + (1 - alpha) GE. GE of a positive row is -log
of its share in the sum of exp(x1) over its session, of a negative row the same with x0. In the sum
are all rows of the session (``form=paper``), or only the row itself and those of the other class
(``form=masked``).

Paper: Sheng et al., "Joint Optimization of Ranking and Calibration with Contextualized Hybrid
Model", KDD 2023, doi:10.1145/3580305.3599851, arXiv:2208.06164.

When to use: rows come in sessions, and both their order within one and the probability count.
When not: batches hold a row or two of a session: set batches=grouped. A step of a product model
(esmm, escm2), whose product is one logit.
Cost: a second logit, and a sort of the batch's sessions.
Deviations: both means are over all rows of the batch. Row weights weigh the terms of a row.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mtlkit.losses._groups import RowGroups
from mtlkit.losses._loss import GroupLoss


class JRC(GroupLoss):
    """Joint ranking and calibration."""

    class Options(GroupLoss.Options):
        alpha: float = Field(0.5, ge=0, le=1, description="weight of the log loss")
        form: Literal["paper", "masked"] = Field(
            "paper", description="rows in the softmax: all of the session, or of the other class"
        )

    outputs = 2
    options: Options

    def prediction(self, logits: Tensor) -> Tensor:
        """x1 - x0, whose sigmoid is p."""
        return logits[:, 1] - logits[:, 0]

    def group_rows(self, logits: Tensor, labels: Tensor, groups: RowGroups) -> Tensor:
        cross_entropy = F.cross_entropy(logits, labels.long(), reduction="none")
        is_positive = labels > 0
        generative = torch.where(
            is_positive,
            self._generative(logits[:, 1], ~is_positive, groups),
            self._generative(logits[:, 0], is_positive, groups),
        )
        alpha = self.options.alpha
        return alpha * cross_entropy + (1 - alpha) * generative

    def _generative(self, logit: Tensor, other_class: Tensor, groups: RowGroups) -> Tensor:
        """-log of each row's share (B,) in its session, of the rows of one class."""
        if self.options.form == "paper":
            total = groups.log_sum_exp(logit)
        else:
            total = torch.logaddexp(logit, groups.log_sum_exp(logit, other_class))
        return total - logit
