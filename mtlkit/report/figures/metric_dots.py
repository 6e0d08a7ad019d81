"""Every row's metric, a panel a task: seeds as faint dots, mean with interval, single-task as a
band.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mtlkit.report.blocks import TaskInfo
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
from mtlkit.report.figures.sheet import Columns, Drawing, Entry, PanelGrid
from mtlkit.report.figures.style import (
    CEILING_COLOUR,
    FAINT,
    GRID,
    INK,
    MUTED,
    REFERENCE_COLOUR,
    REFERENCE_DASHES,
)
from mtlkit.report.figures.text import row_label, shorten, text_width
from mtlkit.report.statistics import Interval
from mtlkit.report.summary import Row

ROW = 0.235
HEAD = 0.34
FOOT = 0.52
GAP = 0.22
CAPTION = (
    "Large markers are means over seeds, bars their 95 % t-intervals, the faint dots below them "
    "the single seeds. The grey line and band are single-task with its interval: a row whose bar "
    "lies in the band cannot be told from it by this figure. Rows are ordered as in the table, "
    "best first. Bars that leave a panel are cut off at its edge; rows far outside are marked by "
    "an arrow with their value."
)


def draw(context: Context) -> list[Drawing]:
    """The dot plot of all tasks."""
    tasks = context.summary.block.tasks
    rows = context.summary.rows
    if not context.summary.finished or not tasks:
        return []

    # Lay out the panels: row labels stand at the left of the first column only.
    # On narrow paper these have two lines.
    longest = max(text_width(row.group.label, 8.5) for row in rows)
    in_two_lines = longest > 0.4 * context.width
    label = min(longest, 3.0, 0.4 * context.width) + 0.25
    pitch = 0.28 if in_two_lines else ROW
    panels = Columns.that_fit(context.width, min(len(tasks), 3), 1.5, label, right=0.3, gap=GAP)
    columns, width = panels.number, panels.width
    lines = -(-len(tasks) // columns)
    height = pitch * len(rows) + 0.1
    grid = PanelGrid(label, HEAD, width, height, GAP, HEAD + height + FOOT)

    legend = context.legend(rows)
    if context.summary.references.groups:
        legend.append(Entry("single-task mean", REFERENCE_COLOUR, "", REFERENCE_DASHES))
    legend += context.ceiling_entry
    sheet = context.sheet("Test metric of every row", lines * grid.pitch, legend)
    for index, task in enumerate(tasks):
        line, column = divmod(index, columns)
        axes = grid.axes(sheet, line, column)
        _panel(axes, context, task)
        _titles(axes, task, width)
        if column == 0:
            _name_rows(axes, rows, label - 0.2, in_two_lines)
    caption = f"{CAPTION} {CEILING_CAPTION}" if context.ceiling_entry else CAPTION
    if context.summary.baselines:
        caption += f" {BASELINE_CAPTION}"
    return [Drawing("metrics", "Test metric by task", caption, sheet.figure)]


def _name_rows(axes: Axes, rows: tuple[Row, ...], room: float, in_two_lines: bool) -> None:
    """The names of rows at the left of a panel; in two lines, the model above the balancer."""
    across = axes.get_yaxis_transform()
    size = 7.5 if in_two_lines else 8.5
    style: dict[str, Any] = {"size": size, "color": INK, "ha": "right", "va": "center"}
    for position, row in enumerate(rows):
        text = row_label(row, size, room)
        if in_two_lines and row.group.has_balancer:
            names = (row.group.model, row.group.balancer)
            text = "\n".join(shorten(name, size, room) for name in names)
        axes.text(-0.02, position, text, transform=across, linespacing=1, **style)


def _titles(axes: Axes, task: TaskInfo, width: float) -> None:
    """The task at the left above a panel, and its ceiling at the right."""
    ceiling = ceiling_text(task, axes.get_xlim())
    room = max(width - text_width(ceiling, 8) - 0.1, 0.5)
    name = shorten(task.title, 9.5, room, bold=True)
    axes.set_title(name, size=9.5, weight="bold", loc="left", pad=6)
    axes.set_title(ceiling, size=8, color=CEILING_COLOUR, loc="right", pad=6)


def _panel(axes: Axes, context: Context, task: TaskInfo) -> None:
    """One task: a line a row, the best on top."""
    # The vertical axis counts rows from above, and is the same in all panels.
    rows = context.summary.rows
    baselines = context.summary.baselines
    low, high = metric_limits(rows, task, baselines, 1.0)
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    across = axes.get_yaxis_transform()
    axes.hlines(range(len(rows)), 0, 1, colors=GRID, linewidth=0.7, transform=across, zorder=0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4 if high - low > 0.001 else 3))
    axes.set_xlabel(f"{task.reading.label}, {task.space}")
    axes.spines["left"].set_visible(False)

    # What to compare with lies behind the rows.
    reference = context.summary.references.mean(task.name)
    if reference.known:
        _reference_band(axes, reference)
    ceiling_line(axes, task, vertical=True)
    baseline_lines(axes, task, baselines, vertical=True)

    # A row that has no mean, or one far off, gets a text in place of a marker.
    shown = []
    for position, row in enumerate(rows):
        mean = row.metric[task.name]
        if not mean.known:
            _draw_missing(axes, position, "NA" if row.group.seeds else "no finished run")
        elif not low <= mean.mean <= high:
            _draw_outside(axes, position, mean.mean, context.look.colour(row))
        else:
            shown.append((position, row))
    _draw_rows(axes, context.look, task, shown)


def _reference_band(axes: Axes, mean: Interval) -> None:
    if mean.bounded:
        axes.axvspan(mean.low, mean.high, color=FAINT, alpha=0.55, linewidth=0, zorder=0)
    axes.axvline(
        mean.mean, color=REFERENCE_COLOUR, linewidth=1, linestyle=REFERENCE_DASHES, zorder=1
    )


def _draw_missing(axes: Axes, position: int, reason: str) -> None:
    """Say why a row has no marker."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    _write(axes, 0.5, position, reason, color=MUTED, ha="center", bbox=box)


def _draw_outside(axes: Axes, position: int, mean: float, colour: str) -> None:
    """An arrow and the value, for a row too far off to be shown."""
    if mean < axes.get_xlim()[0]:
        _write(axes, 0.01, position, f"◀ {mean:.4f}", color=colour, ha="left")
    else:
        _write(axes, 0.99, position, f"{mean:.4f} ▶", color=colour, ha="right")


def _write(axes: Axes, x: float, position: int, text: str, **style: Any) -> None:
    """Text on a row's line, ``x`` being a share of the panel's width."""
    across = axes.get_yaxis_transform()
    axes.text(x, position, text, transform=across, size=7.5, va="center", **style)


def _draw_rows(axes: Axes, look: Look, task: TaskInfo, shown: list[tuple[int, Row]]) -> None:
    """The seeds below, the intervals as bars, the means on them."""
    # Seeds stand a little below, so that the bar does not cover them.
    seeds: dict[str, list[tuple[float, float]]] = {}
    for position, row in shown:
        points = seeds.setdefault(look.colour(row), [])
        points += [(value, position + 0.3) for value in row.values[task.name].values()]
    draw_seeds(axes, seeds, size=3.2, alpha=0.45)

    bounded = [(position, row) for position, row in shown if row.metric[task.name].bounded]
    axes.hlines(
        [position for position, _ in bounded],
        [row.metric[task.name].low for _, row in bounded],
        [row.metric[task.name].high for _, row in bounded],
        colors=[look.colour(row) for _, row in bounded],
        linewidth=1.6,
        zorder=3,
    )
    means = []
    for position, row in shown:
        mean = row.metric[task.name].mean
        means.append(Point(mean, position, look.colour(row), look.marker(row), look.hollow(row)))
    draw_points(axes, means, size=6.2, star=9)
