"""What fixed weights reach on two tasks: the front of a sweep, its interval over seeds a band."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Polygon

from mtlkit.report.blocks import TaskInfo
from mtlkit.report.figures.sheet import Entry
from mtlkit.report.figures.style import DASHES, MUTED
from mtlkit.report.statistics import pareto_front
from mtlkit.report.summary import Row

CAPTION = (
    "Grey stairs are the front of fixed weights, a model each: what its sweep reaches in the mean. "
    "Their band runs from the lower to the upper ends of the intervals of the weightings on that "
    "front; a balancer inside of it is not told apart from the sweep by this figure."
)
MOST = 3  # models whose front is drawn
Sweeps = Sequence[Sequence[Row]]


def sweep_legend(sweeps: Sweeps) -> list[Entry]:
    """An entry a model."""
    return [
        Entry(f"fixed weights, {rows[0].group.model}", MUTED, "", DASHES[index])
        for index, rows in enumerate(sweeps[:MOST])
    ]


def draw_attained(axes: Axes, across: TaskInfo, up: TaskInfo, sweeps: Sweeps) -> None:
    """Draw the fronts, below everything else, into axes with their final limits."""
    signs = np.array([1 if task.reading.higher_is_better else -1 for task in (across, up)])
    limits = np.array([axes.get_xlim(), axes.get_ylim()]) * signs[:, None]
    for index, rows in enumerate(sweeps[:MOST]):
        pairs = [(row.metric[across.name], row.metric[up.name]) for row in rows]
        means = np.array([[x.mean, y.mean] for x, y in pairs]) * signs
        halves = np.array([[x.half, y.half] for x, y in pairs])
        on_front = pareto_front(means)
        means, halves = means[on_front], halves[on_front]

        # Where some weighting has one seed, nobody knows how wide the band is.
        if np.isfinite(halves).all():
            worst = stairs(means - halves, limits.min(axis=1))
            best = stairs(means + halves, limits.min(axis=1))
            outline = np.vstack([best, worst[::-1]]) * signs
            band = Polygon(outline, facecolor=MUTED, alpha=0.13, linewidth=0, zorder=0.5)
            axes.add_patch(band)
        line = stairs(means, limits.min(axis=1)) * signs
        axes.plot(*line.T, color=MUTED, linewidth=1, linestyle=DASHES[index], zorder=1.5)


def stairs(points: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """(N, 2) the upper right edge of all that some points are at least as good as, from the left
    end of a panel to its lower end.

    Args:
        points: (P, 2), on scales on which higher is better.
        corner: (2,) the lower left corner of the panel.
    """
    front = points[pareto_front(points)]
    front = front[np.argsort(front[:, 0], kind="stable")]  # and so falling on the other axis
    left, low = np.minimum(corner, front.min(axis=0))
    xs = np.concatenate([[left], np.repeat(front[:, 0], 2)])
    ys = np.concatenate([np.repeat(front[:, 1], 2), [low]])
    return np.column_stack([xs, ys])
