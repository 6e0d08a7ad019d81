"""Cosines between the tasks' gradients at the end of the run: a matrix a row."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from mtlkit.report.figures.axes import SLANTED, contrast, heatmap, write_field
from mtlkit.report.figures.context import Context
from mtlkit.report.figures.sheet import Drawing, PanelGrid, Sheet
from mtlkit.report.figures.style import DIVERGING, INK, MUTED, WIDTH
from mtlkit.report.figures.text import shorten, text_width
from mtlkit.report.probe_frames import Probes
from mtlkit.report.tables import fixed

CAPTION = (
    "Cosine between the gradients of each two tasks with respect to all shared parameters, on one "
    "fixed probe batch at the last evaluation point, averaged over seeds. Blue, above 0: the tasks "
    "pull the shared parameters the same way. Orange, below 0: they conflict, and a step for one "
    "undoes part of the other. The colours span the values shown, symmetric about 0, not always −1 "
    "to 1."
)
STEPS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Where the colours may end."""
TICK_SIZE = 7.5
HEAD = 0.42
"""Height of the two lines above a panel."""


def draw(context: Context) -> list[Drawing]:
    """Small multiples of tasks x tasks heatmaps."""
    shown = [(row, probes) for row, probes in context.probed() if probes.has_cosines]
    if not shown:
        return []
    matrices = [probes.last(probes.cosine)[0] for _, probes in shown]  # (T, T) each

    # Lay out the panels: square fields, task names at the left of the first column only.
    cell = _cell(max(len(matrix) for matrix in matrices))
    panel = cell * max(len(matrix) for matrix in matrices)
    longest_name = max(text_width(task, TICK_SIZE) for _, probes in shown for task in probes.tasks)
    label = min(longest_name, 0.9) + 0.1
    slanted = longest_name > cell
    foot = (label * 0.75 + 0.1) if slanted else 0.2
    places = _places([row.group.model for row, _ in shown], _most_columns(len(shown), panel, label))
    columns = max(column for _, column in places) + 1
    gap = min((WIDTH - 0.3 - label - columns * panel) / max(columns - 1, 1), 0.9)
    grid = PanelGrid(0.1 + label, HEAD, panel, panel, gap, HEAD + panel + foot)

    title = "Gradient cosine between tasks, end of the run"
    sheet = Sheet(title, context.subtitle, grid.pitch * (places[-1][0] + 1) + 0.1)
    end = _end_of_scale(matrices)
    image = None
    for (line, column), (row, probes), matrix in zip(places, shown, matrices, strict=True):
        axes = grid.axes(sheet, line, column)
        image = _panel(axes, matrix, end, _field_size(cell))
        _ticks(axes, probes, label, column == 0, slanted)

        # The model, and the balancer below it.
        room = panel + gap - 0.08
        left, top = grid.x(column), line * grid.pitch
        sheet.heading(left, 0.22 + top, row.group.model, 8, room)
        balancer = shorten(row.group.balancer, 8, room)
        sheet.text(left, 0.365 + top, balancer, size=8, color=MUTED, va="bottom")
    sheet.colourbar(image, "cosine (conflict < 0 < agreement)", [-end, -end / 2, 0, end / 2, end])
    return [Drawing("cosine-end", "Gradient cosine at the end of the run", CAPTION, sheet.figure)]


def _cell(tasks: int) -> float:
    """Inches of a field."""
    if tasks == 2:
        return 0.5
    return 0.42 if tasks <= 4 else 0.3


def _field_size(cell: float) -> int:
    """Font size of the numbers in fields of this size in inches."""
    if cell > 0.4:
        return 8
    return 7 if cell > 0.32 else 6


def _most_columns(panels: int, panel: float, label: float) -> int:
    """How many panels fit beside each other, six at most."""
    gap = 0.2
    fitting = int((WIDTH - 0.2 - label + gap) / (panel + gap))
    return max(1, min(panels, 6, fitting))


def _places(models: list[str], columns: int) -> list[tuple[int, int]]:
    """Line and column of each panel: a line a model where that fills the page well, else one after
    the other.
    """
    counts = Counter(models)
    fullest = max(counts.values())
    if fullest < 3 or fullest > columns:
        return [divmod(index, columns) for index in range(len(models))]

    lines = list(counts)
    drawn: Counter[str] = Counter()
    places = []
    for model in models:
        places.append((lines.index(model), drawn[model]))
        drawn[model] += 1
    return places


def _end_of_scale(matrices: list[np.ndarray]) -> float:
    """The first step that holds all cosines between two different tasks."""
    largest = max((_largest(matrix) for matrix in matrices), default=0.0)
    return next((step for step in STEPS if step >= largest - 1e-9), 1.0)


def _largest(matrix: np.ndarray) -> float:
    off_diagonal = np.abs(matrix[~np.eye(len(matrix), dtype=bool)])
    defined = off_diagonal[np.isfinite(off_diagonal)]
    return float(defined.max()) if len(defined) else 0.0


def _panel(axes: Axes, matrix: np.ndarray, end: float, size: float) -> Any:
    """One matrix (T, T); the diagonal, which is always 1, stays empty."""
    diagonal = np.eye(len(matrix), dtype=bool)
    image = heatmap(axes, np.where(diagonal, np.nan, matrix), DIVERGING, Normalize(-end, end))
    for field, value in np.ndenumerate(matrix):
        if diagonal[field]:
            continue
        colour = contrast(value, image) if np.isfinite(value) else MUTED
        write_field(axes, field, fixed(float(value), 2), colour, size)
    return image


def _ticks(axes: Axes, probes: Probes, label: float, first: bool, slanted: bool) -> None:
    """The tasks' names: below every panel, and at the left of the first."""
    names = [shorten(task, TICK_SIZE, label) for task in probes.tasks]
    positions = range(len(names))
    turn: dict[str, Any] = SLANTED if slanted else {}
    axes.set_xticks(positions, names, size=TICK_SIZE, color=INK, **turn)
    axes.set_yticks(positions, names if first else [""] * len(names), size=TICK_SIZE, color=INK)
