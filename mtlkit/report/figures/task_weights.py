"""Task weights over the run: a panel a balancer and model."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mtlkit.report.figures.style import (
    DASHES,
    GRID,
    MUTED,
    TASK_COLOURS,
    WIDTH,
    Context,
    Drawing,
    Entry,
    Sheet,
    shorten,
)
from mtlkit.report.probe_frames import Probes, mean_over
from mtlkit.report.summary import Row

CAPTION = (
    "Mean weight of each task's loss between evaluation points, averaged over seeds. The dashed line is weight 1, that "
    "of plain summation. Some balancers keep the sum at the number of tasks, others also change the effective learning "
    "rate. Panels of one balancer share their axis, logarithmic where weights span more than a factor of 20. "
    "Gaps: the task was idle in that stretch.{constant}"
)
SPAN = 20


def draw(context: Context) -> list[Drawing]:
    """Small multiples for all balancers whose weights move."""
    probed = [
        (row, probes) for row, probes in context.probed() if np.isfinite(probes.weights).any()
    ]
    shown = [pair for pair in probed if _moves(pair[1])]
    if not shown:
        return []
    constant = sorted(
        {row.group.balancer for row, _ in probed} - {row.group.balancer for row, _ in shown}
    )
    shown.sort(key=lambda pair: pair[0].group.balancer)
    models = len({row.group.model for row, _ in shown})
    columns = models if 2 <= models <= 5 else 4
    columns = min(columns, max(len(shown), 2))
    tasks = list(dict.fromkeys(task for _, probes in shown for task in probes.tasks))
    legend = [
        Entry(
            task,
            TASK_COLOURS[place % len(TASK_COLOURS)],
            "",
            DASHES[place // len(TASK_COLOURS) % len(DASHES)],
        )
        for place, task in enumerate(tasks)
    ]
    left, gap, height, pitch = 0.62, 0.42, 1.15, 1.6
    width = min((WIDTH - left - 0.15 - gap * (columns - 1)) / columns, 3.4)
    places = _places(shown, columns)
    lines = places[-1][0] + 1
    sheet = Sheet(
        "Task weights over the run", context.subtitle, 0.42 + pitch * lines + 0.16, legend
    )
    ranges = {row.group.balancer: _range(shown, row.group.balancer) for row, _ in shown}
    below = set(places)
    for (line, column), (row, probes) in zip(places, shown, strict=True):
        axes = sheet.axes(left + column * (width + gap), 0.42 + line * pitch, width, height)
        _panel(axes, probes, tasks, ranges[row.group.balancer])
        axes.set_title(shorten(row.group.model, 8, width), size=8, color=MUTED, loc="left", pad=3)
        place = (left + column * (width + gap), 0.25 + line * pitch)
        sheet.text(
            *place,
            shorten(row.group.balancer, 8.5, width, bold=True),
            size=8.5,
            weight="bold",
            va="bottom",
        )
        if column == 0 or (line, column - 1) not in below:
            axes.set_ylabel("weight")
        axes.set_xlim(0, float(max(probes.epochs[-1] for _, probes in shown)) * 1.02)
        if (line + 1, column) not in below:
            axes.set_xlabel("epoch")
        else:
            axes.set_xticklabels([])
    note = f" Left out because their weights never move: {', '.join(constant)}." if constant else ""
    return [
        Drawing("weights", "Task weights over the run", CAPTION.format(constant=note), sheet.figure)
    ]


def _places(shown: list[tuple[Row, Probes]], columns: int) -> list[tuple[int, int]]:
    """Line and column of each panel: balancers x models where the models fit on a line."""
    balancers = list(dict.fromkeys(row.group.balancer for row, _ in shown))
    models = sorted({row.group.model for row, _ in shown})
    if len(models) != columns:
        return [divmod(place, columns) for place in range(len(shown))]
    return [
        (balancers.index(row.group.balancer), models.index(row.group.model)) for row, _ in shown
    ]


def _moves(probes: Probes) -> bool:
    known = probes.weights[np.isfinite(probes.weights)]
    return bool(len(known)) and float(
        np.ptp(probes.weights[np.isfinite(probes.weights)])
    ) > 1e-3 * float(np.abs(known).max())


def _range(shown: list[tuple[Row, Probes]], balancer: str) -> tuple[float, float, bool]:
    """Limits for all panels of one balancer, and whether they are logarithmic."""
    values = np.concatenate(
        [
            mean_over(probes.weights, 0).ravel()
            for row, probes in shown
            if row.group.balancer == balancer
        ]
    )
    values = values[np.isfinite(values)]
    low, high = min(float(values.min()), 1.0), max(float(values.max()), 1.0)
    if low > 0 and high / low > SPAN:
        return low / 1.25, high * 1.25, True
    margin = 0.08 * max(high - low, 0.05)
    return low - margin if low < 0 else max(0.0, low - margin), high + margin, False


def _panel(axes: Axes, probes: Probes, tasks: list[str], bounds: tuple[float, float, bool]) -> None:
    low, high, logarithmic = bounds
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(10, numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylim(low, high)
    axes.grid(color=GRID, linewidth=0.7)
    axes.axhline(1, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
    for column, task in enumerate(probes.tasks):
        place = tasks.index(task)
        axes.plot(
            probes.epochs,
            mean_over(probes.weights[..., column], axis=0),
            color=TASK_COLOURS[place % len(TASK_COLOURS)],
            linestyle=DASHES[place // len(TASK_COLOURS) % len(DASHES)],
            linewidth=1.5,
            marker="o",
            markersize=2.2,
            zorder=3,
        )
