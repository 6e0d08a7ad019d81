"""Probabilities along a funnel, on logits: finite products and ratios, and labels in a space.

With p = sigmoid(a) and q = sigmoid(b), 1 / (pq) - 1 = e^-a + e^-b + e^-(a + b), so the product has
the logit -logsumexp(-a, -b, -a - b). Nothing in it overflows or cancels, and its gradient is a
softmax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.data.types import ALL_ROWS, Schema, Task
from mtlkit.errors import UsageError
from mtlkit.models._types import Batch

NO_FUNNEL = "has no funnel (click -> purchase)"
MOST = 1 - 1e-6
"""The largest probability that a quotient of two estimates counts as. The quotient may exceed 1,
and a certain prediction would cost an infinite loss.
"""
MOST_LOGIT = math.log(MOST) - math.log1p(-MOST)
"""The logit of :data:`MOST`. Beyond it, logits of :func:`ratio` say by how much a quotient exceeds
it.
"""


def product(a: Tensor, b: Tensor) -> Tensor:
    """The logit of sigmoid(a) * sigmoid(b), in float32 at least."""
    a = _at_least_float32(a)
    b = _at_least_float32(b)
    return -torch.logsumexp(torch.stack([-a, -b, -a - b]), 0)


def running_products(logits: Sequence[Tensor]) -> list[Tensor]:
    """The logits of p_1, p_1 p_2, p_1 p_2 p_3, ..."""
    products = [_at_least_float32(logits[0])]
    for logit in logits[1:]:
        products.append(product(products[-1], logit))
    return products


def ratio(z: Tensor, a: Tensor) -> Tensor:
    """The logit of sigmoid(z) / sigmoid(a), in float64.

    A quotient above 1 - 1e-6 has no logit. It gets the one of 1 - 1e-6, plus the logarithm of how
    many times as large it is: so rows keep the order of their quotients, and a probability is had
    after a bound at :data:`MOST_LOGIT`.
    """
    z = z.double()
    a = a.double()
    log_ratio = F.logsigmoid(z) - F.logsigmoid(a)
    bounded = log_ratio.clamp_max(math.log(MOST))
    excess = log_ratio - bounded
    return bounded - torch.log(-torch.expm1(bounded)) + excess


def funnel_columns(schema: Schema, name: str) -> list[int]:
    """The columns of the funnel's steps, in order.

    Without a funnel in the data, all tasks are taken for one, in their declared order.

    Raises:
        UsageError: The tasks cannot be taken for a funnel.
    """
    if schema.funnel is not None:
        return [schema.task_names.index(step) for step in schema.funnel]
    binary = [task.name for task in schema.tasks if task.kind == "binary"]
    if len(schema.tasks) < 2 or len(binary) < len(schema.tasks):
        raise UsageError(
            f"{name} needs two or more tasks, all binary, to take them for a funnel.",
            f"mtlkit bench --tasks {','.join(binary)}" if len(binary) > 1 else "mtlkit list models",
        )
    return list(range(len(schema.tasks)))


def labels_in(schema: Schema, task: Task, space: str, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """The labels (B,) of a task in a space, and (B,) bool the rows on which they count, or None for
    all.

    Args:
        space: All rows, or those on which the step before was taken.
    """
    names = schema.task_names
    column = schema.label_column(task)
    steps_before = schema.before(task.name)
    labels = batch.labels[:, column]
    observed = batch.observed
    mask = None if observed is None else observed[:, column]

    # On the rows of the step before, only those on which it is known to be taken.
    if space != ALL_ROWS and (steps_before or task.given):
        step = names.index(steps_before[-1] if steps_before else str(task.given))
        taken = batch.labels[:, step] > 0
        if observed is not None:
            taken = taken & observed[:, step]
        return labels, taken if mask is None else taken & mask

    # On all rows a later step did not happen where an earlier one is known not to have, even if it
    # has no label there.
    if observed is not None and mask is not None:
        for step in map(names.index, steps_before):
            stopped = observed[:, step] & ~mask & (batch.labels[:, step] <= 0)
            labels = torch.where(stopped, 0.0, labels)
            mask = mask | stopped
    return labels, mask


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
