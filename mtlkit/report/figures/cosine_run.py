"""Cosines between the tasks' gradients over the run: a line a balancer, a panel a model and
module of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from mtlkit.report.figures.axes import epoch_axis, fill_between_seeds, neutral_line, shared_y_axis
from mtlkit.report.figures.context import Context
from mtlkit.report.figures.sheet import Columns, Drawing, PanelGrid, flow_panels
from mtlkit.report.figures.text import in_two
from mtlkit.report.probe_frames import Probes, mean_over
from mtlkit.report.summary import Row

CAPTION = (
    "The same cosine at every evaluation point, {averaged}. Lines are means over seeds{shading}. "
    "A row of panels is one model, a panel one part of its shared parameters; at most "
    "four parts are shown. Above 0 the tasks agree, below 0 they conflict."
)
MOST_MODULES = 4
MOST_SHADED = 8  # lines of a panel up to which the range over seeds is shaded


@dataclass(frozen=True)
class _Curves:
    """The curves of one row: epochs (P,), and module to (S, P) mean cosine over pairs of tasks."""

    row: Row
    epochs: np.ndarray
    cosines: dict[str, np.ndarray]


def draw(context: Context) -> list[Drawing]:
    """Panels of models x modules."""
    by_model: dict[str, list[_Curves]] = {}
    for row, probes in context.probed():
        if probes.has_cosines and len(probes.epochs) > 1:
            by_model.setdefault(row.group.model, []).append(_curves(row, probes))
    shown = [curves for same_model in by_model.values() for curves in same_model]
    if not shown:
        return []
    modules = [_shown_modules(same_model) for same_model in by_model.values()]
    is_shaded = max(map(len, by_model.values())) <= MOST_SHADED

    # A line of panels a model, a column a module; on narrow paper a model takes several lines.
    widest = max(len(names) for names in modules)
    fitting = Columns.that_fit(context.width, widest, 1.0, left=0.72, right=0.2, gap=0.26)
    width = min(fitting.width, 4.2)
    titles = {
        (model, module): in_two(model, module, 8.5, width)
        for model, names in zip(by_model, modules, strict=True)
        for module in names
    }
    second = 0.15 * any("\n" in title for title in titles.values())
    grid = PanelGrid(0.72, 0.34 + second, width, height=1.25, gap=0.26, pitch=1.52 + second)
    places = flow_panels([len(names) for names in modules], fitting.number)
    taken = {place for of_model in places for place in of_model}
    sheet = context.sheet(
        "Gradient cosine over the run",
        0.32 + second + grid.pitch * (places[-1][-1][0] + 1) + 0.3,
        context.balancer_legend([curves.row for curves in shown], lines=True),
    )

    # All panels share both axes, so that their curves can be compared.
    low, high = _range(shown)
    last_epoch = float(max(curves.epochs[-1] for curves in shown))
    for (model, same_model), of_model, names in zip(by_model.items(), places, modules, strict=True):
        for (line, column), module in zip(of_model, names, strict=True):
            axes = grid.axes(sheet, line, column)
            _panel(axes, context, same_model, module, is_shaded)
            axes.set_title(titles[model, module], size=8.5, loc="left", pad=3)
            axes.set_ylim(low, high)
            shared_y_axis(axes, "cosine", labelled=column == 0)
            epoch_axis(axes, last_epoch, labelled=(line + 1, column) not in taken)

    two_tasks = all(len(probes.tasks) == 2 for _, probes in context.probed())
    averaged = "between the two tasks" if two_tasks else "averaged over all pairs of tasks"
    shading = ", shading their range" if is_shaded else ""
    caption = CAPTION.format(averaged=averaged, shading=shading)
    return [Drawing("cosine-run", "Gradient cosine over the run", caption, sheet.figure)]


def _curves(row: Row, probes: Probes) -> _Curves:
    """The curves of a row, of the modules in which some cosine is defined."""
    one, other = np.triu_indices(len(probes.tasks), 1)
    by_module = mean_over(probes.cosine[..., one, other], axis=-1)  # (S, P, K)
    cosines = {}
    for index, module in enumerate(probes.modules):
        if np.isfinite(by_module[..., index]).any():
            cosines[module] = by_module[..., index]
    return _Curves(row, probes.epochs, cosines)


def _shown_modules(same_model: list[_Curves]) -> list[str]:
    """The first few modules of a model's rows."""
    modules = dict.fromkeys(module for curves in same_model for module in curves.cosines)
    return list(modules)[:MOST_MODULES]


def _range(shown: list[_Curves]) -> tuple[float, float]:
    """Limits that hold 0 and all cosines."""
    arrays = [cosines for curves in shown for cosines in curves.cosines.values()]
    low = min(0.0, *(float(np.nanmin(cosines)) for cosines in arrays))
    high = max(0.0, *(float(np.nanmax(cosines)) for cosines in arrays))
    margin = 0.08 * max(high - low, 0.02)
    return max(low - margin, -1.05), min(high + margin, 1.05)


def _panel(
    axes: Axes, context: Context, same_model: list[_Curves], module: str, is_shaded: bool
) -> None:
    """The curves of one model in one of its modules: mean over seeds, and their range."""
    neutral_line(axes, 0)
    for curves in same_model:
        if module not in curves.cosines:
            continue
        # Points at which no seed has a cosine are left out.
        cosines = curves.cosines[module]  # (S, P)
        defined = np.isfinite(cosines).any(axis=0)
        epochs, cosines = curves.epochs[defined], cosines[:, defined]
        if is_shaded:
            fill_between_seeds(axes, epochs, cosines, context.look.colour(curves.row))
        axes.plot(epochs, mean_over(cosines, axis=0), **context.look.line(curves.row))
