"""Cosines between the tasks' gradients at the end of the run: a line a balancer, a column a model
or a pair of tasks; of many tasks, a matrix a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize

from mtlkit.report.figures.context import Context, uniform_first
from mtlkit.report.figures.fields import Fields, Scale, foot_of, overhang, room_for
from mtlkit.report.figures.sheet import Drawing
from mtlkit.report.figures.style import DIVERGING, MUTED
from mtlkit.report.figures.text import BOLD, in_two, shorten
from mtlkit.report.tables import fixed

CAPTION = (
    "Cosine between the gradients of each two tasks with respect to all shared parameters, on one "
    "fixed probe batch at the last evaluation point, averaged over seeds. Blue, above 0: the tasks "
    "pull the shared parameters the same way. Orange, below 0: they conflict, and a step for one "
    "undoes part of the other. The colours span the values shown, symmetric about 0, not always −1 "
    "to 1."
)
OF_MANY = " Of so many tasks, a panel shows one model, averaged over its balancers."
MOST_PAIRS = 10  # of tasks that have a panel or a column each
STEPS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)  # where the colours may end
CELL = 0.46  # width of a field, if there is room
LEAST_CELL = 0.28  # of two matrices beside each other
LINE = 0.24  # height of a field
HEAD = 0.3  # height of a panel's name
GAP = 0.3
LONGEST_BALANCER = 2.2


@dataclass(frozen=True)
class _Panel:
    """Fields under one name."""

    title: str
    columns: list[str]
    values: np.ndarray  # (lines, columns)


def draw(context: Context) -> list[Drawing]:
    """Fields of balancers x models, a panel a pair of tasks; or of tasks x tasks."""
    cosines = _cosines(context)
    if cosines.empty:
        return []
    is_square = cosines.groupby(level=[2, 3]).ngroups > MOST_PAIRS
    lines, panels = _by_model(cosines) if is_square else _by_pair(cosines)

    # Panels flow from left to right; what is beside them is named at the left of each line.
    names = [name for panel in panels for name in panel.columns]
    label = (
        max(room_for(lines, min(LONGEST_BALANCER, 0.35 * context.width)), overhang(names)) + 0.14
    )
    foot = foot_of(names)
    widest = max(len(panel.columns) for panel in panels)
    room = context.width - 0.3 - label
    cell = min(CELL, room / widest)
    half = (room - GAP) / 2 / widest
    if is_square and len(panels) > 1 and half >= LEAST_CELL:
        cell = min(cell, half)
    pitch = max(cell * widest, 1.0) + GAP
    in_line = max(1, int((context.width - 0.2 - label + GAP) / pitch))

    # Two tasks whose names do not fit beside each other stand below each other.
    titles = [_in_room(panel.title, pitch - 0.1) for panel in panels]
    head = HEAD + 0.14 * any("\n" in title for title in titles)
    height = head + LINE * len(lines) + foot
    title = "Gradient cosine between tasks, end of the run"
    sheet = context.sheet(title, height * -(-len(panels) // in_line), has_bar=True)

    scale = _scale(cosines)
    image = None
    for index, panel in enumerate(panels):
        line, place = divmod(index, in_line)
        fields = Fields(0.1 + label + place * pitch, head + line * height, cell, LINE)
        image = fields.draw(sheet, panel.values, scale)
        fields.name_columns(sheet, panel.columns, len(lines))
        style = {"size": 8, "weight": "bold", "va": "bottom"}
        sheet.text(fields.left, fields.top - 0.05, titles[index], **style)
        if place == 0:
            fields.name_lines(sheet, lines, label)
    sheet.colourbar(image, scale.label, list(scale.ticks))
    caption = CAPTION + OF_MANY * is_square
    return [Drawing("cosine-end", "Gradient cosine at the end of the run", caption, sheet.figure)]


def _in_room(title: str, width: float) -> str:
    """The name of a model, or of two tasks, in as many lines as it needs."""
    head, is_pair, tail = title.partition(" · ")
    if is_pair:
        return in_two(head, tail, 8 * BOLD, width)
    return shorten(title, 8, width, bold=True)


def _cosines(context: Context) -> pd.Series:
    """Mean cosines over seeds, by balancer, model and two tasks; NaN where it is not defined."""
    cosines = {}
    for row, probes in context.probed():
        if not probes.has_cosines:
            continue
        matrix = probes.last(probes.cosine)[0]  # (T, T), with respect to all shared parameters
        for (i, one), (j, other) in combinations(enumerate(probes.tasks), 2):
            cosines[row.group.balancer, row.group.model, one, other] = float(matrix[i, j])
    return pd.Series(cosines, dtype=float)


def _by_pair(cosines: pd.Series) -> tuple[list[str], list[_Panel]]:
    """A line a balancer; a panel a pair of tasks, or all pairs of the only model."""
    balancers = sorted(cosines.index.unique(0), key=uniform_first)
    models = list(cosines.index.unique(1))
    pairs = {" · ".join(pair): pair for _, _, *pair in cosines.index}
    panels = [(name, models, [(model, *pair) for model in models]) for name, pair in pairs.items()]
    if len(models) == 1:
        panels = [(models[0], list(pairs), [(models[0], *pair) for pair in pairs.values()])]
    fields = cosines.unstack([1, 2, 3]).reindex(balancers)
    return balancers, [
        _Panel(title, names, fields.reindex(columns=columns).to_numpy())
        for title, names, columns in panels
    ]


def _by_model(cosines: pd.Series) -> tuple[list[str], list[_Panel]]:
    """A line and a column a task, a panel a model, averaged over its balancers."""
    tasks = list(dict.fromkeys([*cosines.index.unique(2), *cosines.index.unique(3)]))
    means = cosines.groupby(level=[1, 2, 3]).mean()
    panels = []
    for model in cosines.index.unique(1):
        above = means[model].unstack().reindex(index=tasks, columns=tasks)
        panels.append(_Panel(model, tasks, above.combine_first(above.T).to_numpy()))
    return tasks, panels


def _scale(cosines: pd.Series) -> Scale:
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
