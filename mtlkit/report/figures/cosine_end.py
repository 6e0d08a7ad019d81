"""Cosines between the tasks' gradients at the end of the run: a matrix a row."""

from __future__ import annotations

from collections import Counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from mtlkit.report.figures.style import (
    DIVERGING,
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
from mtlkit.report.probe_frames import Probes

CAPTION = (
    "Cosine between the gradients of each two tasks with respect to all shared parameters, on one fixed probe batch "
    "at the last evaluation point, averaged over seeds. Blue, above 0: the tasks pull the shared parameters the same "
    "way. Orange, below 0: they conflict, and a step for one undoes part of the other. The colours span the values "
    "shown, symmetric about 0, not always −1 to 1."
)
STEPS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


def draw(context: Context) -> list[Drawing]:
    """Small multiples of tasks x tasks heatmaps."""
    shown = [(row, probes) for row, probes in context.probed() if probes.has_cosines]
    if not shown:
        return []
    matrices = [probes.last(probes.cosine)[0] for _, probes in shown]
    count = max(len(matrix) for matrix in matrices)
    names = [name for _, probes in shown for name in probes.tasks]
    label = min(max(text_width(name, 7.5) for name in names), 0.9) + 0.1
    cell = 0.5 if count == 2 else 0.42 if count <= 4 else 0.3
    panel, gap = cell * count, 0.2
    columns = max(1, min(len(shown), 6, int((WIDTH - 0.2 - label + gap) / (panel + gap))))
    places = _places([row.group.model for row, _ in shown], columns)
    columns = max(column for _, column in places) + 1
    gap = min((WIDTH - 0.3 - label - columns * panel) / max(columns - 1, 1), 0.9)
    slanted = max(text_width(name, 7.5) for name in names) > cell
    foot = (label * 0.75 + 0.1) if slanted else 0.2
    pitch = 0.42 + panel + foot
    sheet = Sheet(
        "Gradient cosine between tasks, end of the run",
        context.subtitle,
        pitch * (places[-1][0] + 1) + 0.1,
    )
    end = _end(matrices)
    image = None
    for (line, column), (row, probes), matrix in zip(places, shown, matrices, strict=True):
        left = 0.1 + label + column * (panel + gap)
        axes = sheet.axes(left, 0.42 + line * pitch, panel, panel)
        image = _panel(axes, matrix, end, 8 if cell > 0.4 else 7 if cell > 0.32 else 6)
        _ticks(axes, probes, label, column == 0, slanted)
        room = panel + gap - 0.08
        sheet.text(
            left,
            0.22 + line * pitch,
            shorten(row.group.model, 8, room, bold=True),
            size=8,
            weight="bold",
            va="bottom",
        )
        sheet.text(
            left,
            0.365 + line * pitch,
            shorten(row.group.balancer, 8, room),
            size=8,
            color=MUTED,
            va="bottom",
        )
    sheet.colourbar(image, "cosine (conflict < 0 < agreement)", [-end, -end / 2, 0, end / 2, end])
    return [Drawing("cosine-end", "Gradient cosine at the end of the run", CAPTION, sheet.figure)]


def _places(models: list[str], columns: int) -> list[tuple[int, int]]:
    """Line and column of each panel: a line a model where that fills the page well, else one after
    the other.
    """
    counts = Counter(models)
    if max(counts.values()) < 3 or max(counts.values()) > columns:
        return [divmod(place, columns) for place in range(len(models))]
    order = list(counts)
    seen: Counter[str] = Counter()
    places = []
    for model in models:
        places.append((order.index(model), seen[model]))
        seen[model] += 1
    return places


def _end(matrices: list[np.ndarray]) -> float:
    largest = max((_largest(matrix) for matrix in matrices), default=0.0)
    return next((step for step in STEPS if step >= largest - 1e-9), 1.0)


def _largest(matrix: np.ndarray) -> float:
    off = np.abs(matrix[~np.eye(len(matrix), dtype=bool)])
    off = off[np.isfinite(off)]
    return float(off.max()) if len(off) else 0.0


def _panel(axes: Axes, matrix: np.ndarray, end: float, size: float) -> object:
    count = len(matrix)
    shown = np.where(np.eye(count, dtype=bool), np.nan, matrix)
    axes.set_facecolor("#eef0f2")
    image = axes.imshow(
        shown, cmap=DIVERGING, norm=Normalize(-end, end), aspect="auto", interpolation="nearest"
    )
    for line in range(count):
        for column in range(count):
            value = shown[line, column]
            if np.isfinite(value):
                text = f"{round(float(value), 2) + 0.0:.2f}".replace("-", "−")
                axes.text(
                    column,
                    line,
                    text,
                    ha="center",
                    va="center",
                    size=size,
                    color=contrast(value, image),
                )
            elif line != column:
                axes.text(column, line, "NA", ha="center", va="center", size=size, color=MUTED)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks(np.arange(count - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(count - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0)
    return image


def _ticks(axes: Axes, probes: Probes, label: float, first: bool, slanted: bool) -> None:
    places = range(len(probes.tasks))
    names = [shorten(name, 7.5, label) for name in probes.tasks]
    turn = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(places, names, size=7.5, color=INK, **turn)  # type: ignore[arg-type]
    axes.set_yticks(places, names if first else [""] * len(names), size=7.5, color=INK)
    axes.tick_params(axis="both", pad=3)
