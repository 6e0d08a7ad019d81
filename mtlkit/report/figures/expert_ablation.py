"""What every expert is good for: a figure a model, of runs that recorded an ablation."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import Normalize

from mtlkit.report.figures.expert_grid import Level, Scale, draw_model
from mtlkit.report.figures.style import DIVERGING, Context, Drawing
from mtlkit.report.probe_frames import Probes, mean_over

CAPTION = (
    "What the experts of {model} are good for: the change of each task's metric (row) on the validation split, times "
    "1000, when the output of one expert (column) is taken to be 0 in the trained model, averaged over seeds. {levels}"
    "Orange: the task does worse without the expert."
)


def draw(context: Context) -> list[Drawing]:
    """One drawing a model with an ablation."""
    shown = [(row, levels_of(probes)) for row, probes in context.probed() if probes.ablation]
    drawings = []
    for model in dict.fromkeys(row.group.model for row, _ in shown):
        own = [pair for pair in shown if pair[0].group.model == model]
        end = (
            max(float(np.nanmax(np.abs(level.values), initial=0)) for _, of in own for level in of)
            or 1.0
        )
        scale = Scale(
            DIVERGING, Normalize(-end, end), [-end, 0, end], "change of the metric x 1000", number
        )
        drawings.append(
            draw_model(context, model, own, scale, "ablation", "Ablation of experts", CAPTION)
        )
    return drawings


def levels_of(probes: Probes) -> list[Level]:
    """Tasks x experts, level by level."""
    return [
        Level(
            name.replace("-", " "),
            probes.tasks,
            found.experts,
            1000 * mean_over(found.change, axis=0).T,
        )
        for name, found in probes.ablation.items()
    ]


def number(value: float) -> str:
    """Two digits where there is room for them."""
    text = f"{value:.0f}" if abs(value) >= 9.95 else f"{value:.1f}".replace("-0.0", "0.0")
    return text.replace("-", "\u2212")
