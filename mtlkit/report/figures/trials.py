"""Parallel coordinates of what tuning tried: an axis a setting, a line a point."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize

from mtlkit.report.figures.context import Context
from mtlkit.report.figures.sheet import Drawing, Sheet
from mtlkit.report.figures.style import FAINT, MUTED, SEQUENTIAL, WIDTH
from mtlkit.report.figures.text import shorten
from mtlkit.report.importance import FEWEST, trial_points, typed

TITLE = "What tuning tried"
CAPTION = (
    "A line a point of the search space, an axis a setting that all tuned models share, a panel a "
    "model; darker lines beat a larger share of the other trials on validation, averaged over the "
    "model's balancers (the last axis). Dark lines that meet on an axis show where a setting is "
    "good; dark lines at its end, that its range should be wider. Logarithmic ranges are drawn so."
)
HEIGHT, PITCH, TOP, LEFT = 1.5, 2.5, 0.55, 0.45
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

    sheet = Sheet(TITLE, context.subtitle, TOP + PITCH * len(by_model))
    for line, (model, points) in enumerate(by_model.items()):
        top = TOP + PITCH * line
        sheet.heading(LEFT - 0.3, top - 0.3, model, 8.5, WIDTH / 2)
        axes = sheet.axes(LEFT, top, WIDTH - 2 * LEFT, HEIGHT)
        _panel(axes, points, space)
    sheet.colourbar(ScalarMappable(Normalize(0, 1), SHADES), "share of trials beaten", (0, 0.5, 1))
    return [Drawing("trials", TITLE, CAPTION, sheet.figure)]


def _panel(axes: Axes, points: pd.DataFrame, space: dict[str, dict[str, Any]]) -> None:
    # A range begins at the foot of its axis and ends at its top; both are written there.
    columns = []
    for place, (name, dimension) in enumerate(space.items()):
        kind, values = next(iter(dimension.items()))
        low, high = (0, len(values) - 1) if kind == "choice" else values
        scale = np.log if kind == "log" else np.asarray
        start, end = scale(low), scale(high)
        columns.append((scale(points[name].to_numpy()) - start) / (end - start))
        for height, bound in ((-0.05, values[0]), (1.05, values[-1])):
            vertical = "top" if height < 0 else "bottom"
            axes.text(place, height, typed(bound), size=7, color=MUTED, ha="center", va=vertical)
    columns.append(points["score"].to_numpy())

    # The best lines lie on top.
    names = [*space, "beats"]
    lines = np.column_stack(columns)
    for line in lines[points["score"].argsort()]:
        axes.plot(line, color=SHADES(line[-1]), linewidth=0.8 + 1.2 * line[-1])
    for place in range(len(names)):
        axes.axvline(place, color=FAINT, linewidth=0.8, zorder=0)
    width = (WIDTH - 2 * LEFT) / len(names)
    axes.set_xticks(range(len(names)), [shorten(name, 8, width) for name in names])
    axes.tick_params(axis="x", length=0, pad=11)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(names) - 0.9)
    axes.set_ylim(-0.02, 1.02)
    axes.spines[:].set_visible(False)
