"""Packed splits: the arrays of a prepared data set. Everything later reads only these."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mtlkit.data.types import Schema

SPLITS = ("train", "validation", "test")
NO_GROUP = np.iinfo(np.int64).min  # the group of rows whose value is missing

# Names of arrays, which stand in files of prepared data and in fingerprints.
_ROW_ARRAYS = ("ids", "dense", "labels", "observed")
_SHARED_ARRAYS = ("row", "ids", "dense")
_BAG_ARRAYS = ("offsets", "values", "weights")
_SHARED, _GROUP, _HIDDEN = "side-", "group-", "hidden-"


@dataclass(frozen=True)
class Bag:
    """Weighted ids of each row: row i owns ``values[offsets[i]:offsets[i + 1]]``."""

    offsets: np.ndarray  # (N + 1,) int64
    values: np.ndarray  # (M,) int32
    weights: np.ndarray  # (M,) float32


@dataclass(frozen=True)
class SharedColumns:
    """Columns that many rows share (a user's, of a session): stored once, each row points there."""

    row: np.ndarray  # (N,) int32: which of the U shared rows belongs to each row of the split
    ids: np.ndarray  # (U, F) int32
    dense: np.ndarray  # (U, D) float32
    # One :class:`Bag` of U rows a ``bag`` feature.
    bags: dict[str, Bag] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """Packed rows. Of each kind, the columns of the row come first and the shared ones after them.

    Args:
        ids: (N, F) int32, one column an ``id`` feature, counted from 0 within its feature.
        dense: (N, D) float32.
        labels: (N, T) float32; regression labels standardised.
        observed: (N, T) bool: where a label exists.
        bags: One :class:`Bag` a ``bag`` feature.
        weight: (N,) float32 row weights, or (N, T) for each task, or None for 1.
        groups: Name (session, user, segment) to (N,) ids, for group metrics.
        hidden: Task to (N,) labels that only a generator knows, for scoring: what would have become
            of the row had it come to the step before. They are no labels to train on, and batches
            do not carry them.
        shared: Columns that rows share, or None.
    """

    ids: np.ndarray
    dense: np.ndarray
    labels: np.ndarray
    observed: np.ndarray
    bags: dict[str, Bag] = field(default_factory=dict)
    weight: np.ndarray | None = None
    groups: dict[str, np.ndarray] = field(default_factory=dict)
    hidden: dict[str, np.ndarray] = field(default_factory=dict)
    shared: SharedColumns | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, columns: Sequence[int]) -> Split:
        """The same rows with some label columns."""
        selection = _as_slice(columns)  # of memory-mapped arrays, a slice copies nothing
        labels, observed = self.labels[:, selection], self.observed[:, selection]
        weight = self.weight
        if weight is not None and weight.ndim > 1:
            weight = weight[:, selection]
        return replace(self, labels=labels, observed=observed, weight=weight)

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays under flat names, as they are hashed and written."""
        arrays = {name: getattr(self, name) for name in _ROW_ARRAYS}
        if self.weight is not None:
            arrays["weight"] = self.weight
        for name, ids in self.groups.items():
            arrays[_GROUP + name] = ids
        for task, labels in self.hidden.items():
            arrays[_HIDDEN + task] = labels
        arrays |= _bag_arrays(self.bags, "bag")
        if self.shared is not None:
            for name in _SHARED_ARRAYS:
                arrays[_SHARED + name] = getattr(self.shared, name)
            arrays |= _bag_arrays(self.shared.bags, f"{_SHARED}bag")
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Split:
        """The inverse of :meth:`arrays`."""
        shared = None
        if f"{_SHARED}row" in arrays:
            columns = {name: arrays[_SHARED + name] for name in _SHARED_ARRAYS}
            shared = SharedColumns(**columns, bags=_bags(arrays, f"{_SHARED}bag"))
        return cls(
            **{name: arrays[name] for name in _ROW_ARRAYS},
            bags=_bags(arrays, "bag"),
            weight=arrays.get("weight"),
            groups=_with_prefix(arrays, _GROUP),
            hidden=_with_prefix(arrays, _HIDDEN),
            shared=shared,
        )

    def positives(self) -> list[int]:
        """How many observed labels of each task are above 0."""
        is_positive = (self.labels > 0) & self.observed  # (N, T)
        return [int(count) for count in is_positive.sum(0)]


def _with_prefix(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with a prefix, under what follows it."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _bag_arrays(bags: dict[str, Bag], prefix: str) -> dict[str, np.ndarray]:
    """The arrays of bags under flat names: ``<prefix>-offsets-<feature>`` and so on."""
    return {
        f"{prefix}-{array}-{feature}": getattr(bag, array)
        for feature, bag in bags.items()
        for array in _BAG_ARRAYS
    }


def _bags(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Bag]:
    """The inverse of :func:`_bag_arrays`."""
    features = _with_prefix(arrays, f"{prefix}-offsets-")
    return {
        feature: Bag(*(arrays[f"{prefix}-{array}-{feature}"] for array in _BAG_ARRAYS))
        for feature in features
    }


def stack_columns(columns: list[np.ndarray], rows: int, dtype: type) -> np.ndarray:
    """(n, C) from C columns (n,), of which there may be none."""
    stacked: np.ndarray = np.empty((rows, len(columns)), dtype)
    for position, column in enumerate(columns):
        stacked[:, position] = column
    return stacked


def _as_slice(columns: Sequence[int]) -> slice | Sequence[int]:
    """The same columns as a slice, if they are evenly spaced and rise."""
    steps = {after - before for before, after in pairwise(columns)}
    step = min(steps, default=1)
    if not columns or len(steps) > 1 or step < 1:
        return columns
    return slice(columns[0], columns[-1] + 1, step)


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
        encoders: How raw rows become these inputs, as values of JSON or a file of them; None where
            that is not known (:mod:`mtlkit.data.table.row_encoders`).
    """

    name: str
    schema: Schema
    splits: dict[str, Split]
    fingerprint: str
    simulated: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    encoders: dict[str, Any] | Path | None = None

    @classmethod
    def from_frame(cls, frame: Any, labels: Any, *, name: str = "frame", **options: Any) -> Dataset:
        """Prepare a table that is in memory, as ``mtlkit bench -d table.parquet`` does a file.

        Args:
            frame: A pandas frame or a pyarrow Table.
            labels: Names of the columns to predict, or a mapping of them to what is known of each.
            name: Of the data set.
            **options: What else the table means, as in the YAML file: ``funnel``, ``split``,
                ``ids``, ``dense``, ``bags``, ``drop``, ``roles`` and so on.

        Raises:
            MtlkitError: An option is wrong, or a column or value is not what the options say.

        Examples:
            >>> dataset = mtlkit.Dataset.from_frame(frame, labels=["click", "buy"], split="time")
            >>> result = mtlkit.fit("mmoe", dataset)
        """
        # By name, for the tables build on this file.
        prepare = importlib.import_module("mtlkit.data.table.prepare")
        spec = importlib.import_module("mtlkit.data.table.spec").TableSpec
        values = {"labels": labels, **options}
        settings = importlib.import_module("mtlkit.settings").validate(spec, values, "table")
        return prepare.encode_frame(frame, settings, name)

    def encoders_as_json(self) -> dict[str, Any] | None:
        """How raw rows become these inputs, read from the file that holds it."""
        if isinstance(self.encoders, Path):
            values: dict[str, Any] = json.loads(self.encoders.read_text(encoding="utf-8"))
            return values
        return self.encoders

    def select(self, tasks: Sequence[str]) -> Dataset:
        """The same data with some of its tasks."""
        schema = self.schema.select(tasks)
        columns = [self.schema.task_names.index(name) for name in tasks]
        splits = {name: split.select(columns) for name, split in self.splits.items()}
        return replace(self, schema=schema, splits=splits)


def fingerprint(schema: Schema, splits: dict[str, Split]) -> str:
    """The sha256 of a schema and of all arrays."""
    sha = hashlib.sha256(schema.model_dump_json().encode())
    for name in SPLITS:
        for key, array in sorted(splits[name].arrays().items()):
            sha.update(f"{name}/{key}/{array.dtype}/{array.shape}".encode())
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
