"""MGDA: the common descent direction of least norm.

a = argmin over the simplex of |sum_t a_t g_t / z_t|^2, w_t = a_t / z_t scaled to sum to T, with z_t
= 1 (``none``), |g_t| (``l2``), L_t (``loss``) or L_t |g_t| (``loss+``). The direction conflicts
with no task, and vanishes only where the tasks are Pareto-stationary.

Papers: Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization",
2012, doi:10.1016/j.crma.2012.03.014; Sener & Koltun, "Multi-Task Learning as Multi-Objective
Optimization", NeurIPS 2018, arXiv:1810.04650.

When to use: no task may get worse.
When not: one task near its optimum: with ``none`` its small gradient stops all.
Cost: one backward pass a task.
Deviations: the minimum is exact (a quadratic program over the T x T Gram), not Frank-Wolfe. The
weights of normalised gradients are divided by the norms, so that the step IS the common descent
direction; Sener & Koltun's code finds the weights on normalised gradients and applies them to the
others. Tasks whose normalised gradients are equal share their weight equally.
Zero: a gradient that is 1e-12 times as long as the longest, or shorter, counts as none.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from mtlkit.balancers._balancer import GramBalancer, GramProblem
from mtlkit.balancers._gramian import min_norm

SAME = 1e-12  # squared distance of two vectors that count as equal, in that of their lengths


class MGDA(GramBalancer):
    """Multiple-gradient descent algorithm."""

    class Options(GramBalancer.Options):
        normalize: Literal["none", "l2", "loss", "loss+"] = Field(
            "loss+", description="what gradients are divided by"
        )

    search_space: ClassVar = {"normalize": {"choice": ["none", "l2", "loss", "loss+"]}}
    same_as: ClassVar = {
        "shortest mixture": {"normalize": "none"},
        "shortest mixture of two": {"normalize": "none"},
        "equal cosines inside": {"normalize": "l2"},
        "bisector": {"normalize": "l2"},
    }
    options: Options

    def solve(self, problem: GramProblem) -> np.ndarray:
        gramian = problem.gramian

        # z_t
        z = np.ones(len(gramian))
        if self.options.normalize in {"l2", "loss+"}:
            z = z * np.sqrt(gramian.diagonal())
        if self.options.normalize in {"loss", "loss+"}:
            z = z * np.abs(problem.losses)
        z = np.maximum(z, (z.max() or 1) * 1e-12)

        # a = argmin |sum_t a_t g_t / z_t|^2, w_t = a_t / z_t
        points = gramian / np.outer(z, z)
        first = _first_equal(points)
        if (first == np.arange(len(first))).all():  # no two are equal
            return min_norm(points) / z
        distinct, group, counts = np.unique(first, return_inverse=True, return_counts=True)
        a = min_norm(points[np.ix_(distinct, distinct)])[group] / counts[group]
        return a / z


def _first_equal(gramian: np.ndarray) -> np.ndarray:
    """(T,) for each vector of a Gram matrix, the first one that is equal to it.

    Any shares of equal points make the same mixture, but shares of gradients of different length
    make a step of another length: so equal points share equally.
    """
    squares = gramian.diagonal()
    sums = squares[:, None] + squares
    return (sums - 2 * gramian <= SAME * sums).argmax(1)
