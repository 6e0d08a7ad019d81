"""Pareto front of the tasks' metrics: every seed a faint dot, means solid, the front marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator

from mtlkit.report.blocks import TaskInfo
from mtlkit.report.figures.attained import ATTAINED_CAPTION, draw_attained, sweep_legend
from mtlkit.report.figures.axes import (
    BASELINE_CAPTION,
    CEILING_CAPTION,
    Point,
    baseline_lines,
    ceiling_line,
    ceiling_text,
    draw_points,
    draw_seeds,
    metric_limits,
)
from mtlkit.report.figures.context import Context, Look
from mtlkit.report.figures.labels import HEIGHT, Box, place_labels
from mtlkit.report.figures.sheet import Columns, Drawing, Entry, PanelGrid
from mtlkit.report.figures.style import CEILING_COLOUR, GRID, INK, MUTED, REFERENCE_COLOUR
from mtlkit.report.figures.text import row_label, shorten, text_width
from mtlkit.report.references import References
from mtlkit.report.statistics import pareto_front
from mtlkit.report.summary import Row
from mtlkit.report.verdicts import find_sweeps

CAPTION = (
    "Up and to the right is better on both tasks. Solid markers are means over seeds with 95 % "
    "t-intervals on both axes, faint dots the single seeds. Ringed markers are not dominated: no "
    "other row's means are at least as good on both tasks and better on one; the stepped line "
    "joins them and bounds what was reached. Dotted lines mark single-task. Where intervals "
    "overlap, membership of the front may be chance."
)
MOST_PAIRS = 15
"""Of more pairs of tasks those with the longest fronts have a panel: there rows differ most in what
they favour.
"""
LABELLED = 8  # this many rows of the front are labelled
LABEL_SIZE = 8
BETTER = "better ↗"
FRONT_DASHES = (0, (3, 1.5))


Pair = tuple[TaskInfo, TaskInfo]


@dataclass(frozen=True)
class _Panel:
    """One pair of tasks, and the rows that have both metrics."""

    axes: Axes  # where it is drawn
    rows: list[Row]  # the R rows
    sweeps: list[list[Row]]  # those of fixed weights, by model
    across: TaskInfo  # the task of the horizontal axis
    up: TaskInfo  # the task of the vertical axis
    size: tuple[float, float]  # width and height in inches
    roomy: bool  # whether there is room for labels

    @cached_property
    def means(self) -> np.ndarray:
        """(R, 2) means over seeds."""
        return _means(self.rows, (self.across, self.up))

    @property
    def inside(self) -> np.ndarray:
        """(R,) whether a row's means lie within the limits of the axes."""
        left, right = sorted(self.axes.get_xlim())
        bottom, top = sorted(self.axes.get_ylim())
        x, y = self.means.T
        return (x >= left) & (x <= right) & (y >= bottom) & (y <= top)

    def to_inches(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) points in inches from the lower left corner."""
        return self.axes.transLimits.transform(points) * np.array(self.size)


def draw(context: Context) -> list[Drawing]:
    """One panel for two tasks, a panel a pair for more."""
    # A metric that is best at a value in between has no front.
    tasks = [task for task in context.summary.block.tasks if task.reading.target is None]
    pairs = list(combinations(tasks, 2))
    rows = [
        row
        for row in context.summary.finished
        if all(row.metric[task.name].known for task in tasks)
    ]
    if not pairs or not rows:
        return []

    sweeps = find_sweeps(rows)
    shown = _longest_fronts(pairs, rows)

    # A single pair fills the page; of many, panels are nearly square.
    panels = Columns.that_fit(context.width, _columns(len(shown)), 1.4, 0.78, 0.3, gap=0.78)
    columns, width = panels.number, panels.width
    lines = -(-len(shown) // columns)
    height = min(width * 0.95, 5.0)
    grid = PanelGrid(0.78, 0.12, width, height, gap=0.78, pitch=height + 0.62)
    front_entry = Entry("Pareto front of the means", INK, "o", FRONT_DASHES, hollow=True)
    sheet = context.sheet(
        "Pareto front of the tasks",
        0.12 + lines * grid.pitch - 0.05,
        [*context.legend(rows), front_entry, *sweep_legend(sweeps), *context.ceiling_entry],
    )

    # One collapsed run should not flatten a panel, so it may lie outside; the caption names it.
    outside: set[str] = set()
    for index, (across, up) in enumerate(shown):
        axes = grid.axes(sheet, *divmod(index, columns))
        panel = _Panel(axes, rows, sweeps, across, up, (width, height), roomy=width > 2.5)
        _draw_panel(panel, context)
        hidden = np.flatnonzero(~panel.inside)
        outside |= {rows[row].group.label for row in hidden}

    caption = f"{CAPTION} {ATTAINED_CAPTION}" if sweeps else CAPTION
    if len(shown) < len(pairs):
        caption += (
            f" Of {len(pairs)} pairs of tasks the {len(shown)} with most rows on their front are "
            "shown; the chart of the page has all."
        )
    if context.summary.baselines:
        caption += f" {BASELINE_CAPTION}"
    if context.ceiling_entry:
        caption += f" {CEILING_CAPTION}"
    if outside:
        caption += f" Outside of the panels: {', '.join(sorted(outside))}."
    return [Drawing("pareto", "Pareto front", caption, sheet.figure)]


def _means(rows: Sequence[Row], tasks: Pair) -> np.ndarray:
    """(R, 2) means over seeds of the rows on two tasks."""
    return np.array([[row.metric[task.name].mean for task in tasks] for row in rows])


def _on_front(means: np.ndarray, tasks: Pair) -> np.ndarray:
    """(R,) whether a row is on the front, of (R, 2) means on two tasks."""
    return pareto_front(means * _signs(tasks))


def _signs(tasks: Pair) -> np.ndarray:
    """(2,) by which higher is better."""
    return np.array([1 if task.reading.higher_is_better else -1 for task in tasks])


def _longest_fronts(pairs: Sequence[Pair], rows: Sequence[Row]) -> list[Pair]:
    """The pairs to show, in their order."""
    lengths = [int(_on_front(_means(rows, pair), pair).sum()) for pair in pairs]
    longest_first = sorted(range(len(pairs)), key=lambda index: -lengths[index])
    return [pairs[index] for index in sorted(longest_first[:MOST_PAIRS])]


def _columns(pairs: int) -> int:
    """How many panels stand beside each other, so that lines are full where that is possible."""
    if pairs == 1:
        return 1
    if pairs > 12:
        return 4
    return 3 if pairs in (3, 5, 6, 9) or pairs > 6 else 2


def _draw_panel(panel: _Panel, context: Context) -> None:
    """The axes first, as everything else depends on their limits; then lines, points and labels."""
    _set_up_axes(panel, context.summary.baselines)
    draw_attained(panel.axes, panel.across, panel.up, panel.sweeps)

    # The front, from right to left: each of its points is higher than the one before.
    tasks = (panel.across, panel.up)
    means = panel.means
    on_front = _on_front(means, tasks)
    rightmost_first = np.argsort(-means[:, 0] * _signs(tasks)[0], kind="stable")
    front = [int(row) for row in rightmost_first if on_front[row]]
    panel.axes.step(
        *means[front].T, where="post", color=INK, linewidth=1, linestyle=FRONT_DASHES, zorder=2
    )

    _reference_lines(panel, context.summary.references)
    baselines = context.summary.baselines
    baseline_lines(panel.axes, panel.across, baselines, vertical=True)
    baseline_lines(panel.axes, panel.up, baselines, vertical=False)
    better = text_width(BETTER, 8) + 0.05
    width, height = panel.size
    written = [*_ceilings(panel), (width - better, height - 0.2, width, height)]
    _draw_rows(panel, context.look, on_front)
    if panel.roomy:
        inside = panel.inside
        _label_rows(panel, [row for row in front if inside[row]][:LABELLED], written)


def _set_up_axes(panel: _Panel, baselines: Sequence[Row]) -> None:
    axes = panel.axes
    width, height = panel.size
    axes.set_xlim(*_limits(panel.rows, panel.across, baselines))
    axes.set_ylim(*_limits(panel.rows, panel.up, baselines))
    axes.set_xlabel(_axis_label(panel.across, width))
    axes.set_ylabel(_axis_label(panel.up, height))
    axes.grid(color=GRID, linewidth=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(6 if width > 5 else 3))
    axes.yaxis.set_major_locator(MaxNLocator(6 if height > 4 else 4))
    if panel.roomy:
        corner: dict[str, Any] = {"ha": "right", "va": "top", "transform": axes.transAxes}
        axes.text(0.995, 0.99, BETTER, size=8, color=MUTED, **corner)


def _limits(rows: list[Row], task: TaskInfo, baselines: Sequence[Row]) -> tuple[float, float]:
    """Limits of one axis; reversed where lower is better, so that up and right is always better."""
    low, high = metric_limits(rows, task, baselines, 0.4)
    return (low, high) if task.reading.higher_is_better else (high, low)


def _axis_label(task: TaskInfo, width: float) -> str:
    full = f"{task.title} {task.reading.label}, {task.space}"
    if text_width(full, 8.5) <= width:
        return full
    metric = f" {task.reading.label}"
    return shorten(task.title, 8.5, width - text_width(metric, 8.5) - 0.05) + metric


def _reference_lines(panel: _Panel, references: References) -> None:
    """Dotted lines at the means of the references."""
    style = {"color": REFERENCE_COLOUR, "linewidth": 0.8, "linestyle": ":", "zorder": 1}
    across, up = references.mean(panel.across.name), references.mean(panel.up.name)
    if across.known:
        panel.axes.axvline(across.mean, **style)  # type: ignore[arg-type]
    if up.known:
        panel.axes.axhline(up.mean, **style)  # type: ignore[arg-type]


def _ceilings(panel: _Panel) -> list[Box]:
    """Lines at what the planted model of simulated data reaches; values where there is room. Where
    these are written.
    """
    axes = panel.axes
    ceiling_line(axes, panel.across, vertical=True, width=0.9)
    ceiling_line(axes, panel.up, vertical=False, width=0.9)

    # Which side a line outside lies on is shown by an arrow.
    lines = []
    x_limits, y_limits = axes.get_xlim(), axes.get_ylim()
    for task, bounds, arrows in ((panel.across, x_limits, "◀▶"), (panel.up, y_limits, "▼▲")):
        text = ceiling_text(task, bounds, arrows)
        inside = min(bounds) <= task.ceiling <= max(bounds)
        if text and (panel.roomy or not inside):
            lines.append(f"{task.title} {text}")
    if not lines:
        return []
    size = 8 if panel.roomy else 7
    axes.text(
        0.015,
        0.985,
        "\n".join(lines),
        transform=axes.transAxes,
        va="top",
        size=size,
        color=CEILING_COLOUR,
        bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1},
    )
    width, height = panel.size
    right = 0.03 * width + max(text_width(line, size) for line in lines)
    return [(0.0, height - 0.05 - 0.16 * len(lines), right, height)]


def _draw_rows(panel: _Panel, look: Look, on_front: np.ndarray) -> None:
    """The seeds, intervals and means of all rows; those of the front and of single-task stand out.

    Args:
        on_front: (R,) whether a row is on the front.
    """
    axes, rows = panel.axes, panel.rows
    scale = 1.0 if panel.size[0] > 3 else 0.75

    # A dot needs the seed's metric on both tasks.
    dots: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        x_values, y_values = row.values[panel.across.name], row.values[panel.up.name]
        seeds = sorted(x_values.keys() & y_values.keys())
        dots.setdefault(look.colour(row), []).extend(
            (x_values[seed], y_values[seed]) for seed in seeds
        )
    draw_seeds(axes, dots, size=3.6 * scale, alpha=0.28)

    for strong in (False, True):
        chosen = [
            row
            for row, is_on_front in zip(rows, on_front, strict=True)
            if (is_on_front or row.group.is_reference) == strong
        ]
        _draw_intervals(panel, look, chosen, strong)

    means = [
        Point(x, y, look.colour(row), look.marker(row), look.hollow(row), bool(ringed))
        for row, (x, y), ringed in zip(rows, panel.means, on_front, strict=True)
    ]
    draw_points(axes, means, size=7.5 * scale, star=11 * scale)


def _draw_intervals(panel: _Panel, look: Look, rows: list[Row], strong: bool) -> None:
    """Bars through the means of some rows, on both axes."""
    bars, colours = [], []
    for row in rows:
        x, y = row.metric[panel.across.name], row.metric[panel.up.name]
        if x.bounded:
            bars.append([(x.low, y.mean), (x.high, y.mean)])
            colours.append(look.colour(row))
        if y.bounded:
            bars.append([(x.mean, y.low), (x.mean, y.high)])
            colours.append(look.colour(row))
    width, alpha = (1.1, 0.75) if strong else (0.8, 0.3)
    collection = LineCollection(bars, colors=colours, linewidths=width, alpha=alpha, zorder=4)
    panel.axes.add_collection(collection, autolim=False)


def _label_rows(panel: _Panel, labelled: Sequence[int], written: Sequence[Box]) -> None:
    """Write the labels of some rows beside their points, with a line to those further off, where
    they find a place beside what is written already.
    """
    width, height = panel.size
    means = panel.means
    points = [tuple(point) for point in panel.to_inches(means)]
    arms = [arm for row in labelled for arm in _arms(panel, panel.rows[row])]
    room = min(2.6, 0.75 * width)
    texts = [row_label(panel.rows[row], LABEL_SIZE, room) for row in labelled]
    anchors = [points[row] for row in labelled]
    corners = place_labels(anchors, texts, points + arms, panel.size, LABEL_SIZE, written)
    for row, text, corner in zip(labelled, texts, corners, strict=True):
        if corner is None:
            continue
        left, low = corner

        # Inches from the point to the nearest edge of the label.
        x, y = points[row]
        across = max(left - x, 0.0, x - left - text_width(text, LABEL_SIZE))
        up = max(low - y, 0.0, y - low - HEIGHT)
        line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkB": 4}
        panel.axes.annotate(
            text,
            means[row],
            (left / width, low / height),
            textcoords="axes fraction",
            size=LABEL_SIZE,
            color=INK,
            zorder=7,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
            arrowprops=line if np.hypot(across, up) > 0.2 else None,
        )


def _arms(panel: _Panel, row: Row) -> list[tuple[float, float]]:
    """Points along the intervals of a row, in inches, that labels should not cover."""
    x, y = row.metric[panel.across.name], row.metric[panel.up.name]
    if not (x.bounded and y.bounded):
        return []
    steps = np.linspace(-1, 1, 25)
    horizontal = np.column_stack([x.mean + steps * x.half, np.full(25, y.mean)])
    vertical = np.column_stack([np.full(25, x.mean), y.mean + steps * y.half])
    return [tuple(point) for point in panel.to_inches(np.vstack([horizontal, vertical]))]
