"""Metrics of predictions, exact and without fixed thresholds. None stands for "not defined on these
rows".
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.data.auc import wins
from mtlkit.data.types import Task

BLOCK = 1 << 15  # rows whose float64 values fit into a core's cache


def auc(scores: Tensor, labels: Tensor) -> float | None:
    """The exact area under the ROC curve, ties counted half.

    The pairs in the right order are counted (:func:`mtlkit.data.auc.wins`), so the only rounding is
    that of the quotient.

    Args:
        scores: (N,).
        labels: (N,), positive where > 0.

    Returns:
        The area, or None when one class is missing or a score is NaN.
    """
    scores = _precise(scores)
    positive = labels > 0
    above, below = _rows(scores, positive), _rows(scores, ~positive)
    if not len(above) or not len(below):
        return None
    won = (
        wins(above.numpy(), below.numpy())
        if scores.device.type == "cpu"
        else _wins_on_device(above, below)
    )
    return None if won is None else won / (2 * len(above) * len(below))


def _wins_on_device(above: Tensor, below: Tensor) -> int | None:
    """The same count on any device, by searches."""
    above, below = above.sort().values, below.sort().values
    if bool(above[-1].isnan() | below[-1].isnan()):
        return None
    return int(
        torch.searchsorted(below, above).sum() + torch.searchsorted(below, above, right=True).sum()
    )


def task_metrics(
    task: Task, logits: Tensor, labels: Tensor, observed: Tensor | None
) -> dict[str, Any]:
    """All metrics of one task. A metric that is no finite number is None.

    Args:
        task: Its kind decides which metrics there are; regression is scored on the original scale.
        logits: (N,) or (N, C).
        labels: (N,).
        observed: (N,) bool, or None for all.

    Returns:
        Metric name to value, beside ``rows`` and ``positives``.
    """
    logits = _precise(logits)
    if observed is not None:
        logits, labels = _rows(logits, observed), _rows(labels, observed)
    positives = int((labels > 0).count_nonzero())
    out: dict[str, Any] = {
        "rows": len(labels),
        "positives": positives if task.kind == "binary" else None,
    }
    if not len(labels):
        return out
    measure = {"binary": _binary, "regression": _regression, "multiclass": _multiclass}[task.kind]
    found = measure(task, logits, labels)
    return out | {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in found.items()
    }


def _precise(values: Tensor) -> Tensor:
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))


def _rows(values: Tensor, where: Tensor) -> Tensor:
    """``values[where]``; on the CPU through NumPy, which is several times as fast."""
    return (
        torch.from_numpy(values.numpy()[where.numpy()])
        if values.device.type == "cpu"
        else values[where]
    )


def _binary(task: Task, logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    loss, expected = (torch.zeros((), dtype=torch.float64, device=logits.device) for _ in range(2))
    for block, label in zip(logits.split(BLOCK), labels.split(BLOCK), strict=True):
        x = block.double()
        loss -= F.logsigmoid(
            torch.where(label > 0, x, -x)
        ).sum()  # in this form infinite logits are right, too
        expected += x.sigmoid().sum()
    mean, positives = float(loss) / len(labels), int((labels > 0).count_nonzero())
    rate = positives / len(labels)
    base = -(_xlogx(rate) + _xlogx(1 - rate))  # loss of the best constant
    return {
        "auc": auc(logits, labels),
        "logloss": mean,
        "normalized_entropy": mean / base if base > 0 else None,
        "calibration": float(expected) / positives if positives else None,
    }


def _regression(task: Task, predicted: Tensor, labels: Tensor) -> dict[str, float | None]:
    std = task.scale[1] if task.scale else 1.0
    labels = labels.double()
    error = (predicted - labels) * std
    spread = float(((labels - labels.mean()) * std).square().mean())
    mse = float(error.square().mean())
    return {
        "mse": mse,
        "mae": float(error.abs().mean()),
        "r2": 1 - mse / spread if spread > 0 else None,
    }


def _multiclass(task: Task, logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    classes, logits = labels.long(), logits.double()
    loss = float(F.cross_entropy(logits, classes))
    chances = logits.softmax(-1).float()
    areas = [auc(chances[:, c], classes == c) for c in range(task.classes)]
    defined = [area for area in areas if area is not None]
    return {
        "accuracy": None
        if math.isnan(loss)
        else float((logits.argmax(-1) == classes).double().mean()),
        "logloss": loss,
        "auc": sum(defined) / len(defined)
        if defined
        else None,  # one class against the rest, mean over classes
    }


def _xlogx(value: float) -> float:
    return value * math.log(value) if value > 0 else 0.0
