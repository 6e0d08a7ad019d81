"""Losses of tasks on logits, masked where a label is missing and weighted by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.data.types import Task

if TYPE_CHECKING:
    from mtlkit.models._types import Batch


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels.long(), reduction="none")


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
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
    task: Task,
    logits: Tensor,
    batch: Batch,
    column: int,
    given: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, str, Tensor | None]:
    """The weighted mean of a task's losses over the rows that have a label.

    Args:
        task: Its ``losses`` are added up.
        logits: (B,) or (B, C).
        batch: Holds labels, masks and row weights.
        column: The task's column in the labels.
        given: Labels (B,) and mask (B,) in place of the column, such as those of
            ``funnel.labels_in``.

    Returns:
        The loss (0 when no row has a label), the task's name, and whether any row has one (None:
        all have).
    """
    if given is None:
        given = (
            batch.labels[:, column],
            None if batch.observed is None else batch.observed[:, column],
        )
    labels, mask = given
    if mask is not None:
        labels = torch.where(
            mask, labels, 0.0
        )  # before the loss: a NaN would come back in the gradient
    loss, active = mean_of_rows(row_losses(task, logits, labels), mask, batch.weight)
    return loss, task.name, active


def row_losses(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    """The summed losses of a task for each row (B,), in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return sum(
        (LOSSES[name](logits, labels) for name in task.losses[1:]),
        LOSSES[task.losses[0]](logits, labels),
    )


def mean_of_rows(
    rows: Tensor, mask: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The weighted mean of (B,) values over the rows of a mask.

    Returns:
        The mean (0 when there is no row), and whether there is any row (None: all count).
    """
    if mask is not None:
        weight = mask.to(rows.dtype) if weight is None else weight * mask
    if weight is None:
        return rows.mean(), None
    total = weight.sum()
    some = total > 0
    # where there is no row divide by 1: a tiny number would make a large task weight infinite, and
    # infinity times 0 NaN
    return (rows * weight).sum() / torch.where(some, total, 1.0), some
