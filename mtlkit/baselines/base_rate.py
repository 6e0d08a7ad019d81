"""Base rate: every row gets the training rate, or mean.

p = rate of the label on train, the shares of the classes, or the mean. The floor under everything:
its AUC is 0.5, its normalized entropy about 1, its R² at most 0; within groups all rows are tied.

Paper: none; Dummy* of scikit-learn.
When to use: to see what a metric is worth without a model.
When not: as a competitor.
Cost: none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier, DummyRegressor

from mtlkit.baselines._baseline import Baseline, Columns
from mtlkit.data.types import Task


class BaseRate(Baseline):
    """The training rate."""

    def encode(self, columns: Columns) -> np.ndarray:
        return np.zeros((len(columns.ids), 1))

    def trials(self, task: Task) -> Iterator[tuple[dict[str, Any], Any]]:
        yield {}, DummyRegressor() if task.kind == "regression" else DummyClassifier()
