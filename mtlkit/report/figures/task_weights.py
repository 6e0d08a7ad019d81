"""Task weights over the run: a panel a balancer and model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mtlkit.report.figures.axes import epoch_axis, neutral_line
from mtlkit.report.figures.context import Context
from mtlkit.report.figures.sheet import Columns, Drawing, Entry, PanelGrid
from mtlkit.report.figures.style import MUTED, TASK_COLOURS, cycle
from mtlkit.report.figures.text import shorten
from mtlkit.report.probe_frames import Probes, mean_over
from mtlkit.report.summary import Row

CAPTION = (
    "Mean weight of each task's loss between evaluation points, averaged over seeds. The dashed "
    "line is weight 1, that of plain summation. Some balancers keep the sum at the number of "
    "tasks, others also change the effective learning rate. Panels of one balancer share their "
    "axis, logarithmic where weights span more than a factor of 20. Gaps: the task was idle in "
    "that stretch.{constant}"
)
MOST = 30  # panels of the figure
SPAN = 20  # from this ratio of the largest to the smallest weight on, the axis is logarithmic
Probed = list[tuple[Row, Probes]]


@dataclass(frozen=True)
class _Range:
    """The vertical axis that all panels of one balancer share."""

    low: float
    high: float
    logarithmic: bool


def draw(context: Context) -> list[Drawing]:
    """Small multiples for all balancers whose weights move."""
    probed = [
        (row, probes) for row, probes in context.probed() if np.isfinite(probes.weights).any()
    ]
    moving = [(row, probes) for row, probes in probed if _moves(probes)]
    if not moving:
        return []
    shown, left_out = context.best_rows(moving, MOST)
    shown.sort(key=lambda pair: pair[0].group.balancer)
    tasks = list(dict.fromkeys(task for _, probes in shown for task in probes.tasks))

    fitting = Columns.that_fit(context.width, _columns(shown), 1.0, 0.62, right=0.15, gap=0.42)
    columns, width = fitting.number, min(fitting.width, 3.4)
    grid = PanelGrid(left=0.62, top=0.42, width=width, height=1.15, gap=0.42, pitch=1.6)
    places = _places(shown, columns)
    lines = places[-1][0] + 1
    sheet = context.sheet(
        "Task weights over the run", 0.42 + grid.pitch * lines + 0.16, _legend(tasks)
    )
    last_epoch = float(max(probes.epochs[-1] for _, probes in shown))
    for (line, column), (row, probes) in zip(places, shown, strict=True):
        axes = grid.axes(sheet, line, column)
        _panel(axes, probes, tasks, _range(shown, row.group.balancer))

        # The balancer above the model.
        top = 0.25 + line * grid.pitch
        sheet.heading(grid.x(column), top, row.group.balancer, 8.5, width)
        axes.set_title(shorten(row.group.model, 8, width), size=8, color=MUTED, loc="left", pad=3)

        # Labels where there is no panel at the left or below.
        if (line, column - 1) not in places:
            axes.set_ylabel("weight")
        epoch_axis(axes, last_epoch, labelled=(line + 1, column) not in places)
    caption = CAPTION.format(constant=_constant_note(probed, moving)) + left_out
    return [Drawing("weights", "Task weights over the run", caption, sheet.figure)]


def _constant_note(probed: Probed, moving: Probed) -> str:
    """Which balancers are left out."""
    balancers = {row.group.balancer for row, _ in moving}
    constant = sorted({row.group.balancer for row, _ in probed} - balancers)
    if not constant:
        return ""
    return f" Left out because their weights never move: {', '.join(constant)}."


def _legend(tasks: list[str]) -> list[Entry]:
    entries = []
    for index, task in enumerate(tasks):
        colour, dashes = cycle(index, TASK_COLOURS)
        entries.append(Entry(task, colour, "", dashes))
    return entries


def _columns(shown: Probed) -> int:
    """A column a model where that makes two to five, else four."""
    models = len({row.group.model for row, _ in shown})
    columns = models if 2 <= models <= 5 else 4
    return min(columns, max(len(shown), 2))


def _places(shown: Probed, columns: int) -> list[tuple[int, int]]:
    """Line and column of each panel: balancers x models where the models fit on a line, and
    most places are taken; else one after the other.
    """
    balancers = list(dict.fromkeys(row.group.balancer for row, _ in shown))
    models = sorted({row.group.model for row, _ in shown})
    is_sparse = len(shown) < 0.6 * len(balancers) * len(models)
    if len(models) != columns or is_sparse:
        return [divmod(index, columns) for index in range(len(shown))]
    return [
        (balancers.index(row.group.balancer), models.index(row.group.model)) for row, _ in shown
    ]


def _moves(probes: Probes) -> bool:
    """Whether some weight changes over the run by more than a thousandth of the largest."""
    weights = probes.weights  # (S, P, T)
    known = np.isfinite(weights)
    low = np.where(known, weights, np.inf).min(axis=1)
    high = np.where(known, weights, -np.inf).max(axis=1)
    return bool((high - low).max() > 1e-3 * np.abs(weights[known]).max())


def _range(shown: Probed, balancer: str) -> _Range:
    """Limits that hold 1 and all weights of one balancer."""
    means = [
        mean_over(probes.weights, axis=0).ravel()
        for row, probes in shown
        if row.group.balancer == balancer
    ]
    weights = np.concatenate(means)
    weights = weights[np.isfinite(weights)]
    low = min(float(weights.min()), 1.0)
    high = max(float(weights.max()), 1.0)
    if low > 0 and high / low > SPAN:
        return _Range(low / 1.25, high * 1.25, logarithmic=True)

    # Weights that are never negative get no axis below 0.
    margin = 0.08 * max(high - low, 0.05)
    lower = low - margin if low < 0 else max(0.0, low - margin)
    return _Range(lower, high + margin, logarithmic=False)


def _panel(axes: Axes, probes: Probes, tasks: list[str], bounds: _Range) -> None:
    # Few ticks, and plain numbers also on a logarithmic axis.
    if bounds.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(10, numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylim(bounds.low, bounds.high)
    neutral_line(axes, 1)

    # A task has the same line in all panels.
    for column, task in enumerate(probes.tasks):
        colour, dashes = cycle(tasks.index(task), TASK_COLOURS)
        axes.plot(
            probes.epochs,
            mean_over(probes.weights[..., column], axis=0),
            color=colour,
            linestyle=dashes,
            linewidth=1.5,
            marker="o",
            markersize=2.2,
            zorder=3,
        )
