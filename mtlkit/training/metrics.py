"""Metrics of predictions, exact and without fixed thresholds. None stands for "not defined on these rows"."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.data.schema import Task


def auc(scores: Tensor, labels: Tensor) -> float | None:
    """The exact area under the ROC curve, ties counted half.

    Negatives are sorted as plain values and the positives searched among them: no sort of row numbers is needed.

    Args:
        scores: (N,).
        labels: (N,), positive where > 0.

    Returns:
        The area, or None when one class is missing.
    """
    positive = labels > 0
    above, below = scores[positive], scores[~positive].sort().values
    if not len(above) or not len(below):
        return None
    wins = torch.searchsorted(below, above).sum() + torch.searchsorted(below, above, right=True).sum()
    return int(wins) / (2 * len(above) * len(below))


def task_metrics(task: Task, logits: Tensor, labels: Tensor, observed: Tensor | None) -> dict[str, Any]:
    """All metrics of one task.

    Args:
        task: Its kind decides which metrics there are; regression is scored on the original scale.
        logits: (N,) or (N, C).
        labels: (N,).
        observed: (N,) bool, or None for all.

    Returns:
        Metric name to value, beside ``rows`` and ``positives``.
    """
    if observed is not None:
        logits, labels = logits[observed], labels[observed]
    positives = int((labels > 0).sum())
    out: dict[str, Any] = {"rows": len(labels), "positives": positives if task.kind == "binary" else None}
    if not len(labels):
        return out
    measure = {"binary": _binary, "regression": _regression, "multiclass": _multiclass}[task.kind]
    return out | measure(task, logits.double(), labels.double())


def _binary(task: Task, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    loss = float(F.binary_cross_entropy_with_logits(logits, labels))
    rate = float(labels.mean())
    base = -(rate * _log(rate) + (1 - rate) * _log(1 - rate))  # loss of the best constant
    return {
        "auc": auc(logits.float(), labels),
        "logloss": loss,
        "normalized_entropy": loss / base if base > 0 else None,
        "calibration": float(logits.sigmoid().sum() / labels.sum()) if rate > 0 else None,
    }


def _regression(task: Task, predicted: Tensor, labels: Tensor) -> dict[str, Any]:
    std = task.scale[1] if task.scale else 1.0
    error = (predicted - labels) * std
    spread = float(((labels - labels.mean()) * std).square().mean())
    mse = float(error.square().mean())
    return {"mse": mse, "mae": float(error.abs().mean()), "r2": 1 - mse / spread if spread > 0 else None}


def _multiclass(task: Task, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    classes = labels.long()
    areas = [auc(logits.softmax(-1)[:, c].float(), classes == c) for c in range(task.classes)]
    defined = [area for area in areas if area is not None]
    return {
        "accuracy": float((logits.argmax(-1) == classes).double().mean()),
        "logloss": float(F.cross_entropy(logits, classes)),
        "auc": sum(defined) / len(defined) if defined else None,  # one class against the rest, mean over classes
    }


def _log(value: float) -> float:
    return float(torch.log(torch.tensor(value, dtype=torch.float64))) if value > 0 else 0.0
