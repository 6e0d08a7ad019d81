"""Cosines between the tasks' gradients at the end of the run: a line a balancer, a column a model
or a pair of tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from matplotlib.colors import Normalize

from mtlkit.report.figures.context import Context, uniform_first
from mtlkit.report.figures.fields import Fields, Scale, foot_of, room_for
from mtlkit.report.figures.sheet import Drawing, Sheet
from mtlkit.report.figures.style import DIVERGING, MUTED, WIDTH
from mtlkit.report.tables import fixed

CAPTION = (
    "Cosine between the gradients of each two tasks with respect to all shared parameters, on one "
    "fixed probe batch at the last evaluation point, averaged over seeds. Blue, above 0: the tasks "
    "pull the shared parameters the same way. Orange, below 0: they conflict, and a step for one "
    "undoes part of the other. The colours span the values shown, symmetric about 0, not always −1 "
    "to 1."
)
STEPS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)  # where the colours may end
CELL = 0.46  # width of a field, if there is room
LINE = 0.24  # height of a field
HEAD = 0.3  # height of a panel's name
GAP = 0.3
LONGEST_BALANCER = 2.2

Column = tuple[str, str]  # a model and a pair of tasks


@dataclass(frozen=True)
class _Panel:
    """Columns under one name: the models of a pair of tasks, or the pairs of the only model."""

    title: str
    columns: list[Column]
    names: list[str]


def draw(context: Context) -> list[Drawing]:
    """Fields of balancers x models, a panel a pair of tasks."""
    cosines = _cosines(context)
    if not cosines:
        return []
    balancers = sorted({balancer for balancer, _ in cosines}, key=uniform_first)
    panels = _panels(list(dict.fromkeys(column for _, column in cosines)))

    # Panels flow from left to right; balancers are named at the left of each line of panels.
    label = room_for(balancers, LONGEST_BALANCER) + 0.14
    foot = foot_of([name for panel in panels for name in panel.names])
    widest = max(len(panel.columns) for panel in panels)
    cell = min(CELL, (WIDTH - 0.3 - label) / widest)
    pitch = max(cell * widest, 1.0) + GAP
    in_line = max(1, int((WIDTH - 0.2 - label + GAP) / pitch))
    height = HEAD + LINE * len(balancers) + foot
    lines = -(-len(panels) // in_line)
    sheet = Sheet("Gradient cosine between tasks, end of the run", context.subtitle, height * lines)

    scale = _scale(list(cosines.values()))
    image = None
    for index, panel in enumerate(panels):
        line, place = divmod(index, in_line)
        fields = Fields(0.1 + label + place * pitch, HEAD + line * height, cell, LINE)
        values = [
            [cosines.get((balancer, column), np.nan) for column in panel.columns]
            for balancer in balancers
        ]
        image = fields.draw(sheet, np.array(values), scale)
        fields.name_columns(sheet, panel.names, len(balancers))
        sheet.heading(fields.left, fields.top - 0.05, panel.title, 8, pitch - 0.1)
        if place == 0:
            fields.name_lines(sheet, balancers, label)
    sheet.colourbar(image, scale.label, list(scale.ticks))
    return [Drawing("cosine-end", "Gradient cosine at the end of the run", CAPTION, sheet.figure)]


def _cosines(context: Context) -> Mapping[tuple[str, Column], float]:
    """Balancer and column to the mean cosine over seeds; NaN where it is not defined."""
    cosines = {}
    for row, probes in context.probed():
        if not probes.has_cosines:
            continue
        matrix = probes.last(probes.cosine)[0]  # (T, T), with respect to all shared parameters
        for one, other in combinations(range(len(probes.tasks)), 2):
            pair = f"{probes.tasks[one]} · {probes.tasks[other]}"
            cosines[row.group.balancer, (row.group.model, pair)] = float(matrix[one, other])
    return cosines


def _panels(columns: list[Column]) -> list[_Panel]:
    models = list(dict.fromkeys(model for model, _ in columns))
    pairs = list(dict.fromkeys(pair for _, pair in columns))
    if len(models) == 1:
        return [_Panel(models[0], columns, pairs)]
    return [_Panel(pair, [(model, pair) for model in models], models) for pair in pairs]


def _scale(cosines: list[float]) -> Scale:
    """Colours that end at the first step that holds all values."""
    largest = float(np.nanmax(np.abs(cosines), initial=0.0))
    end = next((step for step in STEPS if step >= largest - 1e-9), 1.0)
    return Scale(
        DIVERGING,
        Normalize(-end, end),
        [-end, -end / 2, 0, end / 2, end],
        "cosine (conflict < 0 < agreement)",
        lambda value: fixed(value, 2),
        ("–", MUTED),
    )
