"""Pareto front of the tasks' metrics: every seed a faint dot, means solid, the front marked."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mtlkit.report.blocks import TaskInfo
from mtlkit.report.figures.labels import HEIGHT, place_labels
from mtlkit.report.figures.style import (
    CEILING,
    CEILING_COLOUR,
    CEILING_DASHES,
    GRID,
    INK,
    MUTED,
    REFERENCE_COLOUR,
    WIDTH,
    Context,
    Drawing,
    Entry,
    Sheet,
    ceiling_text,
    limits,
    row_label,
    shorten,
    text_width,
    with_ceiling,
)
from mtlkit.report.statistics import pareto_front
from mtlkit.report.summary import Row

CAPTION = (
    "Up and to the right is better on both tasks. Solid markers are means over seeds with 95 % t-intervals on both "
    "axes, faint dots the single seeds. Ringed markers are not dominated: no other row's means are at least as good on "
    "both tasks and better on one; the stepped line joins them and bounds what was reached. Dotted lines mark "
    "single-task. Where intervals overlap, membership of the front may be chance."
)
LABELLED = 8


def draw(context: Context) -> list[Drawing]:
    """One panel for two tasks, a panel a pair for more."""
    tasks = context.summary.block.tasks
    rows = [
        row
        for row in context.summary.finished
        if all(row.metric[task.name].known for task in tasks)
    ]
    pairs = list(combinations(tasks, 2))
    if not pairs or not rows:
        return []
    columns = 1 if len(pairs) == 1 else 3 if len(pairs) in (3, 5, 6, 9) or len(pairs) > 6 else 2
    columns = 4 if len(pairs) > 12 else columns
    lines = -(-len(pairs) // columns)
    gap_x, gap_y, left = 0.78, 0.62, 0.78
    width = (WIDTH - left - 0.3 - gap_x * (columns - 1)) / columns
    height = 5.0 if columns == 1 else width * 0.95
    legend = [
        *context.legend(rows),
        Entry("Pareto front of the means", INK, "o", (0, (3, 1.5)), hollow=True),
    ]
    legend += context.ceiling_entry
    sheet = Sheet(
        "Pareto front of the tasks",
        context.subtitle,
        0.12 + lines * (height + gap_y) - 0.05,
        legend,
    )
    hidden = set()
    for place, (across, up) in enumerate(pairs):
        line, column = divmod(place, columns)
        axes = sheet.axes(
            left + column * (width + gap_x), 0.12 + line * (height + gap_y), width, height
        )
        hidden |= _panel(axes, context, rows, across, up, (width, height), columns <= 2)
    missing = f" Outside of the panels: {', '.join(sorted(hidden))}." if hidden else ""
    ceiling = f" {CEILING}" if context.ceiling_entry else ""
    return [Drawing("pareto", "Pareto front", CAPTION + ceiling + missing, sheet.figure)]


def _panel(
    axes: Axes,
    context: Context,
    rows: list[Row],
    across: TaskInfo,
    up: TaskInfo,
    size: tuple[float, float],
    labelled: bool,
) -> set[str]:
    """Draw one pair of tasks and return the labels of rows outside of the panel."""
    means = np.array([[row.metric[across.name].mean, row.metric[up.name].mean] for row in rows])
    for axis, task in ((0, across), (1, up)):
        points = [value for row in rows for value in row.values[task.name].values()] + list(
            means[:, axis]
        )
        spans = [
            (row.metric[task.name].low, row.metric[task.name].high)
            for row in rows
            if row.metric[task.name].bounded
        ]
        bounds = with_ceiling(limits(points, spans), task.ceiling, 0.4)
        if not task.reading.higher_is_better:
            bounds = bounds[::-1]
        (axes.set_xlim if axis == 0 else axes.set_ylim)(*bounds)
        label = _axis_label(task, size[axis])
        (axes.set_xlabel if axis == 0 else axes.set_ylabel)(label)
    axes.grid(color=GRID, linewidth=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(6 if size[0] > 5 else 3))
    axes.yaxis.set_major_locator(MaxNLocator(6 if size[1] > 4 else 4))
    if labelled:
        axes.text(
            0.995,
            0.99,
            "better ↗",
            transform=axes.transAxes,
            ha="right",
            va="top",
            size=8,
            color=MUTED,
        )
    signs = np.array([1 if task.reading.higher_is_better else -1 for task in (across, up)])
    front = pareto_front(means * signs)
    order = [index for index in np.argsort(-means[:, 0] * signs[0], kind="stable") if front[index]]
    axes.step(
        means[order, 0],
        means[order, 1],
        where="post",
        color=INK,
        linewidth=1,
        linestyle=(0, (3, 1.5)),
        zorder=2,
    )
    reference = context.summary.reference
    if reference in rows:
        axes.axvline(
            reference.metric[across.name].mean,
            color=REFERENCE_COLOUR,
            linewidth=0.8,
            linestyle=":",
            zorder=1,
        )
        axes.axhline(
            reference.metric[up.name].mean,
            color=REFERENCE_COLOUR,
            linewidth=0.8,
            linestyle=":",
            zorder=1,
        )
    _ceilings(axes, across, up, labelled)
    for row, on_front in zip(rows, front, strict=True):
        _point(axes, context, row, across, up, bool(on_front), 1.0 if size[0] > 3 else 0.75)
    inside = _inside(axes, means)
    if labelled:
        _label(
            axes,
            rows,
            means,
            [index for index in order if inside[index]][:LABELLED],
            size,
            (across, up),
        )
    return {row.group.label for row, within in zip(rows, inside, strict=True) if not within}


def _ceilings(axes: Axes, across: TaskInfo, up: TaskInfo, labelled: bool) -> None:
    """Lines at what the planted model of simulated data reaches; values where there is room or a
    line is outside.
    """
    style = {"color": CEILING_COLOUR, "linewidth": 0.9, "linestyle": CEILING_DASHES, "zorder": 1}
    if not math.isnan(across.ceiling):
        axes.axvline(across.ceiling, **style)  # type: ignore[arg-type]
    if not math.isnan(up.ceiling):
        axes.axhline(up.ceiling, **style)  # type: ignore[arg-type]
    shown = []
    for task, bounds, arrows in ((across, axes.get_xlim(), "◀▶"), (up, axes.get_ylim(), "▼▲")):
        said, inside = (
            ceiling_text(task, bounds, arrows),
            min(bounds) <= task.ceiling <= max(bounds),
        )
        if said and (labelled or not inside):
            shown.append(f"{task.title} {said}")
    size = 8 if labelled else 7
    box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1}
    if shown:
        text = "\n".join(shown)
        axes.text(
            0.015,
            0.985,
            text,
            transform=axes.transAxes,
            va="top",
            size=size,
            color=CEILING_COLOUR,
            bbox=box,
        )


def _axis_label(task: TaskInfo, width: float) -> str:
    full = f"{task.title} {task.reading.label}, {task.space}"
    if text_width(full, 8.5) <= width:
        return full
    name = shorten(task.title, 8.5, width - text_width(f" {task.reading.label}", 8.5) - 0.05)
    return f"{name} {task.reading.label}"


def _point(
    axes: Axes,
    context: Context,
    row: Row,
    across: TaskInfo,
    up: TaskInfo,
    on_front: bool,
    scale: float,
) -> None:
    colour, marker = context.look.colour(row), context.look.marker(row)
    x, y = row.metric[across.name], row.metric[up.name]
    seeds = sorted(row.values[across.name].keys() & row.values[up.name].keys())
    axes.scatter(
        [row.values[across.name][seed] for seed in seeds],
        [row.values[up.name][seed] for seed in seeds],
        s=13 * scale,
        color=colour,
        alpha=0.28,
        linewidth=0,
        zorder=3,
    )
    strong = on_front or row.group.is_reference
    style = {
        "color": colour,
        "linewidth": 1.1 if strong else 0.8,
        "alpha": 0.75 if strong else 0.3,
        "zorder": 4,
    }
    if x.bounded:
        axes.plot([x.low, x.high], [y.mean, y.mean], **style)  # type: ignore[arg-type]
    if y.bounded:
        axes.plot([x.mean, x.mean], [y.low, y.high], **style)  # type: ignore[arg-type]
    axes.plot(
        [x.mean],
        [y.mean],
        marker,
        color=colour,
        markersize=(11 if marker == "*" else 7.5) * scale,
        markeredgecolor=INK if on_front else "white",
        markeredgewidth=1.3 if on_front else 0.6,
        zorder=6 if on_front else 5,
    )


def _inside(axes: Axes, means: np.ndarray) -> np.ndarray:
    xs, ys = sorted(axes.get_xlim()), sorted(axes.get_ylim())
    return (
        (means[:, 0] >= xs[0])
        & (means[:, 0] <= xs[1])
        & (means[:, 1] >= ys[0])
        & (means[:, 1] <= ys[1])
    )


def _arms(
    axes: Axes, row: Row, across: TaskInfo, up: TaskInfo, size: tuple[float, float]
) -> list[tuple[float, float]]:
    """Points along the intervals of a row, in inches, that labels should not cover."""
    x, y = row.metric[across.name], row.metric[up.name]
    if not (x.bounded and y.bounded):
        return []
    places = np.linspace(-1, 1, 25)
    level = np.column_stack([x.mean + places * x.half, np.full(25, y.mean)])
    upright = np.column_stack([np.full(25, x.mean), y.mean + places * y.half])
    return [
        tuple(point)
        for point in axes.transLimits.transform(np.vstack([level, upright])) * np.array(size)
    ]


def _label(
    axes: Axes,
    rows: list[Row],
    means: np.ndarray,
    front: list[int],
    size: tuple[float, float],
    tasks: tuple[TaskInfo, TaskInfo],
) -> None:
    across, up = tasks
    to_inches = axes.transLimits.transform(means) * np.array(size)
    points = [tuple(point) for point in to_inches]
    arms = [arm for index in front for arm in _arms(axes, rows[index], across, up, size)]
    texts = [row_label(rows[index], 8, 2.6) for index in front]
    corners = place_labels([points[index] for index in front], texts, points + arms, size, 8)
    for index, text, (left, low) in zip(front, texts, corners, strict=True):
        x, y = points[index]
        wide = max(left - x, 0.0, x - left - text_width(text, 8))
        far = np.hypot(wide, max(low - y, 0.0, y - low - HEIGHT)) > 0.2
        axes.annotate(
            text,
            means[index],
            (left / size[0], low / size[1]),
            textcoords="axes fraction",
            size=8,
            color=INK,
            zorder=7,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkB": 4}
            if far
            else None,
        )
