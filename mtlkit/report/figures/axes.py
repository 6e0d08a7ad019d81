"""What several figures do with axes: limits, ceilings, points, curves over the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mtlkit.report.blocks import TaskInfo
from mtlkit.report.figures.style import (
    CEILING_COLOUR,
    CEILING_DASHES,
    GRID,
    INK,
    MUTED,
    NEUTRAL_DASHES,
    REFERENCE_MARKER,
)
from mtlkit.report.summary import Row
from mtlkit.report.tables import fixed

CEILING_CAPTION = (
    "The brown lines are the planted model of the simulated data, which no row passes but by luck; "
    "where one lies outside of a panel, an arrow beside its value shows the side."
)
BASELINE_CAPTION = (
    "Dashed lines with names are baselines, which are no networks; those far outside are left out."
)
LEAST_ROOM = 2e-4
"""The least span of an axis: values that hardly differ are not torn apart."""


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


def metric_limits(
    rows: Sequence[Row], task: TaskInfo, baselines: Sequence[Row], most: float
) -> tuple[float, float]:
    """Axis limits around the seeds, means and intervals of a task, which hold its baselines as
    well, and its ceiling where that lengthens the axis by no more than the share ``most``.
    """
    means = [row.metric[task.name] for row in rows if row.metric[task.name].known]
    seeds = [value for row in rows for value in row.values[task.name].values()]
    spans = [(mean.low, mean.high) for mean in means if mean.bounded]
    bounds = limits([*seeds, *(mean.mean for mean in means)], spans)
    bounds = with_ceiling(bounds, task.ceiling, most)
    for row in baselines:
        bounds = with_ceiling(bounds, row.metric[task.name].mean, 0.4)
    return bounds


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


# --- baselines ------------------------------------------------------------------------------------


def baseline_lines(axes: Axes, task: TaskInfo, baselines: Sequence[Row], vertical: bool) -> None:
    """Dashed lines with their names at the means of the baselines that lie within the limits."""
    low, high = sorted(axes.get_xlim() if vertical else axes.get_ylim())
    text: dict[str, Any] = {"size": 7, "color": MUTED, "va": "top", "ha": "right"}
    for row in baselines:
        mean = row.metric[task.name].mean
        if not low <= mean <= high:
            continue
        style: dict[str, Any] = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (6, 3))}
        if vertical:
            axes.axvline(mean, zorder=1, **style)
            across = axes.get_xaxis_transform()
            axes.text(mean, 0.99, row.group.model, rotation=90, transform=across, **text)
        else:
            axes.axhline(mean, zorder=1, **style)
            axes.text(0.99, mean, row.group.model, transform=axes.get_yaxis_transform(), **text)


# --- points ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """The mean of a row in a panel, and how it looks."""

    x: float
    y: float
    colour: str
    marker: str
    hollow: bool = False
    ringed: bool = False


def draw_points(axes: Axes, points: Sequence[Point], size: float, star: float) -> None:
    """Markers of some points, ringed ones on top.

    Args:
        size: Of a marker, in typographic points.
        star: Of the reference's marker.
    """
    # matplotlib takes its time over every call: one for all points of a kind
    kinds: dict[tuple[str, bool], list[Point]] = {}
    for point in points:
        kinds.setdefault((point.marker, point.ringed), []).append(point)
    for (marker, ringed), alike in kinds.items():
        axes.scatter(
            [point.x for point in alike],
            [point.y for point in alike],
            s=(star if marker == REFERENCE_MARKER else size) ** 2,
            marker=marker,
            facecolors=["white" if point.hollow else point.colour for point in alike],
            edgecolors=[_edge(point) for point in alike],
            linewidths=1.3 if ringed else 0.7,
            zorder=6 if ringed else 5,
        )


def _edge(point: Point) -> str:
    if point.ringed:
        return INK
    return point.colour if point.hollow else "white"


def draw_seeds(
    axes: Axes, seeds: Mapping[str, Sequence[tuple[float, float]]], size: float, alpha: float
) -> None:
    """Faint dots, all of one colour as one path of short strokes with round ends: with many seeds
    these are the most of a file.

    Args:
        axes: With its final limits.
        seeds: Colour to points.
        size: Of a dot, in typographic points.
    """
    low, high = axes.get_xlim()
    length = 1e-4 * (high - low)
    for colour, points in seeds.items():
        x, y = np.array(points).reshape(-1, 2).T
        strokes = np.column_stack([x, x + length, np.full(len(x), np.nan)])
        axes.plot(
            strokes.ravel(),
            np.repeat(y, 3),
            color=colour,
            alpha=alpha,
            linewidth=size,
            solid_capstyle="round",
            snap=False,
            zorder=2,
        )


# --- curves over the run --------------------------------------------------------------------------


def neutral_line(axes: Axes, value: float) -> None:
    """A grid, and a dashed line at the value that changes nothing."""
    axes.grid(color=GRID, linewidth=0.7)
    axes.axhline(value, color=MUTED, linewidth=0.9, linestyle=NEUTRAL_DASHES, zorder=1)


def fill_between_seeds(axes: Axes, x: np.ndarray, values: np.ndarray, colour: str) -> None:
    """Shade the range over seeds of a line: (P,) places and (S, P) values."""
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0, zorder=2)


def epoch_axis(axes: Axes, last_epoch: float, labelled: bool) -> None:
    """An axis of epochs, the same in all panels; labelled where there is no panel below."""
    axes.set_xlim(0, last_epoch * 1.02)
    width = axes.bbox.width / axes.figure.dpi  # inches
    axes.xaxis.set_major_locator(MaxNLocator(5 if width > 1.3 else 3, integer=last_epoch >= 2))
    if labelled:
        axes.set_xlabel("epoch")
    else:
        axes.tick_params(labelbottom=False)


def shared_y_axis(axes: Axes, label: str, labelled: bool) -> None:
    """The vertical axis that panels of one line share; labelled at the first of them."""
    if labelled:
        axes.set_ylabel(label)
    else:
        axes.tick_params(labelleft=False)
