"""A boosted tree for each task, to stand beside single-task networks: scikit-learn's, untuned.

It sees the prepared columns that the networks see. Ids of up to 255 levels are categories, others
numbers in their order; of a bag it sees how many ids it holds, and which of the 50 most frequent.

    python benchmarks/boosted_trees.py adult yeast 'census[protocol=mmoe]'

With a folder of results it stands beside the networks, a table for each data set:

    python benchmarks/boosted_trees.py adult yeast --results results/datasets
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score

import mtlkit
from mtlkit.data.splits import Bag, Dataset, Split
from mtlkit.data.types import Task

MOST_CATEGORIES = 255
FREQUENT_IDS = 50
METRICS = {"binary": "auc", "regression": "r2", "multiclass": "accuracy"}
LABELS = {"binary": "AUC", "regression": "R²", "multiclass": "accuracy"}


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


def tree_scores(dataset: Dataset) -> dict[str, float]:
    """The primary metric of each task's tree on the test split."""
    train, test = dataset.splits["train"], dataset.splits["test"]
    if train.shared is not None:
        raise SystemExit(f"{dataset.name} has columns that rows share; trees are not made for it.")
    bag_ids = {name: frequent_ids(bag) for name, bag in train.bags.items()}
    matrices = [inputs(split, bag_ids) for split in (train, test)]
    tasks = dataset.schema.tasks
    return {
        task.name: score(task, column, train, test, matrices) for column, task in enumerate(tasks)
    }


def network_scores(results: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    """A row for each model and balancer, a column for each task: mean and interval over seeds.

    Better rows come first, by their mean rank over tasks.
    """
    rows = results[(results.dataset == dataset.name) & (results.split == "test")]
    means, texts = {}, {}
    for task in dataset.schema.tasks:
        of_task = rows[(rows.task == task.name) & (rows.metric == METRICS[task.kind])]
        of_task = of_task.set_index(["model", "balancer"])
        half_width = (of_task.ci_high - of_task.ci_low) / 2
        means[task.name] = of_task["mean"]
        texts[task.name] = [
            f"{mean:.4f} ± {half:.4f}"
            for mean, half in zip(of_task["mean"], half_width, strict=True)
        ]
    frame = pd.DataFrame(means)
    mean_rank = frame.rank(ascending=False).mean(axis=1)
    names = [
        model if balancer == "none" else f"{model} + {balancer}" for model, balancer in frame.index
    ]
    table = pd.DataFrame(texts, index=names)
    return table.iloc[mean_rank.argsort().to_numpy()]


def table(dataset: Dataset, results: pd.DataFrame | None) -> str:
    """The tree of each task as a Markdown table, above the networks if there are results."""
    tree = {task: f"{value:.4f}" for task, value in tree_scores(dataset).items()}
    frame = pd.DataFrame(tree, index=["boosted tree"])
    if results is not None:
        frame = pd.concat([frame, network_scores(results, dataset)])
    labels = {task.name: f"{task.name} {LABELS[task.kind]}" for task in dataset.schema.tasks}
    frame = frame.rename(columns=labels)

    lines = [f"| | {' | '.join(frame.columns)} |", "|---|" + "---:|" * len(frame.columns)]
    lines += [
        f"| {name} | {' | '.join(row)} |"
        for name, row in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    return "\n".join([f"## {dataset.name}", "", *lines])


def main() -> None:
    """Print the tables of the data sets that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--results", help="a folder that mtlkit bench has written")
    arguments = parser.parse_args()
    results = mtlkit.read_results(arguments.results) if arguments.results else None
    for name in arguments.datasets:
        print(table(mtlkit.load_dataset(name), results), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
