"""The rows of a report as plain values, for ``mtlkit report --json``."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mtlkit.metrics.definitions import METRICS
from mtlkit.report.blocks import Block, RunGroup
from mtlkit.report.frame import Frames, load
from mtlkit.report.statistics import t_interval
from mtlkit.store import ResultStore

SPLITS = ("validation", "test")


@dataclass(frozen=True)
class _Key:
    """What one row is about."""

    split: str
    task: str
    space: str
    metric: str


def rows(store: ResultStore) -> list[dict[str, Any]]:
    """One row a group x split x task x metric.

    ``mean``, ``ci_low`` and ``ci_high`` are None where they are unknown; ``seeds`` counts the
    finished runs that have the number, ``seeds_failed`` those that failed; ``positives`` and
    ``rows`` are of the split and space, None where runs differ; ``derived`` says whether the score
    follows from others, and ``ceiling`` what the planted model of simulated data reaches.
    ``warnings`` holds the sentences of the group's runs, one after the other. A group without a
    finished run has rows for its tasks' primary metrics.
    """
    return rows_of(load(store))


def rows_of(frames: Frames) -> list[dict[str, Any]]:
    """The same, from frames."""
    warnings = _warnings_by_group(frames)
    return [
        row | {"warnings": warnings[group.id]}
        for block in frames.blocks
        for group in block.groups
        for row in _group_rows(frames, block, group)
    ]


def _warnings_by_group(frames: Frames) -> dict[str, str]:
    """Group id to the distinct warnings of its runs, in one text."""
    texts: dict[str, dict[str, None]] = defaultdict(dict)
    for group, warnings in zip(frames.runs["group"], frames.runs["warnings"], strict=True):
        texts[group] |= dict.fromkeys(warnings)
    return {group: "; ".join(distinct) for group, distinct in texts.items()}


def _group_rows(frames: Frames, block: Block, group: RunGroup) -> list[dict[str, Any]]:
    if not group.seeds:
        keys = [_Key("test", task.name, task.space, task.metric) for task in block.tasks]
        return [_row(block, group, key, []) for key in keys]

    in_group = (frames.metrics["block"] == block.id) & (frames.metrics["group"] == group.id)
    columns = ["split", "task", "space", "metric"]
    by_key = frames.metrics[in_group].groupby(columns, sort=False, observed=True)
    group_rows = []
    for names, runs in by_key:
        key = _Key(*map(str, names))
        values = runs.sort_values("seed")["value"].tolist()
        row = _row(block, group, key, values)
        # Runs of one group normally agree on these; where they do not, no number is right.
        for column in ("positives", "rows", "derived"):
            row[column] = _common_value(runs[column])
        group_rows.append(row)
    return sorted(group_rows, key=lambda row: _order(block, row))


def _order(block: Block, row: dict[str, Any]) -> tuple[int, int, int, str]:
    """The sorting key of a row: by split, task and metric, as the lists of these have them."""
    tasks = [task.name for task in block.tasks]
    return (
        _position(row["split"], SPLITS),
        _position(row["task"], tasks),
        _position(row["metric"].partition("@")[0], list(METRICS)),
        row["metric"],
    )


def _position(name: str, names: Sequence[str]) -> int:
    return names.index(name) if name in names else len(names)


def _row(block: Block, group: RunGroup, key: _Key, values: list[float]) -> dict[str, Any]:
    interval = t_interval(values)
    # Only the primary metric on the test split has a ceiling.
    ceilings = {("test", task.name, task.metric): task.ceiling for task in block.tasks}
    ceiling = ceilings.get((key.split, key.task, key.metric), math.nan)
    return {
        "dataset": block.name,
        "protocol": block.protocol,
        "simulated": block.simulated,
        "model": group.model,
        "balancer": group.balancer,
        "group": group.id,
        "split": key.split,
        "task": key.task,
        "space": key.space,
        "metric": key.metric,
        "mean": _or_none(interval.mean),
        "ci_low": _or_none(interval.low),
        "ci_high": _or_none(interval.high),
        "seeds": interval.n,
        "seeds_failed": len(group.failed),
        "positives": None,
        "rows": None,
        "derived": None,
        "ceiling": _or_none(ceiling),
    }


def _common_value(column: pd.Series) -> int | bool | None:
    """The value that all runs have, as JSON has it; None where they differ or it is unknown."""
    values = column.unique()
    if len(values) != 1:
        return None
    value = values[0]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    return None if math.isnan(value) else int(value)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
