"""The columns of some rows of a split, those that rows share included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from mtlkit.data.splits import Bag, Split
from mtlkit.data.types import Schema


@dataclass(frozen=True)
class Columns:
    """What models see of n rows, in packed order.

    Args:
        ids: (n, F).
        dense: (n, D).
        bags: Of each bag feature (n, vocab), the weights of its ids.
    """

    ids: np.ndarray
    dense: np.ndarray
    bags: dict[str, sparse.csr_matrix]


def columns_of(schema: Schema, split: Split, rows: np.ndarray) -> Columns:
    """The columns of some rows (n,)."""
    ids, dense, shared = [split.ids[rows]], [split.dense[rows]], split.shared
    found = {name: (bag, rows) for name, bag in split.bags.items()}
    if shared is not None:
        owners = shared.row[rows]
        ids.append(shared.ids[owners])
        dense.append(shared.dense[owners])
        found |= {name: (bag, owners) for name, bag in shared.bags.items()}
    bags = {
        feature.name: _matrix(*found[feature.name], feature.vocab)
        for feature in schema.of_kind("bag")
    }
    return Columns(np.concatenate(ids, 1), np.concatenate(dense, 1), bags)


def _matrix(bag: Bag, rows: np.ndarray, vocab: int) -> sparse.csr_matrix:
    """(n, vocab) the weights of the ids of some rows."""
    starts = bag.offsets[rows]
    ends = np.concatenate([[0], np.cumsum(bag.offsets[rows + 1] - starts)])
    positions = np.repeat(starts - ends[:-1], np.diff(ends)) + np.arange(ends[-1])
    parts = (bag.weights[positions], bag.values[positions], ends)
    return sparse.csr_matrix(parts, shape=(len(rows), vocab))
