"""Conflict over the run: the share of pairs of tasks whose gradients have a negative cosine."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from mtlkit.report.figures.axes import epoch_axis, neutral_line, shared_y_axis
from mtlkit.report.figures.context import Context
from mtlkit.report.figures.sheet import Columns, Drawing, PanelGrid, flow_panels
from mtlkit.report.figures.text import shorten
from mtlkit.report.probe_frames import Probes, negative_share
from mtlkit.report.summary import Row

TITLE = "Conflict rate over the run"
CAPTION = (
    "The share of pairs of tasks whose gradients with respect to all shared parameters have a "
    "negative cosine, at every evaluation point; pairs are counted over all seeds, here {counted}. "
    "At 1 all tasks conflict; a rate of one half (dashed) is what gradients without any relation "
    "would have. A panel is one model."
)
FEWEST = 3
"""Pairs, over seeds, of which a share says more than the cosines do."""


def draw(context: Context) -> list[Drawing]:
    """A panel a model; nothing where there are too few pairs."""
    by_model: dict[str, list[tuple[Row, Probes]]] = {}
    for row, probes in context.probed():
        if probes.has_cosines and len(probes.epochs) > 1 and _pairs(probes) >= FEWEST:
            by_model.setdefault(row.group.model, []).append((row, probes))
    if not by_model:
        return []
    shown = [pair for rows in by_model.values() for pair in rows]

    fitting = Columns.that_fit(context.width, min(max(len(by_model), 2), 4), 1.0, 0.72, 0.2, 0.26)
    width = min(fitting.width, 4.2)
    grid = PanelGrid(left=0.72, top=0.3, width=width, height=1.2, gap=0.26, pitch=1.5)
    [places] = flow_panels([len(by_model)], fitting.number)
    legend = context.balancer_legend([row for row, _ in shown], lines=True)
    sheet = context.sheet(TITLE, 0.3 + grid.pitch * (places[-1][0] + 1) + 0.3, legend)
    last_epoch = float(max(probes.epochs[-1] for _, probes in shown))
    for (line, column), (model, rows) in zip(places, by_model.items(), strict=True):
        axes = grid.axes(sheet, line, column)
        _panel(axes, context, rows)
        axes.set_title(shorten(model, 8.5, width), size=8.5, loc="left", pad=3)
        shared_y_axis(axes, "share of pairs", labelled=column == 0)
        epoch_axis(axes, last_epoch, labelled=(line + 1, column) not in places)

    counts = sorted({_pairs(probes) for _, probes in shown})
    counted = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return [Drawing("conflict", TITLE, CAPTION.format(counted=counted), sheet.figure)]


def _pairs(probes: Probes) -> int:
    """How many pairs of tasks there are over all seeds."""
    tasks = len(probes.tasks)
    return len(probes.lengths) * tasks * (tasks - 1) // 2


def _panel(axes: Axes, context: Context, rows: list[tuple[Row, Probes]]) -> None:
    neutral_line(axes, 0.5)
    for row, probes in rows:
        rates = negative_share(probes.pair_cosines[:, :, 0], axis=(0, 2))  # of all that is shared
        known = np.isfinite(rates)
        axes.plot(probes.epochs[known], rates[known], **context.look.line(row))
    axes.set_ylim(-0.04, 1.04)
    axes.set_yticks([0, 0.5, 1])
