"""Tree: gradient-boosted trees for each score, scikit-learn's histogram ones.

f(x) = sum_k rate * tree_k(x), each tree fitted to the gradients of the loss at those before it.
It sees the prepared columns that the networks see. Ids of up to 255 levels are categories, others
numbers in their order; of a bag it sees how many ids it holds, and which of the 50 most frequent.
The search is fixed: a few pairs of learning rate and leaves, each with as many iterations as are
best on validation, by the primary metric.

Paper: Friedman, "Greedy function approximation: a gradient boosting machine", Annals of Statistics
2001, doi:10.1214/aos/1013203451; with histograms as in Ke et al., "LightGBM", NeurIPS 2017.
When to use: on tables with numbers and few ids, where networks often lose to it.
When not: where ids have many levels and few rows each.
Cost: trials x iterations trees a score; of large data it sees the ``rows`` that the seed draws.
Deviations: it minimises the log loss or the squared error, whatever the losses of the networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import Field
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from mtlkit.baselines._baseline import Baseline, Columns
from mtlkit.data.types import Schema, Task

MOST_CATEGORIES = 255
FREQUENT_IDS = 50
SEARCH = ((0.05, 31), (0.1, 7), (0.05, 63), (0.1, 15))
"""Learning rate and leaves of the trials, in their order."""


class Tree(Baseline):
    """Gradient-boosted trees."""

    class Options(Baseline.Options):
        iterations: int = Field(300, ge=10, description="most trees, of each class")
        trials: int = Field(3, gt=0, le=4, description="pairs of learning rate and leaves")

    def __init__(self, schema: Schema, options: Options, train: Columns, seed: int) -> None:
        super().__init__(schema, options, train, seed)
        ids = enumerate(schema.of_kind("id"))
        self.categories = [i for i, feature in ids if feature.vocab <= MOST_CATEGORIES]
        self.frequent = {name: _frequent(bag) for name, bag in train.bags.items()}

    def encode(self, columns: Columns) -> np.ndarray:
        """(n, F) ids, numbers, and what is seen of the bags."""
        parts = [columns.ids, columns.dense]
        for name, bag in columns.bags.items():
            parts += [np.diff(bag.indptr)[:, None], bag[:, self.frequent[name]].toarray() > 0]
        return np.concatenate(parts, 1, dtype=np.float32)

    def trials(self, task: Task) -> Iterator[tuple[dict[str, Any], Any]]:
        is_number = task.kind == "regression"
        kind = HistGradientBoostingRegressor if is_number else HistGradientBoostingClassifier
        for rate, leaves in SEARCH[: self.options.trials]:
            settings = {"learning_rate": rate, "max_leaf_nodes": leaves}
            yield (
                settings,
                kind(
                    **settings,
                    max_iter=self.options.iterations,
                    max_features=0.5,
                    categorical_features=self.categories or None,
                    early_stopping=False,
                    random_state=self.seed,
                ),
            )


def _frequent(bag: sparse.csr_matrix) -> np.ndarray:
    """The most frequent ids of a bag."""
    counts = np.bincount(bag.indices, minlength=bag.shape[1])
    most = np.argsort(-counts, kind="stable")[:FREQUENT_IDS]
    return most[counts[most] > 0]
