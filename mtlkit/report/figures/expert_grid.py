"""Fields of gates or tasks x experts, level by level, for a model under each balancer: what the
figures of gates and of ablations have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from mtlkit.report.blocks import slug
from mtlkit.report.experts import ExpertLevel, levels_of
from mtlkit.report.figures.context import Context
from mtlkit.report.figures.fields import Fields, Scale, foot_of, overhang, room_for
from mtlkit.report.figures.sheet import Drawing, Sheet
from mtlkit.report.figures.style import MUTED
from mtlkit.report.summary import Row
from mtlkit.spec import digest

CELL = 0.44  # width of a field, if there is room
LEAST_CELL = 0.32
LINE = 0.27  # height of a field
GAP = 0.3
HEAD = 0.26  # height of the balancer's name
LONGEST_LINE = 1.1
CROSS = ("×", "#a9b1b8")
MOST = 12  # balancers that the figure of a model shows

ALIGNED = (
    "Experts are interchangeable, so those of different seeds were first put into the order in "
    "which they are most alike (an assignment by gate weights and ablations, within each kind of "
    "expert); numbers of experts mean nothing beyond that, and not the same in two balancers. "
    "Matching makes seeds look a little more alike than they are: the table of expert use has "
    "numbers that need no matching."
)


@dataclass(frozen=True)
class Level:
    """One level of a model under one balancer."""

    name: str  # such as ``level 1``
    lines: tuple[str, ...]  # names of the L gates or tasks
    experts: tuple[str, ...]  # names of the E experts
    values: np.ndarray  # (L, E), NaN where there is nothing to say


@dataclass(frozen=True)
class ExpertFigure:
    """What one of the figures shows."""

    name: str  # start of the file name
    title: str  # the model's name is added to it
    caption: str  # with places for ``model`` and ``levels``
    scale: Scale  # of its values


ModelRows = list[tuple[Row, list[Level]]]


@dataclass(frozen=True)
class _Layout:
    """Sizes in inches that all panels of a model share."""

    label: float  # width of the names at the left of a panel
    cell: float  # width of a field
    head: float  # height of a level's name; a single level needs none
    widths: list[float]  # width of each level, names included
    heights: list[float]  # height of each level, names included
    stacked: bool  # whether the levels of a balancer stand below each other, else beside each other

    @classmethod
    def of(cls, rows: Sequence[Sequence[Level]], width: float) -> _Layout:
        """The sizes that names and experts of the levels of some rows need, on a sheet of some
        width. Tuned rows of a model may differ in their number.
        """
        levels = [level for of_row in rows for level in of_row]
        experts = [expert for level in levels for expert in level.experts]
        longest = room_for([line for level in levels for line in level.lines], LONGEST_LINE)
        label = max(longest, overhang(experts)) + 0.14
        foot = foot_of(experts)
        widest = max(len(level.experts) for level in levels)
        cell = min(CELL, (width - 0.3 - label) / widest)

        # Somewhat narrower fields may make room for one balancer more on a line.
        room = width - 0.2 + GAP
        in_line = int(room / (label + LEAST_CELL * widest + GAP))
        if len(rows) > 1 and in_line > 1 and all(len(of_row) == 1 for of_row in rows):
            cell = min(CELL, (room / min(in_line, len(rows)) - GAP - label) / widest)

        # The n-th level of every row has the room of the largest one.
        places = [[level for level in place if level] for place in zip_longest(*rows)]
        widths = [label + cell * max(len(level.experts) for level in place) for place in places]
        head = 0.2 if len(places) > 1 else 0.0
        heights = [
            head + LINE * max(len(level.lines) for level in place) + foot for place in places
        ]
        stacked = sum(widths) + GAP * (len(places) - 1) > width - 0.2
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


def draw_models(
    context: Context,
    has: Callable[[ExpertLevel], bool],
    means: Callable[[ExpertLevel, tuple[str, ...]], Level],
    figure: Callable[[float], ExpertFigure],
) -> list[Drawing]:
    """A drawing a model.

    Args:
        context: Whose rows to draw.
        has: Whether a level has something to show.
        means: From a level, whose runs are aligned, and the names of the tasks to its fields.
        figure: From the largest size of a value of a model to what the figure shows.
    """
    by_model: dict[str, list[tuple[Row, list[ExpertLevel]]]] = {}
    for row, probes in context.probed():
        levels = [level for level in levels_of(probes) if has(level)]
        if levels:
            by_model.setdefault(row.group.model, []).append((row, levels))

    drawings = []
    for model, all_rows in by_model.items():
        shown, note = context.best_rows(all_rows, MOST)
        rows: ModelRows = []
        for row, levels in shown:
            tasks = context.probes[row.group.id].tasks
            rows.append((row, [means(level.aligned(), tasks) for level in levels]))
        sizes = [
            np.nanmax(np.abs(level.values), initial=0) for _, levels in rows for level in levels
        ]
        drawings.append(_draw_model(context, model, rows, figure(float(max(sizes))), note))
    return drawings


def _draw_model(
    context: Context, model: str, rows: ModelRows, figure: ExpertFigure, note: str
) -> Drawing:
    """One model: its levels under each balancer."""
    layout = _Layout.of([levels for _, levels in rows], context.width)
    columns = max(1, min(len(rows), int((context.width - 0.2 + GAP) / (layout.unit + GAP))))
    title = f"{figure.title}: {model}"
    lines = -(-len(rows) // columns)
    sheet = context.sheet(title, layout.pitch * lines, has_bar=True)

    image = None
    for index, (row, levels) in enumerate(rows):
        line, column = divmod(index, columns)
        left = 0.1 + column * (layout.unit + GAP)
        top = layout.pitch * line
        sheet.heading(left, top + 0.17, row.group.balancer, 9, layout.unit)
        image = _draw_levels(sheet, levels, layout, figure.scale, (left, top))
    sheet.colourbar(image, figure.scale.label, list(figure.scale.ticks))

    order = "Levels run from the input to the towers, the last one feeds the towers. "
    caption = figure.caption.format(model=model, levels=order if len(layout.widths) > 1 else "")
    name = f"{figure.name}-{_file_name(model)}"
    return Drawing(name, title, f"{caption} {ALIGNED}{note}", sheet.figure)


def _draw_levels(
    sheet: Sheet, levels: list[Level], layout: _Layout, scale: Scale, corner: tuple[float, float]
) -> Any:
    """The levels of one balancer, from the upper left corner of its place on."""
    left, top = corner
    image = None
    for level, width, height in zip(levels, layout.widths, layout.heights, strict=False):
        fields = Fields(left + layout.label, top + HEAD + layout.head, layout.cell, LINE)
        image = fields.draw(sheet, level.values, scale)
        fields.name_lines(sheet, level.lines, layout.label)
        fields.name_columns(sheet, level.experts, len(level.lines))
        if layout.head and level.name:
            sheet.text(
                fields.left, fields.top - 0.05, level.name, size=7.5, color=MUTED, va="bottom"
            )
        if layout.stacked:
            top += height
        else:
            left += width + GAP
    return image


def _file_name(model: str) -> str:
    """The model's name for a file, with a digest where it had to be changed: two models may differ
    in signs only, and a file name may not be too long.
    """
    name = slug(model)
    if name == model.lower():
        return name
    return f"{name[:40].strip('-')}-{digest(model)[:6]}"
