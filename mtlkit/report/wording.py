"""Plain sentences about a block: what is best on each task and what the seeds can tell."""

from __future__ import annotations

import math

from mtlkit.report.blocks import TaskInfo
from mtlkit.report.summary import Row, Summary
from mtlkit.report.tables import fixed, percent, spread


def sentences(summary: Summary) -> list[str]:
    """The findings of one block; one sentence or two a task."""
    if not summary.finished:
        return ["No run of this data set has finished, so there is nothing to compare."]
    found = [_task(summary, task) for task in summary.block.tasks if task.name in summary.best]
    return [*found, *_overall(summary), *_chance(summary)]


def _task(summary: Summary, task: TaskInfo) -> str:
    best = summary.row(summary.best[task.name])
    value = spread(best.metric[task.name], task.reading.decimals)
    return f"{_best(summary, task, best, value)}{_ceiling(summary, task)}"


def _best(summary: Summary, task: TaskInfo, best: Row, value: str) -> str:
    start = f"{task.title}: the best mean {task.reading.label} ({task.space}) is {value}, by {best.group.label}"
    others = [row for row in summary.finished if row is not best and row.metric[task.name].known]
    if not others:
        return f"{start}; there is no other row to compare it with."
    if not best.metric[task.name].bounded:
        return f"{start}. One seed gives no interval, so no row can be shown to be better than another."
    near = sum(not summary.worse(task, row) for row in others)
    close = (
        f"; the intervals of {near} of the {len(others)} other rows overlap its own"
        if near
        else ", clear of all others"
    )
    return f"{start}{close}. {_against_single(best, task)}"


def _ceiling(summary: Summary, task: TaskInfo) -> str:
    share = summary.recovered(task)
    if math.isnan(share):
        return ""
    reading = task.reading
    useless = f" of {fixed(reading.floor, 1)}" if reading.floor else ""
    return (
        f" The planted model, which no model passes but by luck, reaches {fixed(task.ceiling, reading.decimals)}: of "
        f"its distance from a useless model's {reading.label}{useless}, the best row recovers {percent(share)}."
    )


def _against_single(best: Row, task: TaskInfo) -> str:
    if best.group.is_reference:
        return "No multi-task row has a better mean than single-task."
    delta = best.delta.get(task.name)
    if delta is None or not delta.known:
        return "There is no finished single-task run with the same seeds and settings to compare it with."
    shift = f"Against single-task that is {spread(delta, task.reading.decimals, sign=True)}"
    if not delta.bounded:
        return f"{shift} on one common seed: too few for an interval."
    low, high = (fixed(end, task.reading.decimals, sign=True) for end in (delta.low, delta.high))
    verdict = "beyond the interval" if delta.excludes_zero else "within what the seeds leave open"
    return f"{shift} over {delta.n} common seeds (95 % interval {low} to {high}): {verdict}."


def _overall(summary: Summary) -> list[str]:
    rows = [row for row in summary.finished if not row.group.is_reference and row.gain.known]
    if not rows:
        return []
    bounded = [row for row in rows if row.gain.bounded]
    better = sum(row.gain.excludes_zero and row.gain.mean > 0 for row in bounded)
    worse = sum(row.gain.excludes_zero and row.gain.mean < 0 for row in bounded)
    if not bounded:
        return []
    return [
        f"All tasks together (Δm): {better} of {len(bounded)} rows are better than single-task by more than their "
        f"interval, {worse} {'is' if worse == 1 else 'are'} worse, and the seeds cannot tell for the other "
        f"{len(bounded) - better - worse}."
    ]


def _chance(summary: Summary) -> list[str]:
    compared = sum(row.gain.bounded and not row.group.is_reference for row in summary.finished)
    if compared < 10:
        return []
    return [
        f"Caution: of {compared} rows about {max(1, round(compared * 0.05))} would differ by more than their interval "
        "by chance alone, and the best of many means is flattered by luck: confirm a winner with fresh seeds."
    ]
