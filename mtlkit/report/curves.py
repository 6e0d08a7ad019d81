"""The curve of a run: losses and the primary metrics at its evaluation points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtlkit.metrics.definitions import PRIMARY_METRIC, reading
from mtlkit.records import RunRecord


@dataclass(frozen=True)
class Curve:
    """What was recorded at the P evaluation points of one run."""

    epochs: np.ndarray  # (P,) epochs so far
    rows: np.ndarray  # (P,) training rows so far; NaN where the record does not say
    # Task to (P,) mean loss since the point before; 0 where it had no label.
    train_loss: Mapping[str, np.ndarray]
    loss: Mapping[str, np.ndarray]  # score to (P,) loss on validation, NaN where undefined
    # Score to (P,) primary metric on validation, turned so that higher is better.
    goodness: Mapping[str, np.ndarray]
    metric: Mapping[str, str]  # score to the name of its primary metric
    value: Mapping[str, np.ndarray]  # score to (P,) that metric as it was recorded

    @classmethod
    def of(cls, record: RunRecord) -> Curve:
        """The curve of a record."""
        points = record.curve
        training = record.cell.resolved.get("training") or {}
        batch_size, batches = training.get("batch_size"), training.get("accumulate", 1)
        is_known = isinstance(batch_size, int) and isinstance(batches, int)
        rows_by_step = batch_size * batches if is_known else math.nan
        loss, goodness, metrics, values = {}, {}, {}, {}
        for task in record.tasks:
            name, kind = task["name"], task.get("kind") or "binary"
            metric = task.get("metric") or PRIMARY_METRIC.get(kind, "auc")
            scores = [point.get("validation", {}).get(name, {}) for point in points]
            metrics[name] = metric
            loss[name] = _numbers(scores, "mse" if kind == "regression" else "logloss")
            values[name] = _numbers(scores, metric)
            goodness[name] = np.array([reading(metric).goodness(v) for v in values[name]])
        train_losses = [point.get("train_loss", {}) for point in points]
        tasks = train_losses[0] if points else ()
        return cls(
            _numbers(points, "epoch"),
            _numbers(points, "step") * rows_by_step,
            {name: _numbers(train_losses, name) for name in tasks},
            loss,
            goodness,
            metrics,
            values,
        )


def _numbers(points: list[Any], key: str) -> np.ndarray:
    """(P,) one number of each point; NaN for those that do not have it."""
    return np.array([point.get(key) for point in points], dtype=float)
