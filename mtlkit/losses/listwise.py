"""Listwise: each positive row against all rows of its session, by a softmax.

loss = y (log sum_j exp(x_j) - x), over the rows j of the session.

Paper: Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach", ICML 2007,
doi:10.1145/1273496.1273513 (its top-one loss).

When to use: the order within a session is what counts.
When not: probabilities count: a constant may be added to all logits of a session (jrc, or bce as a
second loss); sessions without both classes, which teach nothing.
Cost: a sort of the batch's sessions.
Deviations: sums over positives are divided by all rows of the batch, as in jrc.
"""

from __future__ import annotations

from torch import Tensor

from mtlkit.losses._groups import RowGroups
from mtlkit.losses._loss import GroupLoss


class Listwise(GroupLoss):
    """Softmax over a session."""

    def group_rows(self, logits: Tensor, labels: Tensor, groups: RowGroups) -> Tensor:
        return labels * (groups.log_sum_exp(logits) - logits)
