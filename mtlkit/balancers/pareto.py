"""Pareto-efficient weighting (PE-LTR): the least-norm combination with bounds on its weights.

min |sum_t w_t g_t|^2 subject to sum w = 1, w_t >= c_t; then scaled to sum to T. ``solver=exact``
solves that program; ``solver=paper`` solves it without the bounds (KKT conditions) and takes the
nearest feasible point, as the paper does. The two agree for two tasks and differ from three on.
``sweep=n`` stands for n cells whose bounds are preferences: the points of scalarization's sweep,
scaled to sum to .8.

Paper: Lin et al., "A Pareto-Efficient Algorithm for Multiple Objective Optimization in E-Commerce
Recommendation", RecSys 2019, doi:10.1145/3298689.3346998.

When to use: as mgda, with a share guaranteed to every task.
When not: losses of very different size: the largest gradient gets the smallest weight.
Cost: one backward pass a task.
Zero: a gradient that is 1e-12 times as long as the longest, or shorter, counts as none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from mtlkit.balancers._balancer import GramBalancer, GramProblem
from mtlkit.balancers._gramian import NO_RANK, min_norm_above, solve_in_span
from mtlkit.balancers._simplex import project_on_simplex, simplex_points
from mtlkit.balancers._solvers import unit_rows
from mtlkit.data.types import Task
from mtlkit.errors import UsageError
from mtlkit.settings import Floats, Settings

BOUND = 0.8  # sum of the lower bounds of a sweep: what a preference fixes, and the rest is free


class Pareto(GramBalancer):
    """Pareto-efficient learning to rank."""

    class Options(GramBalancer.Options):
        c: Floats | None = Field(
            None, description="lower bounds, one for all or one a task; default .1 / T"
        )
        solver: Literal["exact", "paper"] = "exact"
        sweep: int | None = Field(
            None, ge=2, le=1000, description="number of preferences, each a cell with its own c"
        )

    same_as: ClassVar = {
        "shortest mixture": {"c": 0, "solver": "exact"},
        "shortest mixture of two": {"c": 0},
    }
    options: Options

    def __init__(self, tasks: Sequence[Task], options: Options) -> None:
        super().__init__(tasks, options)
        count = len(tasks)
        bounds = (0.1 / count,) if options.c is None else options.c
        if len(bounds) == 1:
            bounds = bounds * count
        floor = np.array(bounds, dtype=float)
        if len(floor) != count or floor.min() < 0 or floor.sum() >= 1:
            raise UsageError(
                "pareto needs bounds c >= 0 that sum to less than 1, one for all or one for each "
                f"of {count} tasks.",
                f"mtlkit bench --balancers 'pareto[c={0.1 / count:.2g}]'",
            )
        self.floor = floor

    @classmethod
    def expand(
        cls, name: str, tasks: Sequence[Task], options: Settings
    ) -> list[tuple[str, Settings]]:
        """Itself, or a cell for each preference."""
        assert isinstance(options, cls.Options)
        if options.sweep is None:
            return [(name, options)]
        if options.c is not None:
            raise UsageError(
                "pareto takes bounds c or a sweep of them, not both.",
                "mtlkit bench --balancers 'pareto[sweep=5]'",
            )
        others = options.model_dump(exclude_unset=True, exclude={"sweep"})
        cells: list[tuple[str, Settings]] = []
        for bounds in BOUND * simplex_points(len(tasks), options.sweep):
            c = tuple(float(f"{bound:.3g}") for bound in bounds)
            cells.append((name, cls.Options(**others, c=c)))
        return cells

    def solve(self, problem: GramProblem) -> np.ndarray:
        floor = self.floor[problem.tasks]
        if self.options.solver == "exact":
            return min_norm_above(problem.gramian, floor)

        # the nearest point that is feasible: v + c, where v >= 0 has the sum that c leaves
        v = _stationary(problem.gramian, floor) - floor
        return floor + project_on_simplex(v, 1 - floor.sum())


def _stationary(gram: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """The w of any sign that minimises |sum_t w_t g_t|^2 subject to sum w = 1.

    In weights u_t = w_t |g_t| of unit gradients, u' C u is least subject to r' u = 1, with C their
    cosines and r_t = 1 / |g_t|: so u ~ C^-1 r, whatever the norms. Where several w are best, it is
    the one nearest to ``floor`` that gives no weight to gradients of any length, or one without
    gradients that have none.
    """
    nonzero, cosines, norms = unit_rows(gram)
    w = np.zeros(len(gram))
    zero = np.setdiff1d(np.arange(len(gram)), nonzero)
    if len(zero):
        w[zero] = floor[zero] + (1 - floor[zero].sum()) / len(zero)
        return w
    inverse_norms = norms.min() / norms
    u, out_of_span = solve_in_span(cosines, inverse_norms)
    if out_of_span @ out_of_span > NO_RANK * (inverse_norms @ inverse_norms):
        u = out_of_span  # a mixture that vanishes
    w = inverse_norms * u
    return w / w.sum()
