"""One file a figure: each has ``draw(context)`` and returns its drawings, none when there is
nothing to show.

What figures share: ``style`` (colours, markers, sizes), ``text`` (its width), ``sheet`` (title,
legend and panels in inches), ``context`` (what a figure may read), ``axes`` (limits, heatmaps,
curves over the run), ``labels`` (beside points) and ``expert_grid`` (of gates and ablations).
"""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl

from mtlkit.report.figures import (
    calibration,
    conflict_rate,
    cosine_end,
    cosine_run,
    expert_ablation,
    gate_entropy,
    gate_usage,
    learning_curves,
    metric_dots,
    pareto_front,
    published_dots,
    task_similarity,
    task_weights,
    trials,
)
from mtlkit.report.figures.context import Context
from mtlkit.report.figures.sheet import Drawing
from mtlkit.report.figures.style import RC

FIGURES = (
    metric_dots,
    pareto_front,
    published_dots,
    calibration,
    learning_curves,
    task_similarity,
    cosine_end,
    cosine_run,
    conflict_rate,
    gate_usage,
    expert_ablation,
    gate_entropy,
    task_weights,
    trials,
)
"""In the order of the page."""


def draw_all(context: Context) -> Iterator[Drawing]:
    """All figures of one data set block."""
    for module in FIGURES:
        with mpl.rc_context(RC):
            drawings = module.draw(context)
        yield from drawings
