"""How alike tasks are in their labels, predictions and gradients: a matrix each, side by side."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import Normalize

from mtlkit.report.figures.context import Context
from mtlkit.report.figures.fields import Fields, Scale, foot_of, overhang, room_for
from mtlkit.report.figures.sheet import Drawing
from mtlkit.report.figures.style import DIVERGING, MUTED
from mtlkit.report.tables import fixed

TITLE = "How alike tasks are"
CAPTION = (
    "Labels: correlation of the labels on the test rows that have both. Predictions: rank "
    "correlation of what single-task, or else the best row, predicts. Gradients: cosine with "
    "respect to all shared parameters, over all evaluation points of all multi-task runs. Blue "
    "tasks go together, orange ones against each other; all matrices have the same colours. Tasks "
    "whose labels go together need not have gradients that do."
)
MATRICES = ("labels", "predictions", "gradients")
"""Columns of the pairs, by which their matrices are named."""
FEWEST = 3
"""Tasks: of two the table of relations has all there is."""
LINE = 0.24  # height of a field
CELL, LEAST_CELL = 0.46, 0.1  # widths of a field
HEAD, GAP = 0.3, 0.3
LONGEST_TASK = 1.4


def draw(context: Context) -> list[Drawing]:
    """The matrices of which something is known; nothing for two tasks."""
    pairs = context.relations.pairs
    if pairs.empty:
        return []
    tasks = list(dict.fromkeys([*pairs["task"], *pairs["other"]]))
    found = {name: _matrix(context, name, tasks) for name in MATRICES}
    matrices = {name: values for name, values in found.items() if np.isfinite(values).any()}
    if len(tasks) < FEWEST or not matrices:
        return []

    # As many matrices on a line as have room for their numbers, else all of them.
    longest = room_for(tasks, min(LONGEST_TASK, 0.3 * context.width))
    label = max(longest, overhang(tasks)) + 0.14
    room = context.width - 0.3 - label
    in_line = next((n for n in (3, 2) if _cell(room, n, len(tasks)) >= 0.28), 1)
    if context.width > 6 and _cell(room, 3, len(tasks)) >= LEAST_CELL:
        in_line = 3
    in_line = min(in_line, len(matrices))
    cell = min(CELL, _cell(room, in_line, len(tasks)))

    height = HEAD + LINE * len(tasks) + foot_of(tasks)
    sheet = context.sheet(TITLE, height * -(-len(matrices) // in_line), has_bar=True)
    scale = _scale(max(float(np.nanmax(np.abs(values))) for values in matrices.values()))
    image = None
    for index, (name, values) in enumerate(matrices.items()):
        line, place = divmod(index, in_line)
        left = 0.1 + label + place * (cell * len(tasks) + GAP)
        fields = Fields(left, HEAD + line * height, cell, LINE)
        image = fields.draw(sheet, values, scale)
        fields.name_columns(sheet, tasks, len(tasks))
        sheet.heading(fields.left, fields.top - 0.05, name, 8.5, cell * len(tasks) + GAP - 0.1)
        if place == 0:
            fields.name_lines(sheet, tasks, label)
    sheet.colourbar(image, scale.label, list(scale.ticks))
    return [Drawing("similarity", TITLE, CAPTION, sheet.figure)]


def _cell(room: float, in_line: int, tasks: int) -> float:
    """Width of a field, where some matrices stand beside each other."""
    return (room - GAP * (in_line - 1)) / in_line / tasks


def _matrix(context: Context, column: str, tasks: list[str]) -> np.ndarray:
    """(T, T), NaN where unknown and on the diagonal."""
    values = np.full((len(tasks), len(tasks)), np.nan)
    pairs = context.relations.pairs
    for task, other, value in zip(pairs["task"], pairs["other"], pairs[column], strict=True):
        line, place = tasks.index(task), tasks.index(other)
        values[line, place] = values[place, line] = value
    return values


def _scale(largest: float) -> Scale:
    """Colours that end at the next tenth above the largest value."""
    end = min(1.0, max(0.1, np.ceil(10 * largest - 1e-9) / 10))
    return Scale(
        DIVERGING,
        Normalize(-end, end),
        [-end, 0, end],
        "correlation or cosine",
        lambda value: fixed(value, 2),
        ("", MUTED),
    )
