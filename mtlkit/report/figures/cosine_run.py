"""Cosines between the tasks' gradients over the run: a line a balancer, a panel a model and part of
the model.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from mtlkit.report.figures.axes import epoch_axis, neutral_line, shared_y_axis
from mtlkit.report.figures.context import Context
from mtlkit.report.figures.sheet import Drawing, PanelGrid, Sheet, panel_width
from mtlkit.report.figures.text import shorten
from mtlkit.report.probe_frames import Probes, mean_over
from mtlkit.report.summary import Row

CAPTION = (
    "The same cosine at every evaluation point, {averaged}. Lines are means over seeds, shading "
    "their range. A row of panels is one model, a panel one part of its shared parameters; at most "
    "four parts are shown. Above 0 the tasks agree, below 0 they conflict."
)
MOST_PARTS = 4
Probed = list[tuple[Row, Probes]]


def draw(context: Context) -> list[Drawing]:
    """Panels of models x parts of the model."""
    shown = [
        (row, probes)
        for row, probes in context.probed()
        if probes.has_cosines and len(probes.epochs) > 1
    ]
    if not shown:
        return []
    by_model: dict[str, Probed] = {}
    for row, probes in shown:
        by_model.setdefault(row.group.model, []).append((row, probes))
    parts = [_shown_parts(probed) for probed in by_model.values()]

    columns = max(len(names) for names in parts)
    width = min(panel_width(columns, left=0.72, right=0.2, gap=0.18), 4.2)
    grid = PanelGrid(left=0.72, top=0.34, width=width, height=1.25, gap=0.18, pitch=1.52)
    sheet = Sheet(
        "Gradient cosine over the run",
        context.subtitle,
        0.32 + grid.pitch * len(by_model) + 0.3,
        context.balancer_legend([row for row, _ in shown], lines=True),
    )
    low, high = _range([probes for _, probes in shown])
    last_epoch = float(max(probes.epochs[-1] for _, probes in shown))
    for line, (model, probed) in enumerate(by_model.items()):
        for column, part in enumerate(parts[line]):
            axes = grid.axes(sheet, line, column)
            _panel(axes, context, probed, part)
            title = f"{shorten(model, 8.5, width * 0.6)} · {part}"
            axes.set_title(title, size=8.5, loc="left", pad=3)
            axes.set_ylim(low, high)
            shared_y_axis(axes, "cosine", labelled=column == 0)
            lowest = line == len(by_model) - 1 or column >= len(parts[line + 1])
            epoch_axis(axes, last_epoch, labelled=lowest)

    two_tasks = all(len(probes.tasks) == 2 for _, probes in shown)
    averaged = "between the two tasks" if two_tasks else "averaged over all pairs of tasks"
    caption = CAPTION.format(averaged=averaged)
    return [Drawing("cosine-run", "Gradient cosine over the run", caption, sheet.figure)]


def _shown_parts(probed: Probed) -> list[str]:
    """The first few parts of the model in which some cosine is defined."""
    defined: dict[str, None] = {}
    for _, probes in probed:
        cosines = pair_mean(probes)  # (S, P, K)
        for index, part in enumerate(probes.parts):
            if np.isfinite(cosines[..., index]).any():
                defined[part] = None
    return list(defined)[:MOST_PARTS]


def pair_mean(probes: Probes) -> np.ndarray:
    """(S, P, K): the mean cosine over all pairs of tasks."""
    one, other = np.triu_indices(len(probes.tasks), 1)
    return mean_over(probes.cosine[..., one, other], axis=-1)


def _range(shown: list[Probes]) -> tuple[float, float]:
    """Limits that hold 0 and all cosines."""
    cosines = np.concatenate([pair_mean(probes).ravel() for probes in shown])
    cosines = cosines[np.isfinite(cosines)]
    low = min(cosines.min(), 0.0)
    high = max(cosines.max(), 0.0)
    margin = 0.08 * max(high - low, 0.02)
    return max(low - margin, -1.05), min(high + margin, 1.05)


def _panel(axes: Axes, context: Context, probed: Probed, part: str) -> None:
    """The curves of one model in one of its parts: mean over seeds, and their range."""
    neutral_line(axes, 0)
    for row, probes in probed:
        if part not in probes.parts:
            continue
        cosines = pair_mean(probes)[..., probes.parts.index(part)]  # (S, P)
        finite = np.isfinite(cosines)
        defined = finite.any(axis=0)  # (P,)
        if not defined.any():
            continue
        epochs = probes.epochs[defined]
        low = np.where(finite, cosines, np.inf).min(axis=0)[defined]
        high = np.where(finite, cosines, -np.inf).max(axis=0)[defined]
        colour = context.look.colour(row)
        axes.fill_between(epochs, low, high, color=colour, alpha=0.12, linewidth=0, zorder=2)
        axes.plot(epochs, mean_over(cosines, axis=0)[defined], **context.look.line(row))
