"""Fields of readers x experts, level by level, for a model under each balancer: the frame of two
figures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize

from mtlkit.report.figures.style import (
    INK,
    MUTED,
    WIDTH,
    Context,
    Drawing,
    Sheet,
    contrast,
    shorten,
    text_width,
)
from mtlkit.report.summary import Row
from mtlkit.spec import digest

CELL, ROW, GAP = 0.44, 0.27, 0.3


@dataclass(frozen=True)
class Level:
    """One level of a model under one balancer: lines x experts, NaN where there is nothing to say."""

    name: str
    lines: tuple[str, ...]
    experts: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True)
class Scale:
    """How values become colours and numbers."""

    colours: Colormap
    norm: Normalize
    ticks: Sequence[float]
    label: str
    text: Callable[[float], str]


def draw_model(
    context: Context,
    model: str,
    shown: list[tuple[Row, list[Level]]],
    scale: Scale,
    stem: str,
    title: str,
    caption: str,
) -> Drawing:
    """One model: a panel for each balancer."""
    levels = shown[0][1]
    label = min(max(text_width(line, 7.5) for level in levels for line in level.lines), 1.1) + 0.14
    foot = (
        0.7 * min(max(text_width(expert, 7) for level in levels for expert in level.experts), 1.1)
        + 0.16
    )
    widest = max(len(level.experts) for level in levels)
    cell = min(CELL, (WIDTH - 0.3 - label) / widest)
    widths = [label + cell * len(level.experts) for level in levels]
    stacked = sum(widths) + GAP * (len(levels) - 1) > WIDTH - 0.2
    unit = max(widths) if stacked else sum(widths) + GAP * (len(levels) - 1)
    named = 0.2 if len(levels) > 1 else 0.0
    heights = [named + ROW * len(level.lines) + foot for level in levels]
    pitch = 0.26 + (sum(heights) if stacked else max(heights)) + 0.08
    columns = max(1, min(len(shown), int((WIDTH - 0.2 + GAP) / (unit + GAP))))
    rows = -(-len(shown) // columns)
    sheet = Sheet(f"{title}: {model}", context.subtitle, pitch * rows)
    image = None
    for place, (row, of) in enumerate(shown):
        line, column = divmod(place, columns)
        left, up = 0.1 + column * (unit + GAP), pitch * line
        sheet.text(
            left,
            up + 0.17,
            shorten(row.group.balancer, 9, unit, bold=True),
            size=9,
            weight="bold",
            va="bottom",
        )
        for level, width, height in zip(of, widths, heights, strict=True):
            size = (cell * len(level.experts), ROW * len(level.lines))
            axes = sheet.axes(left + label, up + 0.26 + named, *size)
            image = _panel(axes, level, scale, label, cell, named=named > 0)
            left, up = (left, up + height) if stacked else (left + width + GAP, up)
    sheet.colourbar(image, scale.label, list(scale.ticks))
    note = (
        "Levels run from the input to the towers, the last one feeds the towers. "
        if len(levels) > 1
        else ""
    )
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    if (
        slug != model.lower()
    ):  # two models may differ in signs only, and a file name may not be too long
        slug = f"{slug[:40].strip('-')}-{digest(model)[:6]}"
    return Drawing(
        f"{stem}-{slug}",
        f"{title}: {model}",
        caption.format(model=model, levels=note),
        sheet.figure,
    )


def _panel(
    axes: Axes, level: Level, scale: Scale, label: float, cell: float, named: bool
) -> object:
    axes.set_facecolor("#eef0f2")
    image = axes.imshow(
        level.values, cmap=scale.colours, norm=scale.norm, aspect="auto", interpolation="nearest"
    )
    size = 7.5 if cell > 0.36 else 6.5 if cell > 0.28 else 5.5
    for (line, column), value in np.ndenumerate(level.values):
        text, colour = (
            (scale.text(value), contrast(value, image)) if np.isfinite(value) else ("×", "#a9b1b8")
        )
        axes.text(column, line, text, ha="center", va="center", size=size, color=colour)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks(np.arange(len(level.experts) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(level.lines) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0, pad=3)
    experts = [shorten(expert, 7, 1.1) for expert in level.experts]
    axes.set_xticks(
        range(len(experts)),
        experts,
        rotation=40,
        ha="right",
        rotation_mode="anchor",
        size=7,
        color=INK,
    )
    axes.set_yticks(
        range(len(level.lines)),
        [shorten(line, 7.5, label - 0.1) for line in level.lines],
        size=7.5,
        color=INK,
    )
    if named and level.name:
        axes.set_title(level.name, size=7.5, color=MUTED, loc="left", pad=3)
    return image
