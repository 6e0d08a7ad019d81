"""Cosines between the tasks' gradients over the run: a line a balancer, a panel a model and
module of the model.
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
MOST_MODULES = 4
Probed = list[tuple[Row, Probes]]


def draw(context: Context) -> list[Drawing]:
    """Panels of models x modules."""
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
    modules = [_shown_modules(probed) for probed in by_model.values()]

    # A line of panels a model, a column a module.
    columns = max(len(names) for names in modules)
    width = min(panel_width(columns, left=0.72, right=0.2, gap=0.18), 4.2)
    grid = PanelGrid(left=0.72, top=0.34, width=width, height=1.25, gap=0.18, pitch=1.52)
    sheet = Sheet(
        "Gradient cosine over the run",
        context.subtitle,
        0.32 + grid.pitch * len(by_model) + 0.3,
        context.balancer_legend([row for row, _ in shown], lines=True),
    )

    # All panels share both axes, so that their curves can be compared.
    low, high = _range([probes for _, probes in shown])
    last_epoch = float(max(probes.epochs[-1] for _, probes in shown))
    for line, (model, probed) in enumerate(by_model.items()):
        for column, module in enumerate(modules[line]):
            axes = grid.axes(sheet, line, column)
            _panel(axes, context, probed, module)
            title = f"{shorten(model, 8.5, width * 0.6)} · {module}"
            axes.set_title(title, size=8.5, loc="left", pad=3)
            axes.set_ylim(low, high)
            shared_y_axis(axes, "cosine", labelled=column == 0)

            # Below a panel there may be none, on the last line or where the next one is shorter.
            lowest = line == len(by_model) - 1 or column >= len(modules[line + 1])
            epoch_axis(axes, last_epoch, labelled=lowest)

    two_tasks = all(len(probes.tasks) == 2 for _, probes in shown)
    averaged = "between the two tasks" if two_tasks else "averaged over all pairs of tasks"
    caption = CAPTION.format(averaged=averaged)
    return [Drawing("cosine-run", "Gradient cosine over the run", caption, sheet.figure)]


def _shown_modules(probed: Probed) -> list[str]:
    """The first few modules in which some cosine is defined."""
    defined: dict[str, None] = {}
    for _, probes in probed:
        cosines = pair_mean(probes)  # (S, P, K)
        for index, module in enumerate(probes.modules):
            if np.isfinite(cosines[..., index]).any():
                defined[module] = None
    return list(defined)[:MOST_MODULES]


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


def _panel(axes: Axes, context: Context, probed: Probed, module: str) -> None:
    """The curves of one model in one of its modules: mean over seeds, and their range."""
    neutral_line(axes, 0)
    for row, probes in probed:
        if module not in probes.modules:
            continue
        cosines = pair_mean(probes)[..., probes.modules.index(module)]  # (S, P)
        finite = np.isfinite(cosines)
        defined = finite.any(axis=0)  # (P,)
        if not defined.any():
            continue

        # Points at which no seed has a cosine are left out.
        epochs = probes.epochs[defined]
        low = np.where(finite, cosines, np.inf).min(axis=0)[defined]
        high = np.where(finite, cosines, -np.inf).max(axis=0)[defined]
        colour = context.look.colour(row)
        axes.fill_between(epochs, low, high, color=colour, alpha=0.12, linewidth=0, zorder=2)
        axes.plot(epochs, mean_over(cosines, axis=0)[defined], **context.look.line(row))
