"""Cosines between the tasks' gradients over the run: a line a balancer, a panel a model and part of
the model.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from mtlkit.report.figures.style import GRID, MUTED, WIDTH, Context, Drawing, Sheet, shorten
from mtlkit.report.probe_frames import Probes, mean_over
from mtlkit.report.summary import Row

CAPTION = (
    "The same cosine at every evaluation point, {what}. Lines are means over seeds, shading their range. A row of "
    "panels is one model, a panel one part of its shared parameters; at most four parts are shown. Above 0 the tasks "
    "agree, below 0 they conflict."
)
PARTS = 4


def draw(context: Context) -> list[Drawing]:
    """Panels of models x parts."""
    shown = [
        (row, probes)
        for row, probes in context.probed()
        if probes.has_cosines and len(probes.epochs) > 1
    ]
    if not shown:
        return []
    models = list(dict.fromkeys(row.group.model for row, _ in shown))
    parts = {
        model: _parts([probes for row, probes in shown if row.group.model == model])
        for model in models
    }
    columns = max(len(own) for own in parts.values())
    left, gap, height, pitch = 0.72, 0.18, 1.25, 1.52
    width = min((WIDTH - left - 0.2 - gap * (columns - 1)) / columns, 4.2)
    legend = context.legend([row for row, _ in shown], models=False, lines=True)
    sheet = Sheet(
        "Gradient cosine over the run", context.subtitle, 0.32 + pitch * len(models) + 0.3, legend
    )
    low, high = _range([probes for _, probes in shown])
    for line, model in enumerate(models):
        for column, part in enumerate(parts[model]):
            axes = sheet.axes(left + column * (width + gap), 0.34 + line * pitch, width, height)
            lines = [
                (row, probes)
                for row, probes in shown
                if row.group.model == model and part in probes.parts
            ]
            _panel(axes, context, lines, part)
            axes.set_ylim(low, high)
            axes.set_xlim(0, float(max(probes.epochs[-1] for _, probes in shown)) * 1.02)
            axes.set_title(
                f"{shorten(model, 8.5, width * 0.6)} · {part}", size=8.5, loc="left", pad=3
            )
            if column:
                axes.set_yticklabels([])
            else:
                axes.set_ylabel("cosine")
            if line == len(models) - 1 or column >= len(parts[models[line + 1]]):
                axes.set_xlabel("epoch")
            else:
                axes.set_xticklabels([])
    pairs = {len(probes.tasks) for _, probes in shown}
    what = "between the two tasks" if pairs == {2} else "averaged over all pairs of tasks"
    return [
        Drawing(
            "cosine-run", "Gradient cosine over the run", CAPTION.format(what=what), sheet.figure
        )
    ]


def _parts(probed: list[Probes]) -> list[str]:
    """The first few parts in which some cosine is defined."""
    found = dict.fromkeys(
        part
        for probes in probed
        for place, part in enumerate(probes.parts)
        if np.isfinite(pair_mean(probes)[..., place]).any()
    )
    return list(found)[:PARTS]


def pair_mean(probes: Probes) -> np.ndarray:
    """(S, P, K): the mean cosine over all pairs of tasks."""
    upper = np.triu_indices(len(probes.tasks), 1)
    return mean_over(probes.cosine[..., upper[0], upper[1]], axis=-1)


def _range(shown: list[Probes]) -> tuple[float, float]:
    values = np.concatenate([pair_mean(probes).ravel() for probes in shown])
    values = values[np.isfinite(values)]
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    margin = 0.08 * max(high - low, 0.02)
    return max(low - margin, -1.05), min(high + margin, 1.05)


def _panel(axes: Axes, context: Context, lines: list[tuple[Row, Probes]], part: str) -> None:
    axes.axhline(0, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
    axes.grid(color=GRID, linewidth=0.7)
    for row, probes in lines:
        values = pair_mean(probes)[..., probes.parts.index(part)]
        colour = context.look.colour(row)
        known = np.isfinite(values).any(axis=0)
        if not known.any():
            continue
        epochs = probes.epochs[known]
        low = np.where(np.isfinite(values), values, np.inf).min(axis=0)[known]
        high = np.where(np.isfinite(values), values, -np.inf).max(axis=0)[known]
        axes.fill_between(epochs, low, high, color=colour, alpha=0.12, linewidth=0, zorder=2)
        axes.plot(
            epochs,
            mean_over(values, axis=0)[known],
            color=colour,
            linewidth=1.4,
            linestyle=context.look.dashes.get(row.group.balancer, "-"),
            zorder=3,
        )
