"""What a prepared data set is: tasks, features, packed splits. Everything later reads only this."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from mtlkit.errors import UsageError

SPLITS = ("train", "validation", "test")
ALL_ROWS = "all rows"
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


class Score(_Value):
    """A quantity that every model is measured by.

    Args:
        name: In metrics and files; a task's name when it is the task on all rows.
        task: The task whose label it is compared with.
        space: The rows that count.
        label: In tables and figures.
        given: The step of the funnel whose positives are the space, or None.
        hidden: Whether it needs labels that only a generator knows.
    """

    name: str
    task: str
    space: str = ALL_ROWS
    label: str
    given: str | None = None
    hidden: bool = False


def rows_with(step: str) -> str:
    """The name of the space of the rows on which a step was taken."""
    return "clicked rows" if step == "click" else f"rows with {step}"


class Schema(_Value):
    """Columns of a data set: the order of ``features`` of a kind is the order of the packed columns.

    Args:
        features: Inputs.
        tasks: Labels.
        funnel: Binary tasks in the order in which a user comes to them, each positive only where the one before is.
    """

    features: tuple[Feature, ...]
    tasks: tuple[Task, ...]
    funnel: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _funnel_of_binary_tasks(self) -> Schema:
        steps = self.funnel or ()
        kinds = {task.name: task.kind for task in self.tasks}
        if self.funnel is not None and (len(steps) < 2 or len(set(steps)) < len(steps)):
            raise ValueError("a funnel needs two different steps or more")
        for step in steps:
            if kinds.get(step) != "binary":
                raise ValueError(f"the step {step!r} of the funnel is no binary task")
        return self

    def before(self, task: str) -> tuple[str, ...]:
        """The steps of the funnel that come before a task, in order."""
        return self.funnel[: self.funnel.index(task)] if self.funnel and task in self.funnel else ()

    def score(self, task: str, space: str | None = None) -> str:
        """The name of the score of a task in a space."""
        before = self.before(task)
        return f"{task}-given-{before[-1]}" if before and space not in (None, ALL_ROWS) else task

    def scores(self) -> tuple[Score, ...]:
        """What every model is measured by: each task, and each later step of the funnel given the one before.

        On click -> purchase these are CTR and CTCVR on all rows and CVR on clicked rows.
        """
        usual = self.funnel is not None and len(self.funnel) == 2 and self.funnel[0] == "click"
        found = []
        for task in self.tasks:
            before = self.before(task.name)
            usual_label = ("CTCVR" if before else "CTR") if usual and task.name in (self.funnel or ()) else task.name
            space = rows_with(task.given) if task.given and not before else ALL_ROWS
            found.append(Score(name=task.name, task=task.name, space=space, label=usual_label))
            if before:
                step = before[-1]
                name = f"{task.name}-given-{step}"
                label = "CVR" if usual else f"{task.name} given {step}"
                found.append(Score(name=name, task=task.name, space=rows_with(step), label=label, given=step))
                found.append(
                    Score(
                        name=f"{task.name}-if-{step}",
                        task=task.name,
                        space=f"{ALL_ROWS}, as if {'clicked' if step == 'click' else step}",
                        label="all-rows CVR" if usual else f"{task.name} if {step}",
                        given=step,
                        hidden=True,
                    )
                )
        return tuple(found)

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
        kept = tuple(step for step in self.funnel or () if step in tasks)
        funnel = kept if len(kept) > 1 else None
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
class Side:
    """Columns that many rows share (a user's, of a session): stored once, and pointed at by each row.

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
        hidden: Task to (N,) labels that only a generator knows, for scoring: what would have become of the row had it
            come to the step before. They are no labels to train on, and batches do not carry them.
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
    side: Side | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, columns: Sequence[int]) -> Split:
        """The same rows with some label columns."""
        where = _as_slice(columns)  # no copy of what is memory-mapped
        return replace(self, labels=self.labels[:, where], observed=self.observed[:, where])

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays under flat names, as they are hashed and written."""
        arrays = {"ids": self.ids, "dense": self.dense, "labels": self.labels, "observed": self.observed}
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
        groups = {key.removeprefix("group-"): value for key, value in arrays.items() if key.startswith("group-")}
        hidden = {key.removeprefix("hidden-"): value for key, value in arrays.items() if key.startswith("hidden-")}
        side = None
        if "side-row" in arrays:
            row, ids, dense = (arrays[f"side-{part}"] for part in ("row", "ids", "dense"))
            side = Side(row, ids, dense, _bags(arrays, "side-bag"))
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
        return [int(((self.labels[:, t] > 0) & self.observed[:, t]).sum()) for t in range(self.labels.shape[1])]


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
