"""Mean weight of every expert in every gate at the end of the run: a figure a model."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import Normalize

from mtlkit.report.experts import ExpertLevel
from mtlkit.report.figures.context import Context
from mtlkit.report.figures.expert_grid import CROSS, ExpertFigure, Level, draw_models
from mtlkit.report.figures.fields import Scale
from mtlkit.report.figures.sheet import Drawing
from mtlkit.report.figures.style import SEQUENTIAL
from mtlkit.report.probe_frames import mean_over

CAPTION = (
    "How {model} uses its experts at the last evaluation point: the mean gate weight of each "
    "expert (column) in each gate (row), averaged over the validation split and over seeds; a row "
    "sums to 1. {levels}Rows that look alike mean that the tasks share experts; different ones, "
    "that they specialise. Crossed fields are experts that a gate cannot see."
)


def draw(context: Context) -> list[Drawing]:
    """One drawing a model with gates."""
    return draw_models(context, lambda level: bool(level.gates), _means, _figure)


def _means(level: ExpertLevel, _: tuple[str, ...]) -> Level:
    return Level(level.name, level.gates, level.experts, mean_over(level.weights, axis=0))


def _figure(largest: float) -> ExpertFigure:
    """The colours end at the next tenth above the largest weight."""
    end = min(1.0, float(np.ceil(largest * 10)) / 10)
    scale = Scale(
        SEQUENTIAL, Normalize(0, end), [0, end / 2, end], "mean gate weight", "{:.2f}".format, CROSS
    )
    return ExpertFigure("gates", "Use of experts", CAPTION, scale)
