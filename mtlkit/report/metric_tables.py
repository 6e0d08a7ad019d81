"""All that was measured of each score: a table of its metrics, and one by segment of the rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mtlkit.metrics.definitions import METRICS, MetricName, recorded_metric, segment_label
from mtlkit.report.blocks import TaskInfo
from mtlkit.report.frame import Frames
from mtlkit.report.statistics import Interval, t_interval
from mtlkit.report.summary import SPLIT, Summary
from mtlkit.report.tables import NA, NOTES, Table, TableCell, csv_interval, csv_key, spread

Means = dict[str, dict[str, Interval]]  # metric to group of runs to mean and interval


@dataclass(frozen=True)
class MetricTable:
    """A table with its heading, and the same as plain rows."""

    heading: str
    table: Table
    csv_rows: list[dict[str, object]]


def metric_tables(frames: Frames, summary: Summary) -> Iterator[MetricTable]:
    """A table a score of all metrics on the test split, and one of its segments if there are any.

    A score of which only the metric of the table of results was recorded has none.
    """
    metrics = frames.metrics
    in_block = (metrics["block"] == summary.block.id) & (metrics["split"] == SPLIT)
    by_task = dict(iter(metrics[in_block].groupby("task", observed=True)))
    for task in summary.block.tasks:
        if task.name not in by_task:
            continue
        means: Means = {}
        columns = ["metric", "group"]
        for (text, group), runs in by_task[task.name].groupby(columns, observed=True):
            means.setdefault(str(text), {})[str(group)] = t_interval(runs["value"].tolist())

        read = [recorded_metric(text) for text in means]
        names = sorted((name for name in read if name is not None), key=_order)
        whole = [name for name in names if name.segment is None]
        segments = [name for name in names if name.segment is not None]
        if len(whole) > 1:
            yield _table(summary, task, whole, means, task.title)
        if segments:
            yield _table(summary, task, segments, means, f"{task.title} by segment")


def _order(name: MetricName) -> tuple[str, int, str]:
    """By segment, then as the list of metrics has them."""
    return name.segment or "", list(METRICS).index(name.name), str(name)


def _table(
    summary: Summary, task: TaskInfo, names: list[MetricName], means: Means, heading: str
) -> MetricTable:
    """The rows of a summary, measured by some metrics."""
    block = summary.block
    methods = [row.group.id for row in summary.finished]
    best = {name: _best(name, means[str(name)], methods) for name in names}
    lines, csv_rows = [], []
    for row in (row for row in summary.all_rows if row.group.seeds):
        group = row.group
        cells = [TableCell(group.model), TableCell(group.balancer if group.has_balancer else "–")]
        for name in names:
            mean = means[str(name)].get(group.id, Interval())
            text = spread(mean, name.metric.decimals) if mean.known else NA
            cells.append(TableCell(text, group.id == best[name]))
            csv_rows.append(
                {
                    **csv_key(block, group),
                    "group": group.id,
                    "task": task.name,
                    "space": task.space,
                    "metric": str(name),
                    **csv_interval(mean),
                    "seeds": mean.n,
                }
            )
        lines.append(tuple(cells))

    columns = ("model", "balancer", *(name.label for name in names))
    title = f"{block.label}, {heading}"
    notes = (NOTES["interval"], NOTES["best"], *_notes(names, means))
    return MetricTable(heading, Table(title, columns, tuple(lines), notes), csv_rows)


def _best(name: MetricName, means: dict[str, Interval], methods: list[str]) -> str:
    """Of the methods, the group of the best mean; empty without any."""
    known = {group: means[group].mean for group in methods if group in means}
    known = {group: mean for group, mean in known.items() if not math.isnan(mean)}
    return max(known, key=lambda group: name.metric.goodness(known[group]), default="")


def _notes(names: list[MetricName], means: Means) -> Iterator[str]:
    """Which direction is better, and how many rows a segment has."""
    by_direction: dict[str, dict[str, None]] = {}
    for name in names:
        by_direction.setdefault(name.metric.direction, {})[name.metric.label] = None
    directions = [f"{', '.join(labels)}: {words}" for words, labels in by_direction.items()]
    yield "; ".join(directions) + "."

    counts = []
    for segment in dict.fromkeys(name.segment for name in names if name.segment):
        found = [
            next(iter(means.get(f"{what}@{segment}", {}).values()), Interval())
            for what in ("rows", "positives")
        ]
        rows, positives = (mean.mean for mean in found)
        with_positives = f", {positives:,.0f} of them positive" if found[1].known else ""
        counts.append(f"{segment_label(segment)} {rows:,.0f} rows{with_positives}")
    if counts:
        yield f"Test rows: {'; '.join(counts)}."
