"""Parallel coordinates of what tuning tried: an axis a setting, a line a point."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize

from mtlkit.report.figures.context import Context
from mtlkit.report.figures.sheet import Drawing
from mtlkit.report.figures.style import FAINT, MUTED, SEQUENTIAL
from mtlkit.report.figures.text import shorten, text_width
from mtlkit.report.importance import FEWEST, trial_points, typed

TITLE = "What tuning tried"
CAPTION = (
    "A line a point of the search space, an axis a setting that all tuned models share, a panel a "
    "model; darker lines beat a larger share of the other trials on validation, averaged over the "
    "model's balancers (the last axis). Dark lines that meet on an axis show where a setting is "
    "good; dark lines at its end, that its range should be wider. Logarithmic ranges are drawn so."
)
HEIGHT, PITCH, TOP, LEFT = 1.5, 2.5, 0.55, 0.45
LEAST = 0.8  # between upright axes; where there is less, the axes lie
LINE = 0.36  # between axes that lie
LONGEST_NAME = 1.2
SHADES = LinearSegmentedColormap.from_list("shades", SEQUENTIAL(np.linspace(0.2, 1, 256)))
"""Lines that beat nothing can be seen, too."""


def draw(context: Context) -> list[Drawing]:
    """A panel a model; nothing for grids that were not tuned."""
    by_model = {
        model: points
        for model, points in trial_points(context.summary).items()
        if len(points) >= FEWEST
    }
    if not by_model:
        return []
    studies = [row.group.study for row in context.summary.rows if row.group.study]
    shared = set.intersection(*(set(points.columns) for points in by_model.values()))
    space = {
        name: dimension
        for name, dimension in studies[0].space.items()
        if name in shared and len(next(iter(dimension.values()))) > 1
    }
    if not space:
        return []

    names = [*space, "beats"]
    if (context.width - 2 * LEFT) / len(names) >= LEAST:
        sheet = context.sheet(TITLE, TOP + PITCH * len(by_model), has_bar=True)
        for line, (model, points) in enumerate(by_model.items()):
            top = TOP + PITCH * line
            sheet.heading(LEFT - 0.3, top - 0.3, model, 8.5, context.width / 2)
            axes = sheet.axes(LEFT, top, context.width - 2 * LEFT, HEIGHT)
            _upright_panel(axes, points, space, (context.width - 2 * LEFT) / len(names))
    else:
        height = LINE * len(names)
        left = min(max(text_width(name, 8) for name in names), LONGEST_NAME) + 0.25
        sheet = context.sheet(TITLE, (height + 0.5) * len(by_model), has_bar=True)
        for line, (model, points) in enumerate(by_model.items()):
            top = 0.3 + (height + 0.5) * line
            sheet.heading(0.15, top - 0.08, model, 8.5, context.width / 2)
            axes = sheet.axes(left, top, context.width - left - 0.3, height)
            _lying_panel(axes, points, space)
    sheet.colourbar(ScalarMappable(Normalize(0, 1), SHADES), "share of trials beaten", (0, 0.5, 1))
    return [Drawing("trials", TITLE, CAPTION, sheet.figure)]


Space = dict[str, dict[str, Any]]


def _lines(points: pd.DataFrame, space: Space) -> np.ndarray:
    """(points, settings + 1) where each line meets each axis, from 0 to 1, the best line last."""
    columns = []
    for name, dimension in space.items():
        kind, values = next(iter(dimension.items()))
        low, high = (0, len(values) - 1) if kind == "choice" else values
        scale = np.log if kind == "log" else np.asarray
        start, end = scale(low), scale(high)
        columns.append((scale(points[name].to_numpy()) - start) / (end - start))
    columns.append(points["score"].to_numpy())
    return np.column_stack(columns)[points["score"].argsort()]


def _bounds(space: Space) -> list[tuple[str, str]]:
    """Where each range begins and ends, as text."""
    ranges = [next(iter(dimension.values())) for dimension in space.values()]
    return [(typed(values[0]), typed(values[-1])) for values in ranges]


def _upright_panel(axes: Axes, points: pd.DataFrame, space: Space, width: float) -> None:
    """Axes beside each other; a range begins at the foot of its axis."""
    names = [*space, "beats"]
    for line in _lines(points, space):
        axes.plot(line, color=SHADES(line[-1]), linewidth=0.8 + 1.2 * line[-1])
    for place in range(len(names)):
        axes.axvline(place, color=FAINT, linewidth=0.8, zorder=0)
    for place, (low, high) in enumerate(_bounds(space)):
        axes.text(place, -0.05, low, size=7, color=MUTED, ha="center", va="top")
        axes.text(place, 1.05, high, size=7, color=MUTED, ha="center", va="bottom")
    axes.set_xticks(range(len(names)), [shorten(name, 8, width) for name in names])
    axes.tick_params(axis="x", length=0, pad=11)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(names) - 0.9)
    axes.set_ylim(-0.02, 1.02)
    axes.spines[:].set_visible(False)


def _lying_panel(axes: Axes, points: pd.DataFrame, space: Space) -> None:
    """Axes below each other; a range begins at the left end of its axis."""
    names = [*space, "beats"]
    for line in _lines(points, space):
        across = range(len(names))
        axes.plot(line, across, color=SHADES(line[-1]), linewidth=0.8 + 1.2 * line[-1])
    for place in range(len(names)):
        axes.axhline(place, color=FAINT, linewidth=0.8, zorder=0)
    style: dict[str, Any] = {"size": 7, "color": MUTED, "va": "top", "zorder": 4}
    style["bbox"] = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.6}
    for place, (low, high) in enumerate(_bounds(space)):
        axes.text(0, place + 0.14, low, ha="left", **style)
        axes.text(1, place + 0.14, high, ha="right", **style)
    axes.set_yticks(range(len(names)), [shorten(name, 8, LONGEST_NAME) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    axes.set_ylim(len(names) - 0.7, -0.2)
    axes.set_xlim(-0.02, 1.02)
    axes.spines[:].set_visible(False)
