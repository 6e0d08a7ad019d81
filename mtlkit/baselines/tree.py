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

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from pydantic import Field
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from mtlkit.baselines._baseline import Baseline, Fit, FitProblem, all_classes, best_of
from mtlkit.baselines._inputs import columns_of
from mtlkit.data.splits import Split
from mtlkit.data.types import Schema, Task

MOST_CATEGORIES = 255
FREQUENT_IDS = 50
EVERY = 10
"""Iterations between two looks at validation."""
SEARCH = ((0.05, 15), (0.1, 31), (0.1, 7), (0.05, 63), (0.2, 15), (0.02, 31))
"""Learning rate and leaves of the trials, in their order."""


class Tree(Baseline):
    """Gradient-boosted trees."""

    class Options(Baseline.Options):
        """Options of tree."""

        rows: int | None = Field(
            1_000_000, gt=0, description="most rows of train, and of validation, that it sees"
        )
        iterations: int = Field(400, gt=0, description="most trees, of each class")
        trials: int = Field(
            3, gt=0, le=len(SEARCH), description="pairs of learning rate and leaves"
        )

    def __init__(
        self, schema: Schema, options: Options, train: Split, rows: np.ndarray, seed: int
    ) -> None:
        super().__init__(schema, options, train, rows, seed)
        features = schema.of_kind("id")
        self.categories = [i for i, f in enumerate(features) if f.vocab <= MOST_CATEGORIES]
        seen = columns_of(schema, train, rows)
        self.frequent = {name: _frequent(bag) for name, bag in seen.bags.items()}

    def encode(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """(n, F) ids, numbers, and what is seen of the bags."""
        columns = columns_of(self.schema, split, rows)
        parts = [columns.ids.astype(np.float32), columns.dense]
        for name, bag in columns.bags.items():
            parts += [np.diff(bag.indptr)[:, None], bag[:, self.frequent[name]].toarray() > 0]
        return np.concatenate(parts, 1, dtype=np.float32)

    def fit(self, problem: FitProblem) -> Fit:
        trials = SEARCH[: self.options.trials]
        return best_of(self._trial(problem, *trial) for trial in trials)

    def _trial(self, problem: FitProblem, rate: float, leaves: int) -> Fit:
        """One pair of settings, with the iterations that are best on validation."""
        is_regression = problem.task.kind == "regression"
        kind = HistGradientBoostingRegressor if is_regression else HistGradientBoostingClassifier
        model = kind(
            learning_rate=rate,
            max_leaf_nodes=leaves,
            max_iter=self.options.iterations,
            max_features=0.5,
            categorical_features=self.categories or None,
            early_stopping=False,
            random_state=self.seed,
        )
        model.fit(problem.inputs, problem.labels, problem.weight)

        def stages(inputs: np.ndarray) -> Iterator[np.ndarray]:
            if is_regression:
                yield from model.staged_predict(inputs)
            else:
                for raw in model.staged_decision_function(inputs):
                    yield all_classes(problem.task, raw, model.classes_)

        last = self.options.iterations
        values = {
            done: problem.value(logits)
            for done, logits in enumerate(stages(problem.validation), start=1)
            if done % EVERY == 0 or done == last
        }
        iterations = max(values, key=lambda done: values[done])

        def predict(inputs: np.ndarray) -> np.ndarray:
            return next(islice(stages(inputs), iterations - 1, None))

        chosen = {"learning_rate": rate, "leaves": leaves, "iterations": iterations}
        return Fit(predict, chosen, values[iterations])


def _frequent(bag: sparse.csr_matrix) -> np.ndarray:
    """The most frequent ids of a bag, in rising order."""
    counts = np.bincount(bag.indices, minlength=bag.shape[1])
    most = np.argsort(-counts, kind="stable")[:FREQUENT_IDS]
    return np.sort(most[counts[most] > 0])
