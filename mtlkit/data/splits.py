"""Packed splits: what a prepared data set is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from mtlkit.data.types import Schema

SPLITS = ("train", "validation", "test")


BAG_PARTS = ("offsets", "values", "weights")


@dataclass(frozen=True)
class Bag:
    """Weighted ids of each row: row i owns ``values[offsets[i]:offsets[i + 1]]``.

    Args:
        offsets: (N + 1,) int64.
        values: (M,) int32.
        weights: (M,) float32.
    """

    offsets: np.ndarray
    values: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class SharedColumns:
    """Columns that many rows share (a user's, of a session): stored once, and pointed at by each
    row.

    Args:
        row: (N,) int32: which of the U shared rows belongs to each row of the split.
        ids: (U, F) int32.
        dense: (U, D) float32.
        bags: One :class:`Bag` of U rows a ``bag`` feature.
    """

    row: np.ndarray
    ids: np.ndarray
    dense: np.ndarray
    bags: dict[str, Bag] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """Packed rows. Of each kind, a row's own columns come first and those of ``side`` after them.

    Args:
        ids: (N, F) int32, one column an ``id`` feature, counted from 0 within its feature.
        dense: (N, D) float32.
        labels: (N, T) float32; regression labels standardised.
        observed: (N, T) bool: where a label exists.
        bags: One :class:`Bag` a ``bag`` feature.
        weight: (N,) float32 row weights, or None for 1.
        groups: Name (session, user, segment) to (N,) ids, for group metrics.
        hidden: Task to (N,) labels that only a generator knows, for scoring: what would have become
            of the row had it come to the step before. They are no labels to train on, and batches
            do not carry them.
        side: Columns that rows share, or None.
    """

    ids: np.ndarray
    dense: np.ndarray
    labels: np.ndarray
    observed: np.ndarray
    bags: dict[str, Bag] = field(default_factory=dict)
    weight: np.ndarray | None = None
    groups: dict[str, np.ndarray] = field(default_factory=dict)
    hidden: dict[str, np.ndarray] = field(default_factory=dict)
    side: SharedColumns | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, columns: Sequence[int]) -> Split:
        """The same rows with some label columns."""
        where = _as_slice(columns)  # no copy of what is memory-mapped
        return replace(self, labels=self.labels[:, where], observed=self.observed[:, where])

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays under flat names, as they are hashed and written."""
        arrays = {
            "ids": self.ids,
            "dense": self.dense,
            "labels": self.labels,
            "observed": self.observed,
        }
        if self.weight is not None:
            arrays["weight"] = self.weight
        arrays |= {f"group-{key}": value for key, value in self.groups.items()}
        arrays |= {f"hidden-{key}": value for key, value in self.hidden.items()}
        for key, bag in self.bags.items():
            arrays |= {f"bag-{part}-{key}": getattr(bag, part) for part in BAG_PARTS}
        if self.side is not None:
            arrays |= {f"side-{part}": getattr(self.side, part) for part in ("row", "ids", "dense")}
            for key, bag in self.side.bags.items():
                arrays |= {f"side-bag-{part}-{key}": getattr(bag, part) for part in BAG_PARTS}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Split:
        """The inverse of :meth:`arrays`."""
        groups = {
            key.removeprefix("group-"): value
            for key, value in arrays.items()
            if key.startswith("group-")
        }
        hidden = {
            key.removeprefix("hidden-"): value
            for key, value in arrays.items()
            if key.startswith("hidden-")
        }
        side = None
        if "side-row" in arrays:
            row, ids, dense = (arrays[f"side-{part}"] for part in ("row", "ids", "dense"))
            side = SharedColumns(row, ids, dense, _bags(arrays, "side-bag"))
        return cls(
            **{key: arrays[key] for key in ("ids", "dense", "labels", "observed")},
            bags=_bags(arrays, "bag"),
            weight=arrays.get("weight"),
            groups=groups,
            hidden=hidden,
            side=side,
        )

    def positives(self) -> list[int]:
        """Count of observed labels above 0, a task."""
        return [
            int(((self.labels[:, t] > 0) & self.observed[:, t]).sum())
            for t in range(self.labels.shape[1])
        ]


def _as_slice(columns: Sequence[int]) -> slice | Sequence[int]:
    """The same columns as a slice, if they are evenly spaced and rise."""
    steps = {after - before for before, after in pairwise(columns)}
    if not columns or len(steps) > 1 or min(steps, default=1) < 1:
        return columns
    return slice(columns[0], columns[-1] + 1, min(steps, default=1))


def _bags(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Bag]:
    first = f"{prefix}-offsets-"
    names = [key.removeprefix(first) for key in arrays if key.startswith(first)]
    return {name: Bag(*(arrays[f"{prefix}-{part}-{name}"] for part in BAG_PARTS)) for name in names}


@dataclass(frozen=True)
class Dataset:
    """A prepared data set: what training reads.

    Args:
        name: Its registry name.
        schema: Columns and tasks.
        splits: ``train``, ``validation`` and ``test``.
        fingerprint: sha256 of schema and contents.
        simulated: Whether the data is generated; every table says so.
        details: What preparation noted, for cards: counts, sources, planted ceilings.
    """

    name: str
    schema: Schema
    splits: dict[str, Split]
    fingerprint: str
    simulated: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    def select(self, tasks: Sequence[str]) -> Dataset:
        """The same data with some of its tasks."""
        schema = self.schema.select(tasks)
        columns = [self.schema.task_names.index(name) for name in tasks]
        return replace(
            self,
            schema=schema,
            splits={name: split.select(columns) for name, split in self.splits.items()},
        )


def fingerprint(schema: Schema, splits: dict[str, Split]) -> str:
    """The sha256 of a schema and of all arrays."""
    sha = hashlib.sha256(schema.model_dump_json().encode())
    for name in SPLITS:
        split = splits[name]
        arrays = split.arrays()
        for key, array in sorted(arrays.items()):
            sha.update(f"{name}/{key}/{array.dtype}/{array.shape}".encode())
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
