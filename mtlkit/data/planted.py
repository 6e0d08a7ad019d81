"""How well the rule by which a generator drew labels ranks them: the ceiling of whoever learns from the rows."""

from __future__ import annotations

import numpy as np

from mtlkit.data.schema import Dataset
from mtlkit.records import PRIMARY_METRIC


def ceilings(dataset: Dataset) -> dict[str, float]:
    """Score to the primary metric that the planted model reaches on the test split, where a generator noted it."""
    planted = dataset.details.get("simulation", {})
    kinds = {task.name: task.kind for task in dataset.schema.tasks}
    found = {
        score.name: planted.get(f"planted_{PRIMARY_METRIC[kinds[score.task]]}", {}).get(score.name)
        for score in dataset.schema.scores()
    }
    return {name: value for name, value in found.items() if value is not None}


def auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The AUC of scores (N,) for labels (N,) bool, ties counted half; None where a class is missing."""
    return expected_auc(scores, labels, ~labels) if 0 < labels.sum() < len(labels) else None


def expected_auc(scores: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    """The AUC of rows (N,) that count as positive and as negative with the given weights (N,)."""
    _, place = np.unique(scores, return_inverse=True)
    above, below = np.bincount(place, positive), np.bincount(place, negative)
    beaten = below.cumsum() - below / 2
    return float((above * beaten).sum() / (above.sum() * below.sum()))
