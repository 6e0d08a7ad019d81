"""Losses of tasks on logits, masked where a label is missing and weighted by row."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.data.types import Loss, Task


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels.long(), reduction="none")


LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": lambda logits, labels: F.binary_cross_entropy_with_logits(
        logits, labels, reduction="none"
    ),
    "cross_entropy": _cross_entropy,
    "mse": lambda logits, labels: F.mse_loss(logits, labels, reduction="none"),
    "l1": lambda logits, labels: F.l1_loss(logits, labels, reduction="none"),
    "huber": lambda logits, labels: F.huber_loss(logits, labels, reduction="none"),
}
"""Name to a function of logits ((B,) or (B, C)) and labels (B,) that returns a loss a row (B,)."""


def task_loss(
    task: Task, logits: Tensor, labels: Tensor, mask: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The weighted mean of a task's losses over the rows that have a label.

    Args:
        task: Its ``losses`` are added up.
        logits: (B,) or (B, C).
        labels: (B,), of any value where there is no label.
        mask: (B,) bool, whether a row has a label; None: all have.
        weight: (B,) row weights, or None for 1.

    Returns:
        The loss (0 when no row has a label), and whether any row has one (None: all have).
    """
    if mask is not None:
        # Before the loss: a NaN that is multiplied by 0 afterwards comes back in the gradient.
        labels = torch.where(mask, labels, 0.0)
    return mean_of_rows(row_losses(task, logits, labels), mask, weight)


def row_losses(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    """The summed losses of a task for each row (B,), in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    first, *others = [LOSSES[name](logits, labels) for name in task.losses]
    return sum(others, first)


def mean_of_rows(
    values: Tensor, mask: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The weighted mean of values over the rows of a mask.

    Args:
        values: (B,).
        mask: (B,) bool, the rows that count; None: all do.
        weight: (B,) row weights, or None for 1.

    Returns:
        The mean (0 when no row counts), and whether any row counts (None: all do).
    """
    if mask is not None:
        weight = mask.to(values.dtype) if weight is None else weight * mask
    if weight is None:
        return values.mean(), None
    total = weight.sum()
    active = total > 0
    # Without any row divide by 1: a tiny number would make a large task weight infinite, and
    # infinity times 0 NaN.
    return (values * weight).sum() / torch.where(active, total, 1.0), active
