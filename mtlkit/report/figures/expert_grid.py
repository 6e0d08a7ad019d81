"""Fields of gates or tasks x experts, level by level, for a model under each balancer: what the
figures of gates and of ablations have in common.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize

from mtlkit.report.figures.axes import SLANTED, contrast, heatmap, write_field
from mtlkit.report.figures.context import Context
from mtlkit.report.figures.sheet import Drawing, Sheet
from mtlkit.report.figures.style import INK, MUTED, WIDTH
from mtlkit.report.figures.text import shorten, text_width
from mtlkit.report.summary import Row
from mtlkit.spec import digest

CELL = 0.44
"""Width of a field, if there is room."""
LINE = 0.27
"""Height of a field."""
GAP = 0.3
HEAD = 0.26
"""Height of the balancer's name."""
LINE_SIZE = 7.5
EXPERT_SIZE = 7
LONGEST_NAME = 1.1
CROSS = ("×", "#a9b1b8")


@dataclass(frozen=True)
class Level:
    """One level of a model under one balancer.

    Args:
        name: Such as ``level 1``.
        lines: Names of the L gates or tasks.
        experts: Names of the E experts.
        values: (L, E), NaN where there is nothing to say.
    """

    name: str
    lines: tuple[str, ...]
    experts: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True)
class Scale:
    """How values become colours and numbers.

    Args:
        colours: The colour map.
        norm: Its ends.
        ticks: On the colour bar.
        label: Of the colour bar.
        text: How a value is written.
    """

    colours: Colormap
    norm: Normalize
    ticks: Sequence[float]
    label: str
    text: Callable[[float], str]


@dataclass(frozen=True)
class ExpertFigure:
    """What one of the figures shows.

    Args:
        name: Start of the file name.
        title: The model's name is added to it.
        caption: With places for ``model`` and ``levels``.
        scale: Of its values.
    """

    name: str
    title: str
    caption: str
    scale: Scale


@dataclass(frozen=True)
class _Layout:
    """Sizes in inches that all panels of a model share.

    Args:
        label: Width of the names at the left of a panel.
        cell: Width of a field.
        head: Height of a level's name; a single level needs none.
        widths: Width of each level, names included.
        heights: Height of each level, names included.
        stacked: Whether the levels of a balancer stand below each other, else beside each other.
    """

    label: float
    cell: float
    head: float
    widths: list[float]
    heights: list[float]
    stacked: bool

    @classmethod
    def of(cls, levels: list[Level]) -> _Layout:
        """The sizes that names and experts of some levels need."""
        lines = [line for level in levels for line in level.lines]
        experts = [expert for level in levels for expert in level.experts]
        label = min(max(text_width(line, LINE_SIZE) for line in lines), LONGEST_NAME) + 0.14
        longest = min(max(text_width(expert, EXPERT_SIZE) for expert in experts), LONGEST_NAME)
        foot = 0.7 * longest + 0.16  # names of experts are slanted

        widest = max(len(level.experts) for level in levels)
        cell = min(CELL, (WIDTH - 0.3 - label) / widest)
        widths = [label + cell * len(level.experts) for level in levels]
        head = 0.2 if len(levels) > 1 else 0.0
        heights = [head + LINE * len(level.lines) + foot for level in levels]
        stacked = sum(widths) + GAP * (len(levels) - 1) > WIDTH - 0.2
        return cls(label, cell, head, widths, heights, stacked)

    @property
    def unit(self) -> float:
        """Width of all levels of a balancer."""
        if self.stacked:
            return max(self.widths)
        return sum(self.widths) + GAP * (len(self.widths) - 1)

    @property
    def pitch(self) -> float:
        """Height of all levels of a balancer, with its name and the space below."""
        height = sum(self.heights) if self.stacked else max(self.heights)
        return HEAD + height + 0.08


def by_model(shown: list[tuple[Row, list[Level]]]) -> dict[str, list[tuple[Row, list[Level]]]]:
    """Model to its rows."""
    models: dict[str, list[tuple[Row, list[Level]]]] = {}
    for row, levels in shown:
        models.setdefault(row.group.model, []).append((row, levels))
    return models


def draw_model(
    context: Context, model: str, rows: list[tuple[Row, list[Level]]], figure: ExpertFigure
) -> Drawing:
    """One model: its levels under each balancer."""
    # A model has the same gates and experts under every balancer, so the first row stands for all.
    layout = _Layout.of(rows[0][1])
    columns = max(1, min(len(rows), int((WIDTH - 0.2 + GAP) / (layout.unit + GAP))))
    title = f"{figure.title}: {model}"
    lines = -(-len(rows) // columns)
    sheet = Sheet(title, context.subtitle, layout.pitch * lines)

    image = None
    for index, (row, levels) in enumerate(rows):
        line, column = divmod(index, columns)
        left = 0.1 + column * (layout.unit + GAP)
        top = layout.pitch * line
        sheet.heading(left, top + 0.17, row.group.balancer, 9, layout.unit)
        image = _draw_levels(sheet, levels, layout, figure.scale, (left, top))
    sheet.colourbar(image, figure.scale.label, list(figure.scale.ticks))

    note = ""
    if len(layout.widths) > 1:
        note = "Levels run from the input to the towers, the last one feeds the towers. "
    caption = figure.caption.format(model=model, levels=note)
    return Drawing(f"{figure.name}-{_file_name(model)}", title, caption, sheet.figure)


def _draw_levels(
    sheet: Sheet, levels: list[Level], layout: _Layout, scale: Scale, corner: tuple[float, float]
) -> Any:
    """The levels of one balancer, from the upper left corner of its place on."""
    left, top = corner
    image = None
    for level, width, height in zip(levels, layout.widths, layout.heights, strict=True):
        axes = sheet.axes(
            left + layout.label,
            top + HEAD + layout.head,
            layout.cell * len(level.experts),
            LINE * len(level.lines),
        )
        image = _panel(axes, level, scale, layout)
        if layout.stacked:
            top += height
        else:
            left += width + GAP
    return image


def _panel(axes: Axes, level: Level, scale: Scale, layout: _Layout) -> Any:
    # A crossed field is an expert that a gate cannot see.
    image = heatmap(axes, level.values, scale.colours, scale.norm)
    size = _field_size(layout.cell)
    for field, value in np.ndenumerate(level.values):
        text, colour = CROSS
        if np.isfinite(value):
            text, colour = scale.text(value), contrast(value, image)
        write_field(axes, field, text, colour, size)

    experts = [shorten(expert, EXPERT_SIZE, LONGEST_NAME) for expert in level.experts]
    lines = [shorten(line, LINE_SIZE, layout.label - 0.1) for line in level.lines]
    slanted: dict[str, Any] = SLANTED
    axes.set_xticks(range(len(experts)), experts, size=EXPERT_SIZE, color=INK, **slanted)
    axes.set_yticks(range(len(lines)), lines, size=LINE_SIZE, color=INK)
    if layout.head and level.name:
        axes.set_title(level.name, size=7.5, color=MUTED, loc="left", pad=3)
    return image


def _field_size(cell: float) -> float:
    """Font size of the numbers in fields of this size in inches."""
    if cell > 0.36:
        return 7.5
    return 6.5 if cell > 0.28 else 5.5


def _file_name(model: str) -> str:
    """The model's name for a file, with a digest where it had to be changed: two models may differ
    in signs only, and a file name may not be too long.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    if slug == model.lower():
        return slug
    return f"{slug[:40].strip('-')}-{digest(model)[:6]}"
