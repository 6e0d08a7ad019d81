"""Logistic: a linear model for each score; ridge regression where the label is a number.

logit p = w x + b with an L2 penalty, on one-hot ids, the weights of bags, and standardised numbers.
The search is fixed: four strengths of the penalty, the best on validation by the primary metric.

Paper: the linear models of scikit-learn, Pedregosa et al., JMLR 2011, arXiv:1201.0490.
When to use: as the simplest model that sees the inputs at all.
When not: where features act together; it has no crosses.
Cost: four convex fits a score; of large data it sees the ``rows`` that the seed draws.
Deviations: it minimises the log loss or the squared error, whatever the losses of the networks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydantic import Field
from scipy import sparse
from sklearn.linear_model import LogisticRegression, Ridge

from mtlkit.baselines._baseline import Baseline, Fit, FitProblem, all_classes, best_of
from mtlkit.baselines._inputs import columns_of
from mtlkit.data.splits import Split
from mtlkit.data.types import Schema, Task

STRENGTHS = (1.0, 0.1, 0.01, 10.0)
"""C, the inverse of the penalty."""


class Logistic(Baseline):
    """Logistic or ridge regression."""

    class Options(Baseline.Options):
        """Options of logistic."""

        rows: int | None = Field(
            1_000_000, gt=0, description="most rows of train, and of validation, that it sees"
        )
        iterations: int = Field(300, gt=0, description="most steps of the solver")

    def __init__(
        self, schema: Schema, options: Options, train: Split, rows: np.ndarray, seed: int
    ) -> None:
        super().__init__(schema, options, train, rows, seed)
        vocabularies = [feature.vocab for feature in schema.of_kind("id")]
        self.first = np.concatenate([[0], np.cumsum(vocabularies)]).astype(int)  # (F + 1,)
        seen = columns_of(schema, train, rows)
        self.mean, self.std = seen.dense.mean(0), seen.dense.std(0)

    def encode(self, split: Split, rows: np.ndarray) -> sparse.csr_matrix:
        """(n, D) one-hot ids, numbers, and the weights of bags."""
        columns = columns_of(self.schema, split, rows)
        n, features = columns.ids.shape
        positions = (columns.ids + self.first[:-1]).ravel()
        ends = np.arange(n + 1) * features
        ids = sparse.csr_matrix((np.ones(len(positions)), positions, ends), (n, self.first[-1]))
        dense = (columns.dense - self.mean) / np.where(self.std > 0, self.std, 1)
        return sparse.hstack([ids, dense, *columns.bags.values()], format="csr")

    def fit(self, problem: FitProblem) -> Fit:
        return best_of(self._trial(problem, c) for c in STRENGTHS)

    def _trial(self, problem: FitProblem, c: float) -> Fit:
        """One strength of the penalty."""
        if problem.task.kind == "regression":
            model = Ridge(1 / c, max_iter=self.options.iterations)
        else:
            model = LogisticRegression(C=c, max_iter=self.options.iterations)
        model.fit(problem.inputs, problem.labels, problem.weight)

        def predict(inputs: sparse.csr_matrix) -> np.ndarray:
            if problem.task.kind == "regression":
                return model.predict(inputs)
            return all_classes(problem.task, model.decision_function(inputs), model.classes_)

        return Fit(predict, {"C": c}, problem.value(predict(problem.validation)))
