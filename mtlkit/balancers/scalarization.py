"""Scalarization: a sweep of fixed task weights, the baseline that every balancer must beat.

Stands for ``n`` cells of static weights, spread over the simplex {w > 0, sum w = T}: for two tasks
w_1 = 2 i / (n + 1), i = 1..n; from three on equal weights and n - 1 points of a Halton sequence,
carried to the simplex by -log u / sum. The report compares every balancer with the point that is
best on validation.

Paper: Xin et al., "Do Current Multi-Task Optimization Methods in Deep Learning Even Help?", NeurIPS
2022, arXiv:2209.11379.

When to use: beside any balancer that claims to be better than weights that do not move.
When not: no budget for n runs a seed; many tasks, whose simplex n points do not fill.
Cost: n runs of one backward pass a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from mtlkit.balancers._simplex import simplex_points
from mtlkit.balancers.static import Static
from mtlkit.balancers.uniform import Uniform
from mtlkit.data.types import Task
from mtlkit.settings import Settings


class Scalarization(Uniform):
    """A sweep of static weights; trained without being expanded, it is the middle of the sweep."""

    class Options(Settings):
        n: int = Field(9, ge=2, le=1000, description="number of weightings")

    @classmethod
    def expand(
        cls, name: str, tasks: Sequence[Task], options: Settings
    ) -> list[tuple[str, Settings]]:
        """The static balancers; the one of equal weights is uniform."""
        assert isinstance(options, cls.Options)
        cells: list[tuple[str, Settings]] = []
        for weights in simplex_points(len(tasks), options.n):
            if np.allclose(weights, weights[0]):
                cells.append(("uniform", Uniform.Options()))
            else:
                w = tuple(float(f"{weight:.3g}") for weight in weights * len(tasks))
                cells.append(("static", Static.Options(w=w)))
        return cells
