"""Plain sentences about a block: what is best on each task and what the seeds can tell."""

from __future__ import annotations

import math
from collections import Counter

from mtlkit.report.blocks import TaskInfo
from mtlkit.report.summary import Row, Summary
from mtlkit.report.tables import are, fixed, percent, spread

MANY = 10
"""From this number of compared rows on, the reader is warned of differences by chance."""


def sentences(summary: Summary) -> list[str]:
    """The findings of one block: a few sentences for each task, and some for all together."""
    if not summary.finished:
        return ["No run of this data set has finished, so there is nothing to compare."]
    by_task = [
        f"{_best(summary, task)}{_ceiling(summary, task)}"
        for task in summary.block.tasks
        if task.name in summary.best
    ]
    return [*by_task, *_overall(summary), *_caution(summary)]


def _best(summary: Summary, task: TaskInfo) -> str:
    """Which row is best on a task, and whether that can be told from the other rows."""
    best = summary.row(summary.best[task.name])
    metric = best.metric[task.name]
    start = (
        f"{task.title}: the best mean {task.reading.label} ({task.space}) is "
        f"{spread(metric, task.reading.decimals)}, by {best.group.label}"
    )

    # Without other rows, or without intervals, there is nothing to compare.
    others = [row for row in summary.finished if row is not best and row.metric[task.name].known]
    if not others:
        return f"{start}; there is no other row to compare it with."
    if not metric.bounded:
        return (
            f"{start}. One seed gives no interval, so no row can be shown to be better than "
            "another."
        )

    near = sum(not summary.worse(task, row) for row in others)
    if near:
        start += f"; the intervals of {near} of the {len(others)} other rows overlap its own"
    else:
        start += ", clear of all others"
    return f"{start}."


def _ceiling(summary: Summary, task: TaskInfo) -> str:
    """How near the best row comes to the planted model of simulated data; empty for real data."""
    share = summary.recovered(task)
    if math.isnan(share):
        return ""
    reading = task.reading
    useless = f" of {fixed(reading.floor, 1)}" if reading.floor else ""
    return (
        " The planted model, which no model passes but by luck, reaches "
        f"{fixed(task.ceiling, reading.decimals)}: of its distance from a useless model's "
        f"{reading.label}{useless}, the best row recovers {percent(share)}."
    )


def _overall(summary: Summary) -> list[str]:
    """How many rows are better and worse than single-task on all tasks together."""
    words = Counter(row.word for row in _compared(summary))
    if not words:
        return []
    worse, equivalent = words["worse"], words["equivalent"]
    return [
        f"All tasks together (Δm): {words['better']} of {words.total()} rows are better than "
        f"single-task, {worse} {are(worse)} worse, {equivalent} "
        f"{are(equivalent)} equivalent to it within "
        f"± {100 * summary.margin:g} %, and {words['not told apart']} cannot be told apart from it."
    ]


def _caution(summary: Summary) -> list[str]:
    """With many rows, some differ by chance alone: 5 % of 95 % intervals miss the truth."""
    compared = len(_compared(summary))
    if compared < MANY:
        return []
    by_chance = max(1, round(compared * 0.05))
    return [
        f"Caution: of {compared} rows about {by_chance} would differ by more than their interval "
        "by chance alone, and the best of many means is flattered by luck: confirm a winner with "
        "fresh seeds."
    ]


def _compared(summary: Summary) -> list[Row]:
    """The rows whose gain over single-task has an interval."""
    return [row for row in summary.finished if row.gain.bounded]
