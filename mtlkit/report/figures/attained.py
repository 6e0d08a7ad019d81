"""What fixed weights reach on two tasks: the front of a sweep, and how it varies over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from mtlkit.report.blocks import TaskInfo
from mtlkit.report.figures.sheet import Entry
from mtlkit.report.figures.style import DASHES, MUTED
from mtlkit.report.summary import Row

MOST = 3  # models whose front is drawn
ATTAINED_CAPTION = (
    f"Grey stairs are the front of fixed weights, of up to {MOST} models: what a sweep reaches in "
    "the mean. A band beside them is what it reaches in some seeds but not in all."
)
Sweeps = Sequence[Sequence[Row]]


def sweep_legend(sweeps: Sweeps) -> list[Entry]:
    """An entry a model."""
    return [
        Entry(f"fixed weights, {rows[0].group.model}", MUTED, "", DASHES[index])
        for index, rows in enumerate(sweeps[:MOST])
    ]


def draw_attained(axes: Axes, across: TaskInfo, up: TaskInfo, sweeps: Sweeps) -> None:
    """Draw the fronts, below everything else, into axes with their final limits."""
    # On scales on which higher is better, panels begin at their worst corner.
    tasks = (across, up)
    signs = np.array([1 if task.reading.higher_is_better else -1 for task in tasks])
    left, low = (np.array([axes.get_xlim(), axes.get_ylim()]) * signs[:, None]).min(axis=1)
    for index, rows in enumerate(sweeps[:MOST]):
        means = np.array([[row.metric[task.name].mean for task in tasks] for row in rows]) * signs
        by_seed = _by_seed(rows, tasks) * signs  # (S, W, 2)
        places = np.unique([left, *means[:, 0], *by_seed[..., 0].ravel()])

        if len(by_seed) > 1:
            reached = np.maximum([attained(points, places) for points in by_seed], low)
            axes.fill_between(
                places * signs[0], reached.min(axis=0) * signs[1], reached.max(axis=0) * signs[1],
                step="pre", color=MUTED, alpha=0.13, linewidth=0, zorder=0.5,
            )  # fmt: skip

        # The line falls to the foot of the panel behind its last step.
        line = attained(means, places)
        line, places = line[line > -np.inf], places[line > -np.inf]
        xs, ys = np.append(places, places[-1]), np.append(line, min(low, line[-1]))
        axes.step(
            xs * signs[0], ys * signs[1],
            where="pre", color=MUTED, linewidth=1, linestyle=DASHES[index], zorder=1.5,
        )  # fmt: skip


def _by_seed(rows: Sequence[Row], tasks: Sequence[TaskInfo]) -> np.ndarray:
    """(S, W, T) metrics of W rows in the seeds that all of them have."""
    seeds = set.intersection(*(set(row.values[task.name]) for row in rows for task in tasks))
    values = [[[row.values[task.name][seed] for task in tasks] for row in rows] for seed in seeds]
    return np.reshape(values, (len(seeds), len(rows), len(tasks)))


def attained(points: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(X,) the attainment surface of some points (Fonseca and Fleming, 1996): the best second value
    among those that are at least as good as each place on the first; minus infinity beyond all.

    Args:
        points: (P, 2), on scales on which higher is better.
        places: (X,) values on the first of them.
    """
    as_good = points[:, 0] >= places[:, None]  # (X, P)
    return np.asarray(np.where(as_good, points[:, 1], -np.inf).max(axis=1))
