"""From the result store to tidy frames: a row a run, and a row a run x split x task x metric."""

from __future__ import annotations

import gc
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mtlkit.records import RunRecord
from mtlkit.report.blocks import Block, block_id, distinct, flatten, make_block
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
    """Everything a report reads.

    Args:
        runs: One row a run, failed ones included.
        metrics: One row a run x split x task x metric; a missing value is NaN.
        blocks: The data set blocks in the order of their titles.
        unreadable: Records that could not be read, with the reasons.
        copies: Folders that hold the same run as another one, which counts.
    """

    runs: pd.DataFrame
    metrics: pd.DataFrame
    blocks: tuple[Block, ...]
    unreadable: tuple[Unreadable, ...] = ()
    copies: tuple[Copy, ...] = ()


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
    store: ResultStore, groups: Collection[str] | None = None, untuned: bool = False
) -> Frames:
    """Read a store into frames; of some groups of runs only, if given.

    Trials are left out, and what a study did not choose. ``untuned`` shows runs with the defaults.
    """
    studies = Studies.read(store.root, untuned)
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
    blocks = distinct([make_block(key, records, studies) for key, records in by_block.items()])
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
    )


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
