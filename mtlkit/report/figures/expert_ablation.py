"""What every expert is good for: a figure a model, of runs that recorded an ablation."""

from __future__ import annotations

from matplotlib.colors import Normalize

from mtlkit.report.experts import ExpertLevel
from mtlkit.report.figures.context import Context
from mtlkit.report.figures.expert_grid import CROSS, ExpertFigure, Level, draw_models
from mtlkit.report.figures.fields import Scale
from mtlkit.report.figures.sheet import Drawing
from mtlkit.report.figures.style import DIVERGING
from mtlkit.report.probe_frames import mean_over

CAPTION = (
    "What the experts of {model} are good for: the change of each task's metric (row) on the "
    "validation split, times 1000, when the output of one expert (column) is taken to be 0 in the "
    "trained model, averaged over seeds. {levels}Orange: the task does worse without the expert."
)


def draw(context: Context) -> list[Drawing]:
    """One drawing a model with an ablation."""
    return draw_models(context, lambda level: level.has_ablation, _means, _figure)


def _means(level: ExpertLevel, tasks: tuple[str, ...]) -> Level:
    """Tasks x experts: changes, which are losses with the other sign."""
    changes = -1000 * mean_over(level.losses, axis=0)  # (T, E)
    return Level(level.name, tasks, level.experts, changes)


def _figure(largest: float) -> ExpertFigure:
    """Colours symmetric about 0, and not of zero length where no expert changes anything."""
    end = largest or 1.0
    scale = Scale(
        DIVERGING,
        Normalize(-end, end),
        [-end, 0, end],
        "change of the metric x 1000",
        _number,
        CROSS,
    )
    return ExpertFigure("ablation", "Ablation of experts", CAPTION, scale)


def _number(value: float) -> str:
    """Two digits where there is room for them."""
    text = f"{value:.0f}" if abs(value) >= 9.95 else f"{value:.1f}".replace("-0.0", "0.0")
    return text.replace("-", "\u2212")
