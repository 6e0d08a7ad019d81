"""Small problems in the plane where the plain sum of losses fails and a balancer arrives.

    python benchmarks/balancer_toys.py [--out FILE.png]

- ``barrier``: two tasks of different scale whose gradients oppose each other across a steep valley,
  after the toy problem of CAGrad (arXiv:2110.14048) and Nash-MTL (arXiv:2202.01017). From one start
  the sum gets stuck on the slope; methods that count directions alike reach the Pareto set, where
  the gradients are opposite.
- ``scales``: L_t = s_t (|x - c_t|^2 + 2) with s = (10, 0.1). The sum has its minimum at 0.98 c_1.
  Methods that rest at weights of 1 / L_t minimise sum log L_t, whose only minimum is the midpoint
  (the 2 makes it one). FAMO has weights of that kind times learned shares, which return to equal
  ones by weight decay alone: it comes near.
- ``concave``: L_t = 1 - exp(-|x - c_t|^2), whose Pareto front is concave: every weighted sum has
  its minima near the ends of the front, where one task is lost. A smooth maximum of relative losses
  has its own in the middle.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mtlkit.balancers._build import build
from mtlkit.balancers._step import Scope, SharedGradient
from mtlkit.report.figures.style import COLOURS, DPI, FAINT, INK, MUTED, RC, WIDTH

OUT = Path(__file__).parents[1] / "results" / "reference" / "balancer-toys.png"
Problem = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""A point (2,) to losses (T,) and their gradients (T, 2)."""


# --- problems ---


def barrier(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Above the axis logarithmic walls that meet, below it two bowls; the first task's loss is a
    tenth of its size.
    """
    a, b = float(x[0]), float(x[1])
    slope = math.tanh(b)

    # how much of the landscape above the axis is there, and how fast that changes with b
    share = math.tanh(b / 2)
    change = (1 - share**2) / 2

    losses, gradients = [], []
    for side, scale in ((1, 0.1), (-1, 1.0)):
        if b > 0:
            height = -a / 2 + side * (slope - 3.5)
            loss = math.log(max(abs(height), 5e-6)) + 6
            along = np.zeros(2)
            if abs(height) > 5e-6:
                along = np.array([-0.5, side * (1 - slope**2)]) / height
            gradient = along * share + np.array([0, loss * change])
            loss *= share
        else:
            loss = ((7 * side - a) ** 2 + 0.1 * (b + 8) ** 2) / 10 - 20
            along = np.array([(a - 7 * side) / 5, 0.02 * (b + 8)])
            gradient = -along * share - np.array([0, loss * change])
            loss *= -share
        losses.append(scale * (loss + 21))  # 21 makes it positive
        gradients.append(scale * gradient)
    return np.array(losses), np.array(gradients)


CENTRES = np.array([[1.0, 0.0], [-1.0, 0.0]])
SCALES = np.array([10.0, 0.1])


def scales(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two bowls of different depth and unit."""
    away = x - CENTRES
    return SCALES * ((away**2).sum(1) + 2), 2 * SCALES[:, None] * away


def concave(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two wells, flat far away."""
    away = x - CENTRES
    depth = np.exp(-(away**2).sum(1))
    return 1 - depth, 2 * depth[:, None] * away


# --- descent ---


@dataclass
class PlaneStep:
    """A step (see ``mtlkit.balancers._step.Step``) at a point of a problem; all batches are alike."""

    losses: Tensor
    task_gradients: Tensor
    index: int
    total: int
    seed: int = 0
    active: Tensor = field(init=False)
    callbacks: list[Callable[[Tensor], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.active = torch.ones(len(self.losses), dtype=torch.bool)

    def gramian(self, scope: Scope | None = None) -> Tensor:
        return self.task_gradients @ self.task_gradients.T

    def jacobian(self, scope: Scope | None = None) -> Tensor:
        return self.task_gradients

    def jacobian_columns(self, scope: Scope | None = None) -> dict[str, slice]:
        return {"x": slice(0, self.task_gradients.shape[1])}

    def grad_norms(self, part: str) -> Tensor:
        return self.task_gradients.norm(dim=1)

    def fresh_batch(self) -> PlaneStep:
        return self

    def after_step(self, callback: Callable[[Tensor], None]) -> None:
        self.callbacks.append(callback)


def descend(
    problem: Problem, balancer: str, start: Sequence[float], steps: int, lr: float
) -> np.ndarray:
    """(steps + 1, 2) the path of Adam under a balancer, given with its options in brackets."""
    x = np.array(start, dtype=float)
    method = build(balancer, tasks=len(problem(x)[0]))
    mean, square = np.zeros(2), np.zeros(2)
    path = [x]
    for index in range(steps):
        # the gradient that the balancer makes of those of the tasks
        losses, gradients = problem(x)
        step = PlaneStep(torch.from_numpy(losses), torch.from_numpy(gradients), index, steps)
        decision = method.decide(step)
        if isinstance(decision, SharedGradient):
            grad = decision.vector.numpy()
        else:
            grad = decision.double().numpy() @ gradients

        # Adam
        mean = 0.9 * mean + 0.1 * grad
        square = 0.99 * square + 0.01 * grad**2
        root = np.sqrt(square / (1 - 0.99 ** (index + 1))) + 1e-8
        x = x - lr * mean / (1 - 0.9 ** (index + 1)) / root
        path.append(x)

        for callback in step.callbacks:
            callback(torch.from_numpy(problem(x)[0]))
    return np.array(path)


def stationarity(problem: Problem, x: np.ndarray) -> float:
    """The least norm of a convex combination of two tasks' unit gradients: 0 where they are
    opposite.
    """
    _, gradients = problem(x)
    units = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    return math.sqrt(max(0.0, (1 + units[0] @ units[1]) / 2))


@dataclass(frozen=True)
class Panel:
    """One problem, and what is run on it.

    Args:
        title: Heading.
        problem: The problem.
        balancers: With options in brackets; uniform first.
        starts: Where to begin.
        steps: Of Adam.
        lr: Its learning rate.
    """

    title: str
    problem: Problem
    balancers: tuple[str, ...]
    starts: tuple[tuple[float, float], ...]
    steps: int
    lr: float

    def paths(self) -> dict[str, list[np.ndarray]]:
        return {
            name: [descend(self.problem, name, start, self.steps, self.lr) for start in self.starts]
            for name in self.balancers
        }


PANELS = {
    "barrier": Panel(
        "Opposing gradients",
        barrier,
        ("uniform", "nash", "db-mtl"),
        ((-8.5, 7.5), (9.0, 9.0)),
        3000,
        0.01,
    ),
    "scales": Panel(
        "Losses of different size (100 : 1)",
        scales,
        ("uniform", "uwl[lr=0.05]", "imtl-l[lr=0.05]", "gls", "famo"),
        ((0.4, 1.6), (-1.4, 1.2)),
        2000,
        0.02,
    ),
    "concave": Panel(
        "A concave Pareto front",
        concave,
        ("uniform", "stch[mu=0.05,warmup=5]"),
        ((0.1, 0.9), (-0.1, -0.8)),
        1000,
        0.01,
    ),
}


# --- figure ---


def draw(paths: dict[str, dict[str, list[np.ndarray]]]) -> Figure:
    """One panel a problem."""
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 3.75), layout="constrained")
        names = dict.fromkeys(name for panel in PANELS.values() for name in panel.balancers[1:])
        colours = {"uniform": MUTED} | dict(zip(names, COLOURS, strict=False))
        for ax, (name, panel) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
            BACKGROUNDS[name](ax)
            for balancer, by_start in paths[name].items():
                for path in by_start:
                    # the concave front is one of losses, the other problems are seen from above
                    points = np.array([concave(x)[0] for x in path]) if name == "concave" else path
                    draw_path(ax, points, colours[balancer])
                label = balancer.partition("[")[0]
                ax.plot([], [], "s-", color=colours[balancer], label=label, markersize=5)
            ax.set_title(panel.title, fontsize=9, loc="left")
            ax.legend(
                frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3
            )
        return figure


def draw_path(ax: Axes, points: np.ndarray, colour: str) -> None:
    """A path from a white dot to a square."""
    ax.plot(*points.T, color=colour, linewidth=1.3, zorder=3)
    ax.plot(*points[0], "o", color="white", markeredgecolor=INK, markersize=4.5, zorder=4)
    ax.plot(*points[-1], "s", color=colour, markeredgecolor="white", markersize=6.5, zorder=5)


def barrier_background(ax: Axes) -> None:
    """The sum of the losses as contours, and the Pareto set."""
    across, up = np.meshgrid(np.linspace(-10, 10, 120), np.linspace(-10, 10, 120))
    points = np.stack([across.ravel(), up.ravel()], 1)
    total = np.array([barrier(point)[0].sum() for point in points]).reshape(across.shape)
    ax.contour(across, up, total, levels=14, colors=FAINT, linewidths=0.6, linestyles="-")

    # a line along the bottom of the bowls
    depth = np.linspace(-9, -8, 400)
    best = depth[np.argmin([barrier(np.array([0.0, b]))[0].sum() for b in depth])]
    draw_front(ax, np.array([[-7, best], [7, best]]))
    ax.annotate("Pareto set", (0, best - 1.2), ha="center", fontsize=8, color=MUTED)
    ax.set(xlabel="first parameter", ylabel="second parameter", xlim=(-10, 10), ylim=(-10, 10))


def scales_background(ax: Axes) -> None:
    """The Pareto set between the minima of the tasks."""
    draw_front(ax, CENTRES)
    for text, at in (("best for task 1", 1.0), ("midpoint", 0.0), ("best for task 2", -1.0)):
        ax.annotate(text, (at, -0.2), ha="center", fontsize=8, color=MUTED)
    ax.set(xlabel="first parameter", ylabel="second parameter", xlim=(-1.7, 1.7), ylim=(-0.5, 1.9))


def concave_background(ax: Axes) -> None:
    """The Pareto front in the plane of the losses, and the line between its ends."""
    draw_front(ax, np.array([concave(np.array([a, 0.0]))[0] for a in np.linspace(-1, 1, 200)]))
    ax.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, zorder=1)
    ax.annotate("Pareto front", (0.3, 0.7), ha="center", fontsize=8, color=MUTED)
    ax.set(xlabel="loss of task 1", ylabel="loss of task 2", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))


def draw_front(ax: Axes, points: np.ndarray) -> None:
    """A broad pale line through points (N, 2)."""
    ax.plot(*points.T, color=INK, alpha=0.25, linewidth=5, solid_capstyle="round", zorder=2)


BACKGROUNDS = {
    "barrier": barrier_background,
    "scales": scales_background,
    "concave": concave_background,
}


def main() -> None:
    """Run all problems, print where the paths end, and draw them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    paths = {name: panel.paths() for name, panel in PANELS.items()}
    for name, by_balancer in paths.items():
        for balancer, by_start in by_balancer.items():
            last = [path[-1] for path in by_start]
            ends = " ".join(f"({x:.2f}, {y:.2f})" for x, y in last)
            worst = max(stationarity(PANELS[name].problem, point) for point in last)
            print(f"{name:8} {balancer:24} ends at {ends}, stationarity {worst:.3f}")

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    keep: dict[str, Any] = {"metadata": {"Software": None}}  # the same bytes with the same numbers
    draw(paths).savefig(arguments.out, dpi=DPI, **keep)


if __name__ == "__main__":
    main()
