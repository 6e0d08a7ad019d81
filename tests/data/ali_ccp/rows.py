"""Splits with the columns of their users put beside each row, as one would read them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from mtlkit.data.splits import Bag


def joined(split) -> SimpleNamespace:
    """The arrays of a split, a row's own columns before those of its user."""
    shared, rows = split.shared, range(len(split))
    bags = dict(split.bags)
    for name, bag in shared.bags.items():
        parts = [slice(bag.offsets[u], bag.offsets[u + 1]) for u in shared.row]
        offsets = np.cumsum([0] + [part.stop - part.start for part in parts])
        values, weights = (
            np.concatenate([array[part] for part in parts]) for array in (bag.values, bag.weights)
        )
        bags[name] = Bag(offsets, values, weights)
    return SimpleNamespace(
        ids=np.array([[*split.ids[r], *shared.ids[shared.row[r]]] for r in rows]),
        dense=np.array([[*split.dense[r], *shared.dense[shared.row[r]]] for r in rows], np.float32),
        labels=split.labels,
        observed=split.observed,
        groups=split.groups,
        bags=bags,
    )
