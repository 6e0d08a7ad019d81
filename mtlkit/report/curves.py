"""The curve of a run: losses and the primary metrics at its evaluation points."""

from __future__ import annotations

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
    # Task to (P,) mean loss since the point before; 0 where it had no label.
    train_loss: Mapping[str, np.ndarray]
    loss: Mapping[str, np.ndarray]  # score to (P,) loss on validation, NaN where undefined
    # Score to (P,) primary metric on validation, turned so that higher is better.
    goodness: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, record: RunRecord) -> Curve:
        """The curve of a record."""
        points = record.curve
        loss, goodness = {}, {}
        for task in record.tasks:
            name, kind = task["name"], task.get("kind") or "binary"
            metric = task.get("metric") or PRIMARY_METRIC.get(kind, "auc")
            scores = [point.get("validation", {}).get(name, {}) for point in points]
            loss[name] = _numbers(scores, "mse" if kind == "regression" else "logloss")
            goodness[name] = np.array(
                [reading(metric).goodness(v) for v in _numbers(scores, metric)]
            )
        train_losses = [point.get("train_loss", {}) for point in points]
        tasks = train_losses[0] if points else ()
        return cls(
            _numbers(points, "epoch"),
            {name: _numbers(train_losses, name) for name in tasks},
            loss,
            goodness,
        )


def _numbers(points: list[Any], key: str) -> np.ndarray:
    """(P,) one number of each point; NaN for those that do not have it."""
    return np.array([point.get(key) for point in points], dtype=float)
