"""What several figures do with axes: limits, ceilings, heatmaps, curves over the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize

from mtlkit.report.blocks import TaskInfo
from mtlkit.report.figures.style import (
    CEILING_COLOUR,
    CEILING_DASHES,
    EMPTY,
    GRID,
    INK,
    MUTED,
    NEUTRAL_DASHES,
)
from mtlkit.report.tables import fixed

CEILING_CAPTION = (
    "The brown lines are the planted model of the simulated data, which no row passes but by luck; "
    "where one lies outside of a panel, an arrow beside its value shows the side."
)
LEAST_ROOM = 2e-4
"""The least span of an axis: values that hardly differ are not torn apart."""
SLANTED = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
"""Long tick labels below a heatmap."""


# --- limits ---------------------------------------------------------------------------------------


def limits(
    points: Sequence[float], spans: Sequence[tuple[float, float]] = ()
) -> tuple[float, float]:
    """Axis limits around most points, so that one collapsed run does not flatten the others.

    Args:
        points: All values; those further from the middle half than four times its width are left
            out.
        spans: Intervals that are shown as far as they do not widen the axis too much.
    """
    values = sorted(points)
    if not values:
        return 0.0, 1.0

    # The points that are kept.
    quarter = values[len(values) // 4]
    three_quarters = values[(3 * len(values)) // 4]
    reach = 4 * max(three_quarters - quarter, 1e-4)
    kept = [value for value in values if quarter - reach <= value <= three_quarters + reach]
    least, most = kept[0], kept[-1]

    # An interval may lengthen the axis by 60 % on either side.
    low, high = least, most
    room = max(most - least, LEAST_ROOM)
    for start, end in spans:
        low = min(low, max(start, least - 0.6 * room))
        high = max(high, min(end, most + 0.6 * room))

    margin = 0.06 * max(high - low, LEAST_ROOM)
    return low - margin, high + margin


# --- the ceiling ----------------------------------------------------------------------------------


def with_ceiling(bounds: tuple[float, float], ceiling: float, most: float) -> tuple[float, float]:
    """Axis limits that hold a ceiling as well, where that lengthens the axis by no more than the
    share ``most``.
    """
    low, high = bounds
    room = high - low
    margin = 0.04 * room
    if high < ceiling + margin <= high + most * room:
        return low, ceiling + margin
    if low > ceiling - margin >= low - most * room:
        return ceiling - margin, high
    return bounds


def ceiling_text(task: TaskInfo, bounds: tuple[float, float], arrows: str = "◀▶") -> str:
    """What a figure says of the ceiling, with an arrow where its line lies outside of the axis;
    empty without one.
    """
    if math.isnan(task.ceiling):
        return ""
    text = f"ceiling {fixed(task.ceiling, task.reading.decimals)}"
    if task.ceiling > max(bounds):
        return f"{text} {arrows[1]}"
    if task.ceiling < min(bounds):
        return f"{arrows[0]} {text}"
    return text


def ceiling_line(axes: Axes, task: TaskInfo, vertical: bool, width: float = 1) -> None:
    """A line at what the planted model of simulated data reaches; none where nobody knows."""
    if math.isnan(task.ceiling):
        return
    draw = axes.axvline if vertical else axes.axhline
    draw(task.ceiling, color=CEILING_COLOUR, linewidth=width, linestyle=CEILING_DASHES, zorder=1)


# --- heatmaps -------------------------------------------------------------------------------------


def heatmap(axes: Axes, values: np.ndarray, colours: Colormap, norm: Normalize) -> Any:
    """Fields (lines, columns) with white lines between them, and without ticks; NaN is grey."""
    axes.set_facecolor(EMPTY)
    image = axes.imshow(values, cmap=colours, norm=norm, aspect="auto", interpolation="nearest")
    for spine in axes.spines.values():
        spine.set_visible(False)
    lines, columns = values.shape
    axes.set_xticks(np.arange(columns - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(lines - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0, pad=3)
    return image


def write_field(axes: Axes, field: tuple[int, ...], text: str, colour: str, size: float) -> None:
    """Write into the field (line, column) of a heatmap."""
    line, column = field
    axes.text(column, line, text, ha="center", va="center", size=size, color=colour)


def contrast(value: float, image: Any) -> str:
    """Black or white, whichever reads better on the colour of a value."""
    red, green, blue, _ = image.cmap(image.norm(value))
    brightness = 0.299 * red + 0.587 * green + 0.114 * blue
    return "white" if brightness < 0.55 else INK


# --- curves over the run --------------------------------------------------------------------------


def neutral_line(axes: Axes, value: float) -> None:
    """A grid, and a dashed line at the value that changes nothing."""
    axes.grid(color=GRID, linewidth=0.7)
    axes.axhline(value, color=MUTED, linewidth=0.9, linestyle=NEUTRAL_DASHES, zorder=1)


def epoch_axis(axes: Axes, last_epoch: float, labelled: bool) -> None:
    """An axis of epochs, the same in all panels; labelled where there is no panel below."""
    axes.set_xlim(0, last_epoch * 1.02)
    if labelled:
        axes.set_xlabel("epoch")
    else:
        axes.set_xticklabels([])


def shared_y_axis(axes: Axes, label: str, labelled: bool) -> None:
    """The vertical axis that panels of one line share; labelled at the first of them."""
    if labelled:
        axes.set_ylabel(label)
    else:
        axes.set_yticklabels([])
