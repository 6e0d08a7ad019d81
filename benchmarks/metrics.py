"""How long the exact metrics take at many rows, beside those that scikit-learn has.

    python benchmarks/metrics.py [--rows 10000000] [--rounds 3]

Scores of rare positives, users of 50 rows. Times are seconds of one thread, the least of some
rounds; every number that scikit-learn has as well is compared with its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from mtlkit.metrics.definitions import read_metric
from mtlkit.metrics.values import TaskRows
from mtlkit.training.metrics import auc

ROWS_OF_A_USER = 50
RATE = 0.03
Value = float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    rows = arguments.rows
    labels = (rng.random(rows) < RATE).astype(np.float32)
    scores = (rng.standard_normal(rows) + 0.4 * labels).astype(np.float32)
    users = rng.integers(0, max(1, rows // ROWS_OF_A_USER), rows)

    def measured(text: str) -> Callable[[], Value]:
        name = read_metric(text)
        return lambda: TaskRows(scores, labels, lambda group: users, {}).metrics([name])[text]

    # What scikit-learn has of the same; within groups it has nothing.
    pairs: dict[str, tuple[Callable[[], Value], Callable[[], Value] | None]] = {
        "auc": (
            lambda: auc(torch.from_numpy(scores), torch.from_numpy(labels)),
            lambda: roc_auc_score(labels, scores),
        ),
        "average_precision": (
            measured("average_precision"),
            lambda: average_precision_score(labels, scores),
        ),
        "f1": (measured("f1"), lambda: f1_score(labels, scores >= 0)),
        "ece": (measured("ece"), None),
        "gauc@user": (measured("gauc@user"), None),
        "ndcg@10@user": (measured("ndcg@10@user"), None),
        "recall@10@user": (measured("recall@10@user"), None),
    }
    print(f"{rows:,} rows\n\n| metric | seconds | scikit-learn | ratio |\n|---|---:|---:|---:|")
    for name, (ours, theirs) in pairs.items():
        seconds, value = least(ours, arguments.rounds)
        if theirs is None:
            print(f"| {name} | {seconds:.2f} | – | – |", flush=True)
            continue
        other_seconds, other_value = least(theirs, arguments.rounds)
        assert value is not None
        assert other_value is not None
        assert abs(value - other_value) <= 1e-10, (name, value, other_value)
        ratio = other_seconds / seconds
        print(f"| {name} | {seconds:.2f} | {other_seconds:.2f} | {ratio:.1f} |", flush=True)


def least(function: Callable[[], Value], rounds: int) -> tuple[float, Value]:
    """The least CPU seconds of some rounds, and the value."""
    seconds = []
    for _ in range(rounds):
        start = time.thread_time()
        value = function()
        seconds.append(time.thread_time() - start)
    return min(seconds), value


if __name__ == "__main__":
    main()
