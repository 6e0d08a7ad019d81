"""Small data in memory: schemas, data sets with labels that can be learnt, and single batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mtlkit.data.splits import SPLITS, Bag, Dataset, Split, fingerprint
from mtlkit.data.types import Feature, Schema, Task

if TYPE_CHECKING:
    from mtlkit.models._types import Batch

ROLES = ("user", "item", "domain")
LOSS = {"binary": "bce", "regression": "mse", "multiclass": "cross_entropy"}


def toy_schema(
    tasks: int = 2,
    kinds: Sequence[str] = ("binary",),
    ids: int = 3,
    dense: int = 2,
    bags: int = 0,
    vocab: int = 7,
) -> Schema:
    """A schema with tasks t1, t2, ... of the given kinds in turn, and features id1.., bag1..,
    dense1...

    The first three id features have the roles user, item and domain.

    Args:
        tasks: Number of tasks.
        kinds: Their kinds, repeated as often as needed.
        ids: Number of id features.
        dense: Number of dense features.
        bags: Number of bag features.
        vocab: Ids of the first id or bag feature; the next has one more, and so on.
    """
    features = [
        Feature(name=f"id{i + 1}", vocab=vocab + i, role=dict(enumerate(ROLES)).get(i))
        for i in range(ids)
    ]
    features += [Feature(name=f"bag{i + 1}", kind="bag", vocab=vocab + i) for i in range(bags)]
    features += [Feature(name=f"dense{i + 1}", kind="dense") for i in range(dense)]
    made = []
    for t in range(tasks):
        kind = kinds[t % len(kinds)]
        extra = {"regression": {"scale": (2.0, 3.0)}, "multiclass": {"classes": 3}}.get(kind, {})
        made.append(Task(name=f"t{t + 1}", kind=kind, losses=(LOSS[kind],), **extra))
    return Schema(features=tuple(features), tasks=tuple(made))


def toy_split(schema: Schema, rows: int, seed: int = 0, missing: float = 0.0) -> Split:
    """Rows whose labels follow from the features: part of the rule is common to all tasks, part is
    a task's own.

    The rule is the same for every seed, so splits of different seeds are drawn from one
    distribution.
    """
    rng, rule = np.random.default_rng([seed, 1]), np.random.default_rng(0)
    ids = np.stack(
        [rng.integers(0, f.vocab, rows) for f in schema.of_kind("id")] or [np.zeros((rows, 0))], -1
    )
    ids = ids.reshape(rows, -1).astype(np.int32)
    dense = rng.standard_normal((rows, len(schema.of_kind("dense")))).astype(np.float32)
    bags = {feature.name: _bag(rng, rows, feature.vocab) for feature in schema.of_kind("bag")}
    classes = max(task.outputs for task in schema.tasks)
    shape = (1 + len(schema.tasks), classes)  # the common part comes first
    total = np.zeros((rows, *shape))
    for column, feature in enumerate(schema.of_kind("id")):
        total += rule.standard_normal((feature.vocab, *shape))[ids[:, column]]
    for feature in schema.of_kind("bag"):
        bag, effect = bags[feature.name], rule.standard_normal((feature.vocab, *shape))
        owner = np.repeat(np.arange(rows), np.diff(bag.offsets))
        np.add.at(total, owner, effect[bag.values] * bag.weights[:, None, None])
    total += np.einsum("bd,dtc->btc", dense, rule.standard_normal((dense.shape[1], *shape)))
    scores = total[:, :1] + total[:, 1:]  # (B, T, C)
    scores /= np.sqrt(2 * max(1, len(schema.features)))
    labels = [_label(task, scores[:, t]) for t, task in enumerate(schema.tasks)]
    for before, step in pairwise(map(schema.task_names.index, schema.funnel or ())):
        labels[step] = labels[step] & labels[before]  # only who clicks can buy
    observed = rng.random((rows, len(schema.tasks))) >= missing
    return Split(ids, dense, np.stack(labels, -1).astype(np.float32), observed, bags)


def _label(task: Task, score: np.ndarray) -> np.ndarray:
    if task.kind == "binary":
        return score[:, 0] > 0
    return score[:, 0] if task.kind == "regression" else score[:, : task.classes].argmax(1)


def _bag(rng: np.random.Generator, rows: int, vocab: int) -> Bag:
    lengths = rng.integers(0, 4, rows)
    count = int(lengths.sum())
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    return Bag(
        offsets,
        rng.integers(0, vocab, count).astype(np.int32),
        rng.random(count).astype(np.float32) + 0.5,
    )


def toy_dataset(schema: Schema, rows: int = 600, missing: float = 0.0, seed: int = 0) -> Dataset:
    """Splits of ``rows``, and half as many for validation and test; ``missing`` is the share of
    labels left out.
    """
    sizes = dict(zip(SPLITS, (rows, rows // 2, rows // 2), strict=True))
    splits = {
        name: toy_split(schema, n, 10 * seed + i, missing)
        for i, (name, n) in enumerate(sizes.items())
    }
    return Dataset("toy", schema, splits, fingerprint(schema, splits), simulated=True)


def toy_batch(schema: Schema, rows: int = 64, seed: int = 0, missing: float = 0.0) -> Batch:
    """Rows as a batch on the CPU; ``observed`` is None when no label is missing."""
    import torch

    from mtlkit.training.batches import DeviceSplit

    return DeviceSplit.load(toy_split(schema, rows, seed, missing), torch.device("cpu")).columns
