"""Learning curves: each score's metric on validation over the training rows, a panel a score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from mtlkit.report.blocks import TaskInfo
from mtlkit.report.curves import Curve
from mtlkit.report.figures.axes import fill_between_seeds, limits
from mtlkit.report.figures.context import Context
from mtlkit.report.figures.sheet import Columns, Drawing, PanelGrid
from mtlkit.report.figures.style import GRID
from mtlkit.report.figures.text import shorten
from mtlkit.report.summary import Row

CAPTION = (
    "The metric on the validation split at every evaluation point, over the training rows seen so "
    "far. Lines are means over seeds, up to the last point that all of them reached, shading their "
    "range. The vertical axis leaves out the first steep part, and lines far from all others. A "
    "row whose line still improves at its end was stopped early.{left_out}"
)
MOST = 8  # rows that are shown


def draw(context: Context) -> list[Drawing]:
    """Panels of the scores; nothing where no run was evaluated twice."""
    known = [(row, context.curves[row.group.id]) for row in context.summary.finished
             if _has_rows(context.curves.get(row.group.id, ()))]  # fmt: skip
    shown, left_out = context.best_rows(known, MOST)
    panels = {}
    for task in context.summary.block.tasks:
        lines = [(row, *_mean_line(curves, task)) for row, curves in shown]
        lines = [line for line in lines if len(line[1]) > 1]
        if lines:
            panels[task] = lines
    if not panels:
        return []

    fitting = Columns.that_fit(context.width, min(len(panels), 3), 1.5, 0.72, 0.2, gap=0.72)
    columns, width = fitting.number, min(fitting.width, 4.2)
    lines_of_panels = -(-len(panels) // columns)
    grid = PanelGrid(left=0.72, top=0.3, width=width, height=2.0, gap=0.72, pitch=2.75)
    legend = context.legend([row for row, _ in shown])
    title = "Learning curves"
    sheet = context.sheet(title, grid.pitch * lines_of_panels, legend)
    for index, (task, lines) in enumerate(panels.items()):
        axes = grid.axes(sheet, *divmod(index, columns))
        _panel(axes, context, lines)
        name = shorten(task.title, 9.5, width, bold=True)
        axes.set_title(name, size=9.5, weight="bold", loc="left", pad=6)
        axes.set_ylabel(f"validation {task.reading.label}")
        axes.set_xlabel("training rows")
    return [Drawing("learning", title, CAPTION.format(left_out=left_out), sheet.figure)]


def _has_rows(curves: Sequence[Curve]) -> bool:
    """Whether there are curves, and their training rows are known."""
    return bool(curves) and all(np.isfinite(curve.rows).all() for curve in curves)


def _mean_line(curves: Sequence[Curve], task: TaskInfo) -> tuple[np.ndarray, np.ndarray]:
    """(P,) training rows and (S, P) metrics of a score, at the points that all seeds reached and
    where all of them have it; empty where it was not recorded.
    """
    if any(curve.metric.get(task.name) != task.metric for curve in curves):
        return np.array([]), np.array([])
    points = min(len(curve.rows) for curve in curves)
    values = np.stack([curve.value[task.name][:points] for curve in curves])  # (S, P)
    known = np.isfinite(values).all(axis=0)
    return curves[0].rows[:points][known], values[:, known]


def _panel(axes: Axes, context: Context, lines: list[tuple[Row, np.ndarray, np.ndarray]]) -> None:
    """The lines of one score; what it takes to leave the start would flatten all that follows."""
    axes.grid(color=GRID, linewidth=0.7)
    for row, rows, values in lines:
        fill_between_seeds(axes, rows, values, context.look.colour(row))
        look = context.look.line(row) | {"marker": context.look.marker(row)}
        axes.plot(rows, values.mean(axis=0), markersize=3.5, markevery=0.25, **look)
    late = [value for _, rows, values in lines for value in values[:, len(rows) // 4 :].ravel()]
    axes.set_ylim(*limits(late))
    axes.set_xlim(0, 1.03 * max(rows[-1] for _, rows, _ in lines))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # such as 20k or 1.5M
