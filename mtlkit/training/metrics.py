"""Metrics of predictions, exact and without fixed thresholds.

A metric is None where it is not defined on the rows at hand.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.data.auc import wins
from mtlkit.data.groups import RowGroups
from mtlkit.data.types import Task
from mtlkit.metrics.definitions import PRIMARY_METRIC, MetricName
from mtlkit.metrics.values import TaskRows
from mtlkit.ops._dispatch import use_kernel

BLOCK_ROWS = 1 << 15  # rows whose float64 values fit into a core's cache


def auc(scores: Tensor, labels: Tensor) -> float | None:
    """The exact area under the ROC curve, ties counted half; None when one class is missing or a
    score is NaN.

    The pairs in the right order are counted (:func:`mtlkit.data.auc.wins`), so the only rounding is
    that of the quotient.

    Args:
        scores: (N,).
        labels: (N,), positive where > 0.
    """
    scores = _at_least_float32(scores)
    is_positive = labels > 0
    positives = _select_rows(scores, is_positive)
    negatives = _select_rows(scores, ~is_positive)
    if not len(positives) or not len(negatives):
        return None

    if use_kernel(scores):
        won = wins(positives.numpy(), negatives.numpy())
    else:
        won = _wins_on_device(positives, negatives)
    if won is None:
        return None
    return won / (2 * len(positives) * len(negatives))


def _wins_on_device(positives: Tensor, negatives: Tensor) -> int | None:
    """The count of :func:`mtlkit.data.auc.wins` on any device, by searches.

    Args:
        positives: (P,) scores, at least one.
        negatives: (N,) scores, at least one.

    Returns:
        Twice the number of pairs in which the positive has the higher score, and once that of ties;
        None if a score is NaN.
    """
    positives, negatives = positives.sort().values, negatives.sort().values
    if bool(positives[-1].isnan() | negatives[-1].isnan()):  # sorting puts them last
        return None
    lower = torch.searchsorted(negatives, positives).sum()
    lower_or_equal = torch.searchsorted(negatives, positives, right=True).sum()
    return int(lower + lower_or_equal)


def task_metrics(
    task: Task,
    logits: Tensor,
    labels: Tensor,
    observed: Tensor | None,
    largest_logit: float = math.inf,
) -> dict[str, Any]:
    """All metrics of one task by name, besides ``rows`` and ``positives``. One that is no finite
    number is None.

    Args:
        task: Its kind decides which metrics there are; regression is scored on the original scale.
        logits: (N,) or (N, C).
        labels: (N,).
        observed: (N,) bool, the rows that count, or None for all.
        largest_logit: Of a binary task, the logit of the largest probability. Larger ones rank
            their rows, and count as this one where the probability counts.
    """
    logits = _at_least_float32(logits)
    if observed is not None:
        logits = _select_rows(logits, observed)
        labels = _select_rows(labels, observed)

    is_binary = task.kind == "binary"
    counts: dict[str, Any] = {
        "rows": len(labels),
        "positives": int((labels > 0).count_nonzero()) if is_binary else None,
    }
    if not len(labels):
        return counts

    if is_binary:
        values = _binary(logits, labels, largest_logit)
    elif task.kind == "regression":
        values = _regression(task, logits, labels)
    else:
        values = _multiclass(task, logits, labels)
    for name, value in values.items():
        if value is not None and not math.isfinite(value):
            values[name] = None
    return counts | values


@dataclass(frozen=True)
class FurtherMetrics:
    """Metrics besides those of :func:`task_metrics`, and the groups of the rows."""

    names: tuple[MetricName, ...]  # what to compute of the tasks that have it
    groups: RowGroups  # of the rows of a split
    segments: tuple[str, ...] = ()  # segments for which the primary metric of each task is computed

    def of_task(
        self,
        task: Task,
        logits: Tensor,
        labels: Tensor,
        observed: Tensor | None,
        largest_logit: float,
        known: dict[str, Any],
    ) -> dict[str, Any]:
        """The metrics of one task by name; with a segment come its rows and positives.

        Args:
            logits: (N,) or (N, C).
            labels: (N,).
            observed: (N,) bool, the rows that count, or None for all.
            largest_logit: As of :func:`task_metrics`.
            known: What that gave for these rows.
        """
        # Metrics of one segment are computed together, on its rows.
        names_by_segment: dict[str | None, list[MetricName]] = defaultdict(list)
        for name in self.names:
            if name.applies_to(task.kind):
                names_by_segment[name.segment].append(name)
        primary = PRIMARY_METRIC[task.kind]
        for part in self.segments:
            names_by_segment[part].append(MetricName(primary, segment=part))

        values: dict[str, Any] = {}
        everywhere = np.ones(len(labels), bool) if observed is None else observed.cpu().numpy()
        for segment, names in names_by_segment.items():
            is_in = everywhere
            if segment is not None:
                is_in = everywhere & self.groups.segment(segment)
                mask = torch.from_numpy(is_in).to(labels.device)
                known = task_metrics(task, logits, labels, mask, largest_logit)
                values[f"rows@{segment}"] = known["rows"]
                values[f"positives@{segment}"] = known["positives"]
            rows = TaskRows(
                logits.detach().float().cpu().numpy()[is_in],
                labels.cpu().numpy()[is_in],
                lambda group, is_in=is_in: self.groups.codes(group)[is_in],  # type: ignore[misc]
                known,
                largest_logit,
            )
            values |= rows.metrics(names)
        return values


def _at_least_float32(values: Tensor) -> Tensor:
    """Values without a graph, in single precision or better."""
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))


def _select_rows(values: Tensor, mask: Tensor) -> Tensor:
    """``values[mask]``; on the CPU through NumPy, which is several times as fast."""
    if use_kernel(values):
        return torch.from_numpy(values.numpy()[mask.numpy()])
    return values[mask]


def _binary(logits: Tensor, labels: Tensor, largest_logit: float) -> dict[str, float | None]:
    """AUC of (N,) logits, and the fit of their probabilities."""
    # Sum up in double precision, block by block.
    loss = torch.zeros((), dtype=torch.float64, device=logits.device)
    expected_positives = torch.zeros((), dtype=torch.float64, device=logits.device)
    for block, label in zip(logits.split(BLOCK_ROWS), labels.split(BLOCK_ROWS), strict=True):
        x = block.double().clamp_max(largest_logit)
        # In this form infinite logits are right as well.
        loss -= F.logsigmoid(torch.where(label > 0, x, -x)).sum()
        expected_positives += x.sigmoid().sum()

    logloss = float(loss) / len(labels)
    positives = int((labels > 0).count_nonzero())
    rate = positives / len(labels)
    entropy = -(_xlogx(rate) + _xlogx(1 - rate))  # loss of the best constant prediction
    return {
        "auc": auc(logits, labels),
        "logloss": logloss,
        "normalized_entropy": logloss / entropy if entropy > 0 else None,
        "calibration": float(expected_positives) / positives if positives else None,
    }


def _regression(task: Task, predicted: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Errors of (N,) predictions on the original scale of the labels, and the share explained."""
    labels = task.original(labels.double())
    error = task.original(predicted.double()) - labels
    mse = float(error.square().mean())
    variance = float((labels - labels.mean()).square().mean())
    return {
        "mse": mse,
        "mae": float(error.abs().mean()),
        "r2": 1 - mse / variance if variance > 0 else None,
    }


def _multiclass(task: Task, logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Accuracy, loss, and the mean AUC of each class against the rest, from (N, C) logits."""
    labels, logits = labels.long(), logits.double()
    logloss = float(F.cross_entropy(logits, labels))
    is_right = logits.argmax(-1) == labels

    probabilities = logits.softmax(-1).float()
    aucs = [auc(probabilities[:, c], labels == c) for c in range(task.classes)]
    defined = [value for value in aucs if value is not None]
    return {
        "accuracy": None if math.isnan(logloss) else float(is_right.double().mean()),
        "logloss": logloss,
        "auc": sum(defined) / len(defined) if defined else None,
    }


def _xlogx(value: float) -> float:
    return value * math.log(value) if value > 0 else 0.0
