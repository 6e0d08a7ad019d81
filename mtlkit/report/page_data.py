"""What the page's script filters by and draws: the rows of a block as plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mtlkit.equivalences import alike
from mtlkit.report.blocks import RunGroup, TaskInfo
from mtlkit.report.statistics import Interval
from mtlkit.report.summary import Row, Summary
from mtlkit.report.verdicts import find_sweeps
from mtlkit.settings import TrainingSettings
from mtlkit.spec import Spec
from mtlkit.store import printable

if TYPE_CHECKING:
    from mtlkit.report.figures.context import Look

COSTS: Mapping[str, tuple[int, Callable[[Row], float]]] = {
    "train seconds": (-1, lambda row: row.seconds),
    "train rows/s": (1, lambda row: row.rows_per_second),
    "parameters": (-1, lambda row: row.parameters),
    "operations by row": (-1, lambda row: row.flops_per_row),
    "peak memory, bytes": (-1, lambda row: row.peak_memory),
}
"""Axis to its better direction, and what a row has there."""
ALWAYS_SHOWN = ("epochs", "batch_size", "lr")
"""Training settings that are shown though they may be the defaults."""
NO_BALANCER = "–"
Values = list[Any]  # mean and both ends of an interval, then the seeds; None where unknown


def page_data(summary: Summary, look: Look) -> dict[str, Any]:
    """The rows of a block in the order of the table, with a value for each axis of the chart."""
    block = summary.block
    typed = [
        (group.balancer_name, group.resolved["balancer"].get("options") or {})
        for group in (row.group for row in summary.rows)
    ]
    same = alike(typed, block.trained)
    seeds = sorted({seed for group in block.groups for seed in group.seeds})
    rows = []
    sweep_of = {
        row.group.id: sweep[0].group.model
        for sweep in find_sweeps(summary.finished)
        for row in sweep
    }
    for row, one_method in zip(summary.rows, same, strict=True):
        points = [
            _values(row.metric[task.name], row.values[task.name], seeds) for task in block.tasks
        ]
        gain = _values(row.gain.scaled(100), {}, [])
        costs = [[_number(cost(row)), None, None, None] for _, cost in COSTS.values()]
        rows.append(_names(row.group, look) | {
            "same": one_method,
            "sweep": sweep_of.get(row.group.id, ""),
            "word": "" if row.word == "unknown" else row.word,
            "colour": look.colour(row),
            "marker": look.marker(row),
            "hollow": look.hollow(row),
            "points": [*points, gain, *costs],
        })  # fmt: skip
    return {"slug": block.slug, "title": block.label, "axes": list(_axes(summary)), "rows": rows}


def _names(group: RunGroup, look: Look) -> dict[str, Any]:
    """What a row is called, as its table has it, and its settings, a line a part."""
    return {
        "label": group.label,
        "model": group.model,
        "balancer": group.balancer if group.has_balancer else NO_BALANCER,
        "family": group.family if group.has_balancer else NO_BALANCER,
        "settings": list(_settings(group)),
    }


def _settings(group: RunGroup) -> Iterator[str]:
    """The settings of a row as they would be typed; of training those that are not the defaults."""
    for part in ("model", "balancer"):
        method = group.resolved.get(part) or {}
        given = method.get("options") or {}
        options = {key: value for key, value in given.items() if value not in (None, "", [], {})}
        if part == "model" or (group.has_balancer and options):
            yield printable(f"{part}: {Spec(str(method.get('name', '')), options)}")
    defaults = TrainingSettings().model_dump(mode="json")
    training = {}
    for key, value in (group.resolved.get("training") or {}).items():
        if key in ALWAYS_SHOWN or value != defaults.get(key):
            training[key] = value
    yield printable(f"training: {Spec('', training)}")


def _axes(summary: Summary) -> Iterator[dict[str, Any]]:
    """The axes of the chart: the tasks, the gain over single-task, and what a row costs."""
    for task in summary.block.tasks:
        yield _task_axis(summary, task)
    common = {"target": None, "ceiling": None}
    yield common | {"name": "Δm, %", "better": 1, "decimals": 2, "cost": False, "reference": 0}
    for name, (better, _) in COSTS.items():
        yield common | {
            "name": name, "better": better, "decimals": 0, "cost": True, "reference": None,
        }  # fmt: skip


def _task_axis(summary: Summary, task: TaskInfo) -> dict[str, Any]:
    return {
        "name": f"{task.title} {task.reading.label}",
        "better": 1 if task.reading.higher_is_better else -1,
        "target": task.reading.target,
        "decimals": task.reading.decimals,
        "cost": False,
        "reference": _number(summary.references.mean(task.name).mean),
        "ceiling": _number(task.ceiling),
    }


def _values(interval: Interval, by_seed: Mapping[int, float], seeds: list[int]) -> Values:
    known = [_number(by_seed.get(seed, math.nan)) for seed in seeds]
    ends = [_number(end) for end in (interval.mean, interval.low, interval.high)]
    return [*ends, known or None]


def _number(value: float) -> float | None:
    """A number with the digits that a drawing needs; None where unknown, as JSON has no NaN."""
    return float(f"{value:.7g}") if math.isfinite(value) else None
