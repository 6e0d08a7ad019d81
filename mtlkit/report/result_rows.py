"""The rows of a report as plain values, for ``mtlkit report --json``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mtlkit.records import METRICS
from mtlkit.report.blocks import Block, RunGroup
from mtlkit.report.frame import Frames, load
from mtlkit.report.statistics import t_interval
from mtlkit.store import ResultStore

SPLITS = ("validation", "test")


def rows(store: ResultStore) -> list[dict[str, Any]]:
    """One row a group x split x task x metric.

    ``mean``, ``ci_low`` and ``ci_high`` are None where they are unknown; ``seeds`` counts the
    finished runs that have the number, ``seeds_failed`` those that failed; ``positives`` and
    ``rows`` are of the split and space, None where runs differ; ``derived`` says whether the score
    follows from others, and ``ceiling`` what the planted model of simulated data reaches. A group
    without a finished run has rows for its tasks' primary metrics.
    """
    return rows_of(load(store))


def rows_of(frames: Frames) -> list[dict[str, Any]]:
    """The same, from frames."""
    return [
        row
        for block in frames.blocks
        for group in block.groups
        for row in _group(frames, block, group)
    ]


def _group(frames: Frames, block: Block, group: RunGroup) -> list[dict[str, Any]]:
    if not group.seeds:
        return [
            _row(block, group, ("test", task.name, task.space, task.metric), [])
            for task in block.tasks
        ]
    own = frames.metrics[
        (frames.metrics["block"] == block.id) & (frames.metrics["group"] == group.id)
    ]
    order = {name: place for place, name in enumerate(METRICS)}
    found = []
    for key, part in own.groupby(["split", "task", "space", "metric"], sort=False):
        split, task, space, metric = map(str, key)
        values = part.sort_values("seed")["value"].tolist()
        counts = {name: part[name].unique() for name in ("positives", "rows", "derived")}
        row = _row(block, group, (split, task, space, metric), values)
        row |= {
            name: _count(found[0]) if len(found) == 1 else None for name, found in counts.items()
        }
        found.append(((SPLITS.index(split) if split in SPLITS else 2, order.get(metric, 99)), row))
    tasks = {task.name: place for place, task in enumerate(block.tasks)}
    found.sort(
        key=lambda pair: (pair[0][0], tasks.get(pair[1]["task"], 99), pair[0][1], pair[1]["metric"])
    )
    return [row for _, row in found]


def _row(
    block: Block, group: RunGroup, of: tuple[str, str, str, str], values: list[float]
) -> dict[str, Any]:
    split, task, space, metric = of
    interval = t_interval(values)
    ceilings = {("test", info.name, info.metric): info.ceiling for info in block.tasks}
    return {
        "dataset": block.name,
        "protocol": block.protocol,
        "simulated": block.simulated,
        "model": group.model,
        "balancer": group.balancer,
        "group": group.id,
        "split": split,
        "task": task,
        "space": space,
        "metric": metric,
        "mean": _or_none(interval.mean),
        "ci_low": _or_none(interval.low),
        "ci_high": _or_none(interval.high),
        "seeds": interval.n,
        "seeds_failed": len(group.failed),
        "positives": None,
        "rows": None,
        "derived": None,
        "ceiling": _or_none(ceilings.get((split, task, metric), math.nan)),
    }


def _count(value: Any) -> int | bool | None:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    return None if math.isnan(value) else int(value)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
