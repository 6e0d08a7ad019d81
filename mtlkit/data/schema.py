"""What a prepared data set is: tasks, features, packed splits. Everything later reads only this."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from mtlkit.errors import UsageError

SPLITS = ("train", "validation", "test")
BAG_PARTS = ("offsets", "values", "weights")


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Task(_Value):
    """One label column.

    Args:
        name: Used in tables and file names.
        kind: ``binary`` (0/1), ``regression`` (standardised on train) or ``multiclass`` (0..classes-1).
        classes: Number of classes of a multiclass task.
        losses: Names of losses, added up.
        weight: Weight in a user-weighted mean.
        given: Name of the binary task without whose positive this label does not exist.
        scale: ``(mean, std)`` on train of a regression target; predictions are scored on the original scale.
        description: For cards and reports.
    """

    name: str
    kind: Literal["binary", "regression", "multiclass"] = "binary"
    classes: int = 2
    losses: tuple[str, ...] = ("bce",)
    weight: float = 1.0
    given: str | None = None
    scale: tuple[float, float] | None = None
    description: str = ""

    @property
    def outputs(self) -> int:
        """Width of the task's logits."""
        return self.classes if self.kind == "multiclass" else 1


class Feature(_Value):
    """One input column.

    Args:
        name: Column name.
        kind: ``id`` (one id a row), ``bag`` (weighted ids a row) or ``dense`` (a float).
        vocab: Number of ids, 0 being unknown.
        dim: Embedding width, if another than the model's.
        role: Part it plays for models that ask.
    """

    name: str
    kind: Literal["id", "bag", "dense"] = "id"
    vocab: int = 0
    dim: int | None = None
    role: Literal["user", "item", "domain", "context", "session"] | None = None


class Schema(_Value):
    """Columns of a data set: the order of ``features`` of a kind is the order of the packed columns."""

    features: tuple[Feature, ...]
    tasks: tuple[Task, ...]
    funnel: tuple[str, ...] | None = None

    def of_kind(self, kind: Literal["id", "bag", "dense"]) -> tuple[Feature, ...]:
        """The features of one kind, in packed order."""
        return tuple(feature for feature in self.features if feature.kind == kind)

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    def select(self, tasks: Sequence[str]) -> Schema:
        """The same data with some of its tasks, in the order given.

        Raises:
            UsageError: A task is unknown or named twice.
        """
        by_name = {task.name: task for task in self.tasks}
        for name in tasks:
            if name not in by_name:
                raise UsageError(
                    f"There is no task {name!r} in this data set.", f"its tasks are {', '.join(self.task_names)}"
                )
        if len(set(tasks)) != len(tasks):
            raise UsageError("A task is named twice.", f"its tasks are {', '.join(self.task_names)}")
        funnel = self.funnel if self.funnel and set(self.funnel) <= set(tasks) else None
        return self.model_copy(update={"tasks": tuple(by_name[name] for name in tasks), "funnel": funnel})


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
class Split:
    """Packed rows.

    Args:
        ids: (N, F) int32, one column an ``id`` feature, counted from 0 within its feature.
        dense: (N, D) float32.
        labels: (N, T) float32; regression labels standardised.
        observed: (N, T) bool: where a label exists.
        bags: One :class:`Bag` a ``bag`` feature.
        weight: (N,) float32 row weights, or None for 1.
        groups: Name (session, user, segment) to (N,) ids, for group metrics.
    """

    ids: np.ndarray
    dense: np.ndarray
    labels: np.ndarray
    observed: np.ndarray
    bags: dict[str, Bag] = field(default_factory=dict)
    weight: np.ndarray | None = None
    groups: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, columns: Sequence[int]) -> Split:
        """The same rows with some label columns."""
        return replace(self, labels=self.labels[:, columns], observed=self.observed[:, columns])

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays under flat names, as they are hashed and written."""
        arrays = {"ids": self.ids, "dense": self.dense, "labels": self.labels, "observed": self.observed}
        if self.weight is not None:
            arrays["weight"] = self.weight
        arrays |= {f"group-{key}": value for key, value in self.groups.items()}
        for key, bag in self.bags.items():
            arrays |= {f"bag-{part}-{key}": getattr(bag, part) for part in BAG_PARTS}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Split:
        """The inverse of :meth:`arrays`."""
        groups = {key.removeprefix("group-"): value for key, value in arrays.items() if key.startswith("group-")}
        names = [key.removeprefix("bag-offsets-") for key in arrays if key.startswith("bag-offsets-")]
        bags = {name: Bag(*(arrays[f"bag-{part}-{name}"] for part in BAG_PARTS)) for name in names}
        return cls(
            **{key: arrays[key] for key in ("ids", "dense", "labels", "observed")},
            bags=bags,
            weight=arrays.get("weight"),
            groups=groups,
        )

    def positives(self) -> list[int]:
        """Count of observed labels above 0, a task."""
        return [int(((self.labels[:, t] > 0) & self.observed[:, t]).sum()) for t in range(self.labels.shape[1])]


@dataclass(frozen=True)
class Dataset:
    """A prepared data set: what training reads.

    Args:
        name: Its registry name.
        schema: Columns and tasks.
        splits: ``train``, ``validation`` and ``test``.
        fingerprint: sha256 of schema and contents.
        simulated: Whether the data is generated; every table says so.
    """

    name: str
    schema: Schema
    splits: dict[str, Split]
    fingerprint: str
    simulated: bool = False

    def select(self, tasks: Sequence[str]) -> Dataset:
        """The same data with some of its tasks."""
        schema = self.schema.select(tasks)
        columns = [self.schema.task_names.index(name) for name in tasks]
        return replace(self, schema=schema, splits={name: split.select(columns) for name, split in self.splits.items()})


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
