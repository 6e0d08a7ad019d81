"""Base rate: every row gets the training rate, or mean.

p = rate of the label on train, the shares of the classes, or the mean. The floor under everything:
its AUC is 0.5, its normalized entropy 1 and its R² at most 0; within groups all rows are tied.

When to use: to see what a metric is worth without a model.
When not: as a competitor.
Cost: none.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mtlkit.baselines._baseline import Baseline, Fit, FitProblem
from mtlkit.data.types import Task

LEAST = 1e-6
"""The lowest probability of a class that train lacks."""


class BaseRate(Baseline):
    """The training rate."""

    def fit(self, problem: FitProblem) -> Fit:
        if problem.task.kind == "regression":
            constant = np.average(problem.labels, weights=problem.weight)
        else:
            classes = problem.task.classes if problem.task.kind == "multiclass" else 2
            counts = np.bincount(problem.labels.astype(int), problem.weight, classes)
            logits = np.log(np.clip(counts / counts.sum(), LEAST, 1 - LEAST))
            constant = logits if problem.task.kind == "multiclass" else logits[1] - logits[0]

        def predict(inputs: np.ndarray) -> np.ndarray:
            return np.broadcast_to(constant, (len(inputs), *np.shape(constant))).copy()

        return Fit(predict, value=problem.value(predict(problem.validation)))
