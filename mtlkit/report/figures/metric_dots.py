"""Every row's metric, a panel a task: seeds as faint dots, mean with interval, single-task as a
band.
"""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mtlkit.report.blocks import TaskInfo
from mtlkit.report.figures.style import (
    CEILING,
    CEILING_COLOUR,
    CEILING_DASHES,
    FAINT,
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
from mtlkit.report.summary import Row

ROW, HEAD, FOOT, GAP = 0.235, 0.34, 0.52, 0.22
CAPTION = (
    "Large markers are means over seeds, bars their 95 % t-intervals, the faint dots below them the single seeds. "
    "The grey line and band are single-task with its interval: a row whose bar lies in the band cannot be told from it "
    "by this figure. Rows are ordered as in the table, best first. Bars that leave a panel are cut off at its edge; "
    "rows far outside are marked by an arrow with their value."
)


def draw(context: Context) -> list[Drawing]:
    """The dot plot of all tasks."""
    tasks, rows = context.summary.block.tasks, context.summary.rows
    if not context.summary.finished or not tasks:
        return []
    columns = min(len(tasks), 3)
    lines = -(-len(tasks) // columns)
    label = min(max(text_width(row.group.label, 8.5) for row in rows), 3.0) + 0.25
    width = (WIDTH - label - 0.3 - GAP * (columns - 1)) / columns
    height = ROW * len(rows) + 0.1
    reference = context.summary.reference
    legend = context.legend(rows)
    if reference:
        legend.append(Entry("single-task mean", REFERENCE_COLOUR, "", (0, (4, 2))))
    legend += context.ceiling_entry
    sheet = Sheet(
        "Test metric of every row", context.subtitle, lines * (HEAD + height + FOOT), legend
    )
    for place, task in enumerate(tasks):
        line, column = divmod(place, columns)
        axes = sheet.axes(
            label + column * (width + GAP), line * (HEAD + height + FOOT) + HEAD, width, height
        )
        _panel(axes, context, task, rows, reference)
        ceiling = ceiling_text(task, axes.get_xlim())
        name = shorten(task.title, 9.5, width - text_width(ceiling, 8) - 0.1, bold=True)
        axes.set_title(name, size=9.5, weight="bold", loc="left", pad=6)
        axes.set_title(ceiling, size=8, color=CEILING_COLOUR, loc="right", pad=6)
        axes.set_yticks(range(len(rows)), [])
        if column == 0:
            axes.set_yticklabels(
                [row_label(row, 8.5, label - 0.2) for row in rows], color=INK, size=8.5
            )
    caption = f"{CAPTION} {CEILING}" if context.ceiling_entry else CAPTION
    return [Drawing("metrics", "Test metric by task", caption, sheet.figure)]


def _panel(
    axes: Axes, context: Context, task: TaskInfo, rows: tuple[Row, ...], reference: Row | None
) -> None:
    means = [row.metric[task.name] for row in rows]
    seeds = [value for row in rows for value in row.values[task.name].values()]
    spans = [(mean.low, mean.high) for mean in means if mean.bounded]
    low, high = limits([*seeds, *(mean.mean for mean in means if mean.known)], spans)
    low, high = with_ceiling((low, high), task.ceiling, 1.0)
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(4 if high - low > 0.001 else 3))
    axes.set_xlabel(f"{task.reading.label}, {task.space}")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if reference is not None:
        mean = reference.metric[task.name]
        if mean.bounded:
            axes.axvspan(mean.low, mean.high, color=FAINT, alpha=0.55, linewidth=0, zorder=0)
        axes.axvline(
            mean.mean, color=REFERENCE_COLOUR, linewidth=1, linestyle=(0, (4, 2)), zorder=1
        )
    if not math.isnan(task.ceiling):
        axes.axvline(
            task.ceiling, color=CEILING_COLOUR, linewidth=1, linestyle=CEILING_DASHES, zorder=1
        )
    for place, row in enumerate(rows):
        _row(axes, context, task, row, place)


def _row(axes: Axes, context: Context, task: TaskInfo, row: Row, place: int) -> None:
    mean, colour = row.metric[task.name], context.look.colour(row)
    low, high = axes.get_xlim()
    if not mean.known:
        reason = "no finished run" if not row.group.seeds else "NA"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        middle = axes.get_yaxis_transform()
        axes.text(
            0.5,
            place,
            reason,
            transform=middle,
            size=7.5,
            color=MUTED,
            ha="center",
            va="center",
            bbox=box,
        )
        return
    if not low <= mean.mean <= high:
        left = mean.mean < low
        text = f"◀ {mean.mean:.4f}" if left else f"{mean.mean:.4f} ▶"
        axes.text(
            0.01 if left else 0.99,
            place,
            text,
            transform=axes.get_yaxis_transform(),
            size=7.5,
            color=colour,
            ha="left" if left else "right",
            va="center",
        )
        return
    values = list(row.values[task.name].values())
    axes.scatter(
        values, [place + 0.3] * len(values), s=10, color=colour, alpha=0.45, linewidth=0, zorder=2
    )
    if mean.bounded:
        axes.plot(
            [mean.low, mean.high],
            [place, place],
            color=colour,
            linewidth=1.6,
            solid_capstyle="butt",
            zorder=3,
        )
    marker = context.look.marker(row)
    axes.plot(
        [mean.mean], [place], marker, color=colour, markersize=9 if marker == "*" else 6.2, markeredgecolor="white",
        markeredgewidth=0.7, zorder=4,
    )  # fmt: skip
