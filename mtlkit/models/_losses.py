"""Losses of tasks on logits, masked where a label is missing and weighted by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit.data.types import Schema, Task
from mtlkit.losses._build import build_loss
from mtlkit.models._types import Batch

NO_GROUPS: Mapping[str, Tensor] = {}


class RowMean(NamedTuple):
    """The weighted mean of a value over rows."""

    mean: Tensor  # scalar, 0 when no row counts
    active: Tensor | None = None  # scalar bool, whether any row counts; None: all do
    total: Tensor | None = None  # scalar, the weight of the rows; None for their number


def task_loss(
    task: Task,
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    groups: Mapping[str, Tensor] = NO_GROUPS,
) -> RowMean:
    """The weighted mean of a task's losses over the rows that have a label.

    Args:
        task: Its ``losses`` are added up.
        logits: (B,) or (B, C).
        labels: (B,), of any value where there is no label.
        mask: (B,) bool, whether a row has a label; None: all have.
        weight: (B,) row weights, or None for 1.
        groups: (B,) ids of each group that the losses ask for.
    """
    if mask is not None:
        # Before the loss: a NaN that is multiplied by 0 afterwards comes back in the gradient.
        labels = torch.where(mask, labels, 0.0)
    values = build_loss(task).rows(logits, labels, mask, groups)
    weights = task.row_weights
    mean = weights.train_mean if weights is not None and weights.mean == "train" else None
    return mean_of_rows(values, mask, weight, mean)


def row_weight(schema: Schema, task: Task, batch: Batch) -> Tensor | None:
    """How much each row (B,) of a batch counts for a task; None for 1.

    This is the weight of the row, for the task if it has one of its own, times that of the side on
    which the row is of the task's indicator.
    """
    weight = batch.weight
    if weight is not None and weight.dim() > 1:
        weight = weight[:, schema.label_column(task)]
    if task.row_weights is None:
        return weight
    column = schema.task_names.index(task.row_weights.indicator)
    is_inside = batch.labels[:, column] > 0
    if batch.observed is not None:
        is_inside = is_inside & batch.observed[:, column]
    sides = torch.where(is_inside, task.row_weights.inside, task.row_weights.outside)
    return sides if weight is None else weight * sides


def mean_of_rows(
    values: Tensor, mask: Tensor | None, weight: Tensor | None, weight_mean: float | None = None
) -> RowMean:
    """The weighted mean of values over the rows of a mask.

    Args:
        values: (B,).
        mask: (B,) bool, the rows that count; None: all do.
        weight: (B,) row weights, or None for 1.
        weight_mean: What the weights are divided by; None for their mean over these rows.
    """
    if mask is not None:
        weight = mask.to(values.dtype) if weight is None else weight * mask
    if weight is None:
        return RowMean(values.mean())
    total = weight.sum()
    active = total > 0
    if weight_mean is not None:
        rows = len(values) if mask is None else mask.sum()
        total = torch.where(active, rows * weight_mean, 0.0)
    # Without any row divide by 1: a tiny number would make a large task weight infinite, and
    # infinity times 0 NaN.
    mean = (values * weight).sum() / torch.where(active, total, 1.0)
    return RowMean(mean, active, total)
