"""A boosted tree for each task, to stand beside single-task networks: scikit-learn's, untuned.

It sees the prepared columns that the networks see. Ids of up to 255 levels are categories, others
numbers in their order; of a bag it sees how many ids it holds, and which of the 50 most frequent.

    python benchmarks/boosted_trees.py adult yeast 'census[protocol=mmoe]'
"""

from __future__ import annotations

import sys

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score

import mtlkit
from mtlkit.data.splits import Bag, Dataset, Split
from mtlkit.data.types import Task

MOST_CATEGORIES = 255
FREQUENT_IDS = 50


def bag_columns(bag: Bag, ids: np.ndarray) -> np.ndarray:
    """(N, 1 + K) how many ids a row holds, and whether it holds each of some ids (K,)."""
    lengths = np.diff(bag.offsets)
    columns = np.zeros((len(lengths), 1 + len(ids)), dtype=np.float32)
    columns[:, 0] = lengths
    row = np.repeat(np.arange(len(lengths)), lengths)
    position = np.searchsorted(ids, bag.values)
    known = (position < len(ids)) & (ids[np.minimum(position, len(ids) - 1)] == bag.values)
    columns[row[known], 1 + position[known]] = 1
    return columns


def frequent_ids(bag: Bag) -> np.ndarray:
    """The most frequent ids of a bag, in rising order."""
    ids, counts = np.unique(bag.values, return_counts=True)
    return np.sort(ids[np.argsort(-counts)[:FREQUENT_IDS]])


def inputs(split: Split, bag_ids: dict[str, np.ndarray]) -> np.ndarray:
    """(N, F) ids, numbers, and what is seen of the bags."""
    parts = [np.asarray(split.ids, dtype=np.float32), np.asarray(split.dense)]
    parts += [bag_columns(split.bags[name], ids) for name, ids in bag_ids.items()]
    return np.concatenate(parts, 1)


def score(task: Task, column: int, train: Split, test: Split, matrices: list[np.ndarray]) -> float:
    """The primary metric of a tree on the test rows that have a label."""
    categories = [i for i in range(train.ids.shape[1]) if train.ids[:, i].max() < MOST_CATEGORIES]
    kind = HistGradientBoostingRegressor if task.kind == "regression" else None
    model = (kind or HistGradientBoostingClassifier)(
        categorical_features=categories, early_stopping=True, random_state=0
    )
    is_train, is_test = train.observed[:, column], test.observed[:, column]
    model.fit(matrices[0][is_train], train.labels[is_train, column])

    labels, rows = test.labels[is_test, column], matrices[1][is_test]
    if task.kind == "regression":
        return float(r2_score(labels, model.predict(rows)))
    if task.kind == "multiclass":
        return float(accuracy_score(labels, model.predict(rows)))
    return float(roc_auc_score(labels, model.predict_proba(rows)[:, 1]))


def table(dataset: Dataset) -> str:
    """The tree of each task as a Markdown table."""
    train, test = dataset.splits["train"], dataset.splits["test"]
    if train.shared is not None:
        raise SystemExit(f"{dataset.name} has columns that rows share; trees are not made for it.")
    bag_ids = {name: frequent_ids(bag) for name, bag in train.bags.items()}
    matrices = [inputs(split, bag_ids) for split in (train, test)]
    lines = [f"| {dataset.name}: task | metric | boosted tree |", "|---|---|---|"]
    metrics = {"binary": "AUC", "regression": "R²", "multiclass": "accuracy"}
    for column, task in enumerate(dataset.schema.tasks):
        value = score(task, column, train, test, matrices)
        lines.append(f"| {task.name} | {metrics[task.kind]} | {value:.4f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(table(mtlkit.load_dataset(name)), flush=True)
        print()
