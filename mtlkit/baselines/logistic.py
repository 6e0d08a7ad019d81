"""Logistic: a linear model for each score; ridge regression where the label is a number.

logit p = w x + b with an L2 penalty, on one-hot ids, the weights of bags, and standardised numbers.
The search is fixed: four strengths of the penalty, the best on validation by the primary metric.

Paper: Hoerl and Kennard, "Ridge regression", Technometrics 1970,
doi:10.1080/00401706.1970.10488634, and its like for probabilities.
When to use: as the simplest model that sees the inputs at all.
When not: where features act together; it has no crosses.
Cost: four convex fits a score; of large data it sees the ``rows`` that the seed draws.
Deviations: it minimises the log loss or the squared error, whatever the losses of the networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import Field
from scipy import sparse
from sklearn.linear_model import LogisticRegression, Ridge

from mtlkit.baselines._baseline import Baseline, Columns
from mtlkit.data.types import Schema, Task

STRENGTHS = (1.0, 0.1, 0.01, 10.0)  # c, the inverse of the penalty


class Logistic(Baseline):
    """Logistic or ridge regression."""

    class Options(Baseline.Options):
        iterations: int = Field(300, gt=0, description="most steps of the solver")

    def __init__(self, schema: Schema, options: Options, train: Columns, seed: int) -> None:
        super().__init__(schema, options, train, seed)
        vocabularies = [feature.vocab for feature in schema.of_kind("id")]
        self.first = np.concatenate([[0], np.cumsum(vocabularies)]).astype(int)  # (F + 1,)
        self.mean, self.std = train.dense.mean(0), train.dense.std(0)

    def encode(self, columns: Columns) -> sparse.csr_matrix:
        """(n, D) one-hot ids, numbers, and the weights of bags."""
        n, features = columns.ids.shape
        positions = (columns.ids + self.first[:-1]).ravel()
        one_hot = (np.ones(n * features), positions, np.arange(n + 1) * features)
        ids = sparse.csr_matrix(one_hot, (n, self.first[-1]))
        dense = (columns.dense - self.mean) / np.where(self.std > 0, self.std, 1)
        return sparse.hstack([ids, dense, *columns.bags.values()], format="csr")

    def trials(self, task: Task) -> Iterator[tuple[dict[str, Any], Any]]:
        most = {"max_iter": self.options.iterations}
        for c in STRENGTHS:
            is_number = task.kind == "regression"
            yield {"C": c}, Ridge(1 / c, **most) if is_number else LogisticRegression(C=c, **most)
