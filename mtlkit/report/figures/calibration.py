"""Calibration: observed over predicted odds along the predictions, a panel a binary score."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from scipy.special import logit

from mtlkit.report.calibration import calibration_curve
from mtlkit.report.figures.axes import neutral_line
from mtlkit.report.figures.context import Context, Look
from mtlkit.report.figures.sheet import Columns, Drawing, PanelGrid
from mtlkit.report.figures.style import FAINT, REFERENCE_MARKER
from mtlkit.report.figures.text import shorten
from mtlkit.report.summary import Row

CAPTION = (
    "How often what is predicted does happen: observed over predicted odds, of test rows with like "
    "predictions (bins of half a unit of log-odds in which 20 positives and 20 negatives are "
    "expected). On the dashed line a model is calibrated; above it, events are more frequent than "
    "it says. Within the grey band the test rows alone explain a distance, at 95 %. Lines are "
    "means over seeds, cut off at ratios beyond 4.{left_out}"
)
MOST = 8
"""Rows that are shown."""
LEAST_REACH, MOST_REACH = 1.25, 4.0  # ratios of odds at which a vertical axis may end
CHANCES = np.array([1e-5, 1e-4, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999])
CLOSER = np.array([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
"""Probabilities that are named on an axis, and on one that is too short for two of these."""
RATIOS = (0.25, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 4)
Curve = tuple[Row, np.ndarray, np.ndarray, np.ndarray]
"""A row, and its (P,) log-odds, ratios, and their errors."""


def draw(context: Context) -> list[Drawing]:
    """Panels of the scores whose logits were kept."""
    counts = context.summary.noise.calibration
    scored = {group for group, _ in counts}
    known = [(row, row) for row in context.summary.finished if row.group.id in scored]
    shown, left_out = context.best_rows(known, MOST)
    rows = [row for row, _ in shown]

    # A panel needs a line, and a line two points.
    panels: dict[str, list[Curve]] = {}
    for task in context.summary.block.tasks:
        for row in rows:
            if (row.group.id, task.name) in counts:
                chances, ratios, errors = calibration_curve(counts[row.group.id, task.name])
                if len(chances) > 1:
                    curves = panels.setdefault(task.title, [])
                    curves.append((row, logit(chances), ratios, errors))
    if not panels:
        return []

    fitting = Columns.that_fit(context.width, min(len(panels), 3), 1.5, 0.72, 0.2, gap=0.5)
    columns, width = fitting.number, min(fitting.width, 4.2)
    lines = -(-len(panels) // columns)
    grid = PanelGrid(left=0.72, top=0.3, width=width, height=2.2, gap=0.5, pitch=2.95)
    sheet = context.sheet("Calibration", grid.pitch * lines, context.legend(rows))
    for index, (title, curves) in enumerate(panels.items()):
        axes = grid.axes(sheet, *divmod(index, columns))
        _panel(axes, context.look, curves)
        name = shorten(title, 9.5, width, bold=True)
        axes.set_title(name, size=9.5, weight="bold", loc="left", pad=6)
        if index % columns == 0:
            axes.set_ylabel("observed / predicted odds")
    return [Drawing("calibration", "Calibration", CAPTION.format(left_out=left_out), sheet.figure)]


def _panel(axes: Axes, look: Look, curves: list[Curve]) -> None:
    """The lines of one score, over what the test rows leave open."""
    # All rows are scored on the same test rows, so one band does for all: that of the longest line.
    _, places, _, errors = max(curves, key=lambda curve: len(curve[1]))
    band = np.exp(1.96 * errors)
    axes.fill_between(places, 1 / band, band, color=FAINT, alpha=0.55, linewidth=0, zorder=0)

    # Log-odds across, named by their probabilities; ratios up and down alike.
    axes.set_yscale("log")
    furthest = max(float(np.exp(np.abs(np.log(ratios)).max())) for _, _, ratios, _ in curves)
    reach = 1.05 * min(max(furthest, LEAST_REACH), MOST_REACH)
    axes.set_yticks(RATIOS, [f"{ratio:g}" for ratio in RATIOS])
    axes.set_yticks([], minor=True)
    axes.set_ylim(1 / reach, reach)
    low = min(float(places[0]) for _, places, *_ in curves)
    high = max(float(places[-1]) for _, places, *_ in curves)
    is_short = ((low <= logit(CHANCES)) & (logit(CHANCES) <= high)).sum() < 2
    named = CLOSER if is_short else CHANCES
    axes.set_xticks(logit(named), [f"{chance:g}" for chance in named])
    axes.set_xlim(low - 0.2, high + 0.2)
    axes.set_xlabel("predicted probability")
    neutral_line(axes, 1)

    for row, places, ratios, _ in curves:
        marker = look.marker(row)
        axes.plot(
            places,
            ratios,
            color=look.colour(row),
            linewidth=1.1,
            marker=marker,
            markersize=6 if marker == REFERENCE_MARKER else 4,
            markerfacecolor="white" if look.hollow(row) else None,
        )
