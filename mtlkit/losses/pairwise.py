"""Pairwise: each positive row against negative rows of its session, two at a time.

loss = y mean_j softplus(x_j - x), over negative rows j of the session.

Paper: Burges et al., "Learning to Rank using Gradient Descent", ICML 2005,
doi:10.1145/1102351.1102363.

When to use: the order within a session is what counts.
When not: probabilities count (add bce as a second loss); sessions without both classes.
Cost: a sort of the batch's sessions, and ``negatives`` numbers a row.
Deviations: a session with more negatives than ``negatives`` compares each positive with as many of
them, another choice for each; sums over positives are divided by all rows of the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mtlkit.losses._groups import RowGroups
from mtlkit.losses._loss import GroupLoss


class Pairwise(GroupLoss):
    """Logistic loss of pairs."""

    class Options(GroupLoss.Options):
        negatives: int = Field(
            16, ge=1, le=1024, description="most negatives that a positive is compared with"
        )

    options: Options

    def group_rows(self, logits: Tensor, labels: Tensor, groups: RowGroups) -> Tensor:
        is_negative = (labels <= 0) & groups.mask

        # Negatives in the order of their groups, and where each group begins among them.
        count = groups.count(is_negative)
        begin = count.cumsum(0) - count
        last = len(labels)
        ordered = torch.where(is_negative, groups.of_row, last).argsort(stable=True)

        # Row i takes the negatives number i, i + 1, ... of its group, and begins again at the end.
        of_row = count[groups.of_row][:, None]  # (B, 1)
        turn = torch.arange(self.options.negatives, device=labels.device)  # (k,)
        number = torch.arange(last, device=labels.device)[:, None] + turn
        others = ordered[(begin[groups.of_row][:, None] + number % of_row.clamp_min(1)) % last]
        exists = turn < of_row  # (B, k)

        losses = torch.where(exists, F.softplus(logits[others] - logits[:, None]), 0.0)
        return labels * losses.sum(1) / exists.sum(1).clamp_min(1)
