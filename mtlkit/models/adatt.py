"""AdaTT: every task fuses the experts of all tasks, and its own ones once more by a direct path.

Level inputs x_1..x_T, all equal to x at first; experts of task t read x_t. x_t' = sum_k softmax(W_t
x_t)_k E_k over ALL experts + sum over its own experts v_tk E_k, with learnt numbers v (1 for a
single expert). y_t = Tower_t(x_t). With shared experts there is a shared path x_S, fused in the
same way in every level but the last.

Paper: Li et al., "AdaTT: Adaptive Task-to-Task Fusion Network for Multitask Learning in
Recommendations", KDD 2023, arXiv:2304.04959. Without shared experts it is the paper's AdaTT-sp.

When to use: tasks that may help each other, with a direct path that keeps a task's own experts its
own.
When not: many tasks; each level has T gates over all experts.
Cost: per level T * specific + shared experts as one product; gates over all of them.
Deviations from the authors' code: gates have no bias (``gate_bias``). With a shared path, v is 1
for each path that has a single expert; theirs is learnt unless all paths have one.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.data.types import Schema
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import Gate, GateOptions, StackedMLP, Towers
from mtlkit.models._moe import GateStack, MoELayer, MoELevels, SpecificAndShared
from mtlkit.models._output import Output
from mtlkit.models._types import Batch
from mtlkit.settings import Sizes


class Direct(nn.Module):
    """The direct paths: factors by which n paths add their own experts once more.

    Args:
        experts: (n, k) int64, the own experts of each path. For a single one the factor is 1.
    """

    stack_axes = {"weight": 0}  # noqa: RUF012 - read only

    def __init__(self, experts: Tensor) -> None:
        super().__init__()
        n, k = experts.shape
        if k > 1:
            bound = math.sqrt(1 / k)
            self.weight: Tensor = nn.Parameter(torch.empty(n, k).uniform_(-bound, bound))
        else:
            self.weight = nn.Buffer(torch.ones(n, 1), persistent=False)
        self.experts: Tensor = nn.Buffer(experts, persistent=False)

    def forward(self, gates: Tensor) -> Tensor:
        """Add the factors to the weights (B, n, E) of all experts."""
        zeros = torch.zeros_like(gates[0])  # (n, E)
        return gates + zeros.scatter(1, self.experts, self.weight.to(gates.dtype))


class AdaTT(Architecture):
    """Adaptive task-to-task fusion."""

    class Options(GateOptions):
        specific: int = Field(2, gt=0, description="experts of each task's own")
        shared: int = Field(0, ge=0, description="shared experts; 0 is AdaTT-sp")
        hidden: Sizes = Field((32,), min_length=1, description="hidden layers of each expert")
        levels: int = Field(2, gt=0, description="levels of fusion")

    search_space: ClassVar = {
        "specific": {"int": [1, 2]},
        "shared": {"int": [0, 2]},
        "hidden": {"choice": [[32], [64], [64, 32]]},
    }

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        tasks = schema.task_names
        n_tasks = len(tasks)
        layout = SpecificAndShared(tasks, options.specific, options.shared)
        self.embedding = FieldEmbedding(schema, options)
        self.gates = nn.ModuleList()
        self.direct = nn.ModuleList()
        self.shared_gates = nn.ModuleList()
        self.shared_direct = nn.ModuleList()
        self.experts = nn.ModuleList()
        self.levels = MoELevels()
        width = self.embedding.width
        for level in range(1, options.levels + 1):
            # Every path fuses the experts of all.
            gate = Gate(n_tasks, width, layout.total, options)
            self.gates.append(gate)
            self.direct.append(Direct(layout.of_tasks))
            gate_stacks = [GateStack(tasks, gate, paths=slice(n_tasks))]

            # The shared path, if there is one; nothing reads that of the last level.
            if options.shared and level < options.levels:
                shared_gate = Gate(1, width, layout.total, options)
                self.shared_gates.append(shared_gate)
                self.shared_direct.append(Direct(layout.of_all[None]))
                gate_stacks.append(GateStack(["shared"], shared_gate, paths=slice(n_tasks, None)))

            experts = StackedMLP(layout.total, width, options.hidden, options)
            self.experts.append(experts)
            self.levels.append(MoELayer(level, experts, gate_stacks, layout.names, layout.owner))
            width = experts.outputs
        self.towers = Towers(self.tasks, width, options)

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        gates: dict[str, Tensor] = {}
        paths = x  # (B, D) for all, then (B, T [+ 1], d)
        for k, level in enumerate(self.levels):
            outputs = level.expert_outputs(paths)  # (B, E, d)
            weights = level.gate_weights(paths)  # (B, T, E) [and (B, 1, E)]
            gates |= level.named_gates(*weights)

            # Mixture and direct path are one sum, by weights to which the direct factors are added.
            direct = [stack[k] for stack in (self.direct, self.shared_direct) if k < len(stack)]
            fused_weights = [add(gate) for add, gate in zip(direct, weights, strict=True)]
            paths = level.mix(fused_weights, outputs).outputs
        logits = self.towers(paths)  # of (B, T, d)
        return self.output(logits, x, gates)
