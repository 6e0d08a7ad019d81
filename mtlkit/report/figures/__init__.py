"""One file a figure: each has ``draw(context)`` and returns its drawings, none when there is
nothing to show.
"""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl

from mtlkit.report.figures import (
    cosine_end,
    cosine_run,
    expert_ablation,
    gate_entropy,
    gate_usage,
    metric_dots,
    pareto_front,
    task_weights,
)
from mtlkit.report.figures.style import RC, Context, Drawing

FIGURES = (
    metric_dots,
    pareto_front,
    cosine_end,
    cosine_run,
    gate_usage,
    expert_ablation,
    gate_entropy,
    task_weights,
)
"""In the order of the page."""


def draw_all(context: Context) -> Iterator[Drawing]:
    """All figures of one data set block."""
    with mpl.rc_context(RC):
        for module in FIGURES:
            yield from module.draw(context)
