"""From the result store to tidy frames: a row a run, and a row a run x split x task x metric."""

from __future__ import annotations

import gc
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mtlkit.errors import UsageError
from mtlkit.metrics.definitions import find_metric, recorded_metric
from mtlkit.records import RunRecord
from mtlkit.report.blocks import Block, block_id, distinct, make_block
from mtlkit.report.curves import Curve
from mtlkit.report.submissions import Board
from mtlkit.spec import flatten
from mtlkit.store import Copy, ResultStore, Unreadable, printable
from mtlkit.studies import Studies

NO_METRICS = {"space", "derived", "capped", "positives", "rows"}
"""What a record says of a score besides its metrics."""

METRIC_COLUMNS = [
    "block",
    "group",
    "seed",
    "split",
    "task",
    "space",
    "derived",
    "capped",
    "positives",
    "rows",
    "metric",
    "value",
]
NAMES = ["block", "group", "split", "task", "space", "metric"]
"""Columns of few distinct texts: as categories they are compared as numbers."""


@dataclass(frozen=True)
class Frames:
    """Everything a report reads."""

    runs: pd.DataFrame  # one row a run, failed ones included
    metrics: pd.DataFrame  # one row a run x split x task x metric; a missing value is NaN
    blocks: tuple[Block, ...]  # the data set blocks in the order of their titles
    unreadable: tuple[Unreadable, ...] = ()  # records that could not be read, with the reasons
    copies: tuple[Copy, ...] = ()  # folders that hold the same run as another one, which counts
    # Blocks of two tasks of a larger one, trained without a reference of their own: they say what
    # its tasks have to do with each other.
    pairs: tuple[Block, ...] = ()
    board: Board | None = None  # who sent the runs, if they are those of a leaderboard


@contextmanager
def garbage_left_alone() -> Iterator[None]:
    """Records, probes and drawings are millions of objects that all stay: to look for garbage among
    them, again and again, takes a fifth of the time of a report.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@garbage_left_alone()
def load(
    store: ResultStore,
    groups: Collection[str] | None = None,
    metric: str | None = None,
    untuned: bool = False,
) -> Frames:
    """Read a store into frames. Trials are left out, and settings that no study chose.

    Args:
        groups: The groups of runs to read; None for all.
        metric: What to compare scores by where it was recorded, such as ``gauc``; None for the
            primary metric of each.
        untuned: Whether runs with the defaults are rows beside the tuned ones.

    Raises:
        UsageError: No run has the metric.
    """
    board = store if isinstance(store, Board) else None
    studies = Studies() if board else Studies.read(store.root, untuned)

    # Runs may share a table only within a block: one data set, one protocol, one list of tasks.
    by_block: dict[str, list[RunRecord]] = defaultdict(list)
    run_rows = []
    metric_rows: list[tuple[Any, ...]] = []
    for record, folder in store.scan():
        if groups is not None and record.group not in groups:
            continue
        if studies.hides(record):
            continue
        block = block_id(record)
        by_block[block].append(record)
        run_rows.append(_run_row(record, block, folder))
        metric_rows += _metric_rows(record, block)
    blocks = [make_block(key, records, studies) for key, records in by_block.items()]
    if metric is not None and blocks:
        blocks = _compared_by(metric, blocks, metric_rows)
    pairs = [block for block in blocks if _is_pair(block, blocks)]
    blocks = distinct([block for block in blocks if block not in pairs])
    blocks = sorted(blocks, key=lambda block: block.title)

    # A store without records has the columns of the metrics all the same.
    metrics = pd.DataFrame(metric_rows, columns=METRIC_COLUMNS)
    metrics = metrics.astype(dict.fromkeys(NAMES, "category"))
    return Frames(
        runs=pd.DataFrame(run_rows),
        metrics=metrics,
        blocks=tuple(blocks),
        unreadable=tuple(sorted([*store.unreadable, *studies.unreadable])),
        copies=tuple(sorted(store.copies)),
        pairs=tuple(pairs),
        board=board,
    )


def _is_pair(block: Block, blocks: list[Block]) -> bool:
    """Whether a block is two tasks of another one, and is compared with its references alone."""
    if len(block.task_names) != 2 or any(group.is_reference for group in block.groups):
        return False
    return any(
        other.data == block.data
        and set(other.task_names) > set(block.task_names)
        and any(group.is_reference for group in other.groups)
        for other in blocks
    )


def _compared_by(
    metric: str, blocks: list[Block], metric_rows: list[tuple[Any, ...]]
) -> list[Block]:
    """The blocks with another metric for the tasks of which it was recorded."""
    # Block and task to the metrics of the test split.
    recorded: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for row in metric_rows:
        values = dict(zip(METRIC_COLUMNS, row, strict=True))
        if values["split"] == "test":
            recorded[values["block"], values["task"]][values["metric"]] = None

    all_recorded = {name for names in recorded.values() for name in names}
    if find_metric(metric, all_recorded) is None:
        listed = ", ".join(sorted(filter(recorded_metric, all_recorded)))
        raise UsageError(
            f"No run was measured by {metric}.",
            f"the runs have {listed}; mtlkit bench --set metrics={metric} measures by another",
        )

    changed = []
    for block in blocks:
        tasks = []
        for task in block.tasks:
            name = find_metric(metric, recorded[block.id, task.name])
            if name is not None and name != task.metric:
                # Only the primary metric of the planted model is known.
                task = replace(task, metric=name, ceiling=math.nan)
            tasks.append(task)
        changed.append(replace(block, tasks=tuple(tasks)))
    return changed


def curves_by_group(frames: Frames, block: Block) -> dict[str, list[Curve]]:
    """Group to the curves of its finished runs, of two evaluation points and more."""
    runs = frames.runs
    finished = runs[(runs["block"] == block.id) & (runs["status"] == "ok")]
    curves: dict[str, list[Curve]] = {}
    for group, curve in zip(finished["group"], finished["curve"], strict=True):
        if len(curve.epochs) > 1:
            curves.setdefault(group, []).append(curve)
    return curves


def number(value: Any) -> float:
    """A float; NaN for None and whatever is no number."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def _run_row(record: RunRecord, block: str, folder: Path) -> dict[str, Any]:
    cost = record.cost
    error = record.error
    # Costs that were not recorded are NaN, so that a column stays numeric.
    return {
        "block": block,
        "group": record.group,
        "seed": record.cell.seed,
        "status": record.status,
        "parameters": number(cost.get("parameters")),
        "flops_per_row": number(cost.get("flops_per_row")),
        "rows_per_second": number(cost.get("train_rows_per_second")),
        "peak_memory_bytes": number(cost.get("peak_memory_bytes")),
        "backward_passes": number(cost.get("backward_passes_per_step")),
        "train_seconds": number(record.timing.get("train_seconds")),
        "error": printable(error.type) if error else "",
        "message": printable(error.message) if error else "",
        "step": error.step if error and error.step is not None else math.nan,
        "warnings": tuple(map(printable, record.warnings)),
        "environment": dict(flatten(record.environment)),
        "folder": folder,  # where its probes are
        "curve": Curve.of(record),
    }


def _metric_rows(record: RunRecord, block: str) -> Iterable[tuple[Any, ...]]:
    """The rows of one run's scores, as METRIC_COLUMNS; none of a run that failed."""
    if not record.ok:
        return

    spaces = {task.get("name"): task.get("space") for task in record.tasks}
    for split, scores in record.metrics.items():
        for task, score in scores.items():
            # What all metrics of a score have in common.
            shared = (
                block,
                record.group,
                record.cell.seed,
                split,
                task,
                score.get("space") or spaces.get(task) or "all rows",
                bool(score.get("derived", False)),
                number(score.get("capped")),
                number(score.get("positives")),
                number(score.get("rows")),
            )
            for metric, value in score.items():
                if metric not in NO_METRICS:
                    yield (*shared, metric, number(value))
