"""Task-router: one network on x decides, for every task, how to mix the shared experts.

g = softmax over K of Linear(MLP(x)) in R^(T x K), for each task by itself; h_t = sum_k g_tk E_k(x),
y_t = Tower_t(h_t). MMoE whose gates have hidden layers in common.

Paper: the gates of Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts", KDD 2018, doi:10.1145/3219819.3220007, with a router in the sense of Rosenbaum
et al., "Routing Networks", ICLR 2018, arXiv:1711.01239, which is shared by the tasks.

When to use: routing that depends on combinations of features, which the linear gates of mmoe cannot
express.
When not: few rows for a task; it has no part of the router to itself but the last layer.
Cost: that of mmoe and one router network.
Deviations: there is no reference code. Routing is soft and trained by the tasks' losses, not hard
and by reinforcement.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from mtlkit.data.types import Schema
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import StackedLinear, StackedMLP, Towers
from mtlkit.models._moe import GateStack, MoELayer
from mtlkit.models._options import ModelOptions
from mtlkit.models._output import Output
from mtlkit.models._types import Batch
from mtlkit.settings import Sizes


class TaskRouter(Architecture):
    """Experts mixed by a router that all tasks share."""

    class Options(ModelOptions):
        experts: int = Field(8, gt=0, description="number of experts")
        hidden: Sizes = Field((32,), min_length=1, description="hidden layers of each expert")
        router: Sizes = Field((32,), min_length=1, description="hidden layers of the router")

    search_space: ClassVar = {
        "experts": {"choice": [4, 8]},
        "hidden": {"choice": [[32], [64], [64, 32]]},
        "router": {"choice": [[32], [64]]},
    }

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        self.embedding = FieldEmbedding(schema, options)
        width = self.embedding.width
        self.router = StackedMLP(1, width, options.router, options)
        self.routes = StackedLinear(len(self.tasks), self.router.outputs, options.experts)
        self.experts = StackedMLP(options.experts, width, options.hidden, options)
        self.moe = MoELayer(1, self.experts, [GateStack(schema.task_names)])
        self.towers = Towers(self.tasks, self.experts.outputs, options)

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch).compute_together(*self.router.first, *self.experts.first)
        routed = self.router(x)[:, 0]  # (B, w), the same for all tasks
        logits = self.routes(routed)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        weights = logits.softmax(-1, dtype=dtype)  # (B, T, K)
        mixture = self.moe.mix([weights], self.moe.expert_outputs(x))
        task_logits = self.towers(mixture.outputs)  # of (B, T, d)
        return self.output(task_logits, x, mixture.gates)
