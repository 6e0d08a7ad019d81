"""What every expert is good for: a figure a model, of runs that recorded an ablation."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import Normalize

from mtlkit.report.figures.context import Context
from mtlkit.report.figures.expert_grid import ExpertFigure, Level, Scale, by_model, draw_model
from mtlkit.report.figures.sheet import Drawing
from mtlkit.report.figures.style import DIVERGING
from mtlkit.report.probe_frames import Probes, mean_over

CAPTION = (
    "What the experts of {model} are good for: the change of each task's metric (row) on the "
    "validation split, times 1000, when the output of one expert (column) is taken to be 0 in the "
    "trained model, averaged over seeds. {levels}Orange: the task does worse without the expert."
)


def draw(context: Context) -> list[Drawing]:
    """One drawing a model with an ablation."""
    shown = [(row, levels_of(probes)) for row, probes in context.probed() if probes.ablation]
    drawings = []
    for model, rows in by_model(shown).items():
        # Symmetric about 0, and not of zero length where no expert changes anything.
        changes = [np.abs(level.values) for _, levels in rows for level in levels]
        largest = max(float(np.nanmax(change, initial=0)) for change in changes)
        end = largest or 1.0
        scale = Scale(
            DIVERGING, Normalize(-end, end), [-end, 0, end], "change of the metric x 1000", number
        )
        figure = ExpertFigure("ablation", "Ablation of experts", CAPTION, scale)
        drawings.append(draw_model(context, model, rows, figure))
    return drawings


def levels_of(probes: Probes) -> list[Level]:
    """Tasks x experts, level by level."""
    return [
        Level(
            name=name.replace("-", " "),
            lines=probes.tasks,
            experts=ablation.experts,
            values=1000 * mean_over(ablation.change, axis=0).T,  # (T, E)
        )
        for name, ablation in probes.ablation.items()
    ]


def number(value: float) -> str:
    """Two digits where there is room for them."""
    text = f"{value:.0f}" if abs(value) >= 9.95 else f"{value:.1f}".replace("-0.0", "0.0")
    return text.replace("-", "\u2212")
