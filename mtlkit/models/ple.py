"""PLE: levels of task-specific and shared experts that separate progressively.

Level inputs x_1..x_T, x_S, all equal to x at first. Task t mixes its own and the shared experts by
softmax(W_t x_t); the shared path of every level but the last mixes all experts by softmax(W_S x_S).
y_t = Tower_t(x_t).

Paper: Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
Personalized Recommendations", RecSys 2020, doi:10.1145/3383313.3412236.

When to use: tasks that disagree, where mmoe shows a seesaw (one gains what the other loses).
When not: small data or many tasks: experts grow with levels and T.
Cost: per level T * specific + shared experts as one product; the last level has no shared gate.
From two levels on, the last gates read shared layers, so the boundary shortcut does not apply:
balancers of gradients take one backward pass a task through all levels.
Deviations: none from the paper. Ports often give the shared gate only shared experts, or build the
unused last one.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from mtlkit.data.types import Schema
from mtlkit.models.cgc import CGC


class PLE(CGC):
    """Progressive layered extraction."""

    class Options(CGC.Options):
        levels: int = Field(2, gt=0, description="levels of experts; 1 is cgc")

    search_space: ClassVar = {
        "specific": {"int": [1, 3]},
        "shared": {"int": [1, 3]},
        "hidden": {"choice": [[32], [64], [64, 32]]},
        "levels": {"int": [1, 2]},
    }

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options, levels=options.levels)
