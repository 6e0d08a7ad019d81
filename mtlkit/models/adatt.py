"""AdaTT: every task fuses the experts of all tasks, and its own ones once more by a direct path.

Level inputs x_1..x_T, all equal to x at first; experts of task t read x_t. x_t' = sum_k softmax(W_t
x_t)_k E_k over ALL experts + sum over its own experts v_tk E_k, with learnt numbers v (1 for a
single expert). y_t = Tower_t(x_t). With shared experts there is a shared path x_S, fused in the
same way in every level but the last.

Paper: Li et al., "AdaTT: Adaptive Task-to-Task Fusion Network for Multitask Learning in
Recommendations", KDD 2023, arXiv:2304.04959. Without shared experts it is the paper's AdaTT-sp.

When to use: tasks that may help each other, with a direct path that keeps a task's own experts its
own. When not: many tasks; each level has T gates over all experts.
Cost: per level T * specific + shared experts as one product; gates over all of them. Deviations
from the authors' code: gates have no bias (``gate_bias``). With a shared path, v is 1 for each path
that has a single expert; theirs is learnt unless all paths have one.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.data.types import Schema
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedded_batch import EmbeddedBatch
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import Gate, GateOptions, StackedMLP, Towers, own_and_shared
from mtlkit.models._types import Batch, Output, Prediction
from mtlkit.ops.combine_experts import combine_experts
from mtlkit.settings import Sizes


class Direct(nn.Module):
    """Numbers by which n paths take their own k experts.

    Args:
        n: Number of paths.
        k: Number of experts of each; for a single one the number is 1.
    """

    stack_axes = {"weight": 0}  # noqa: RUF012 - read only

    def __init__(self, n: int, k: int) -> None:
        super().__init__()
        bound = math.sqrt(1 / k)
        if k > 1:
            self.weight = nn.Parameter(torch.empty(n, k).uniform_(-bound, bound))
        else:
            self.register_buffer("weight", torch.ones(n, 1), persistent=False)

    def forward(self, gates: Tensor, experts: Tensor) -> Tensor:
        """Add them to gates (B, n, E), where path i owns the experts experts[i] (n, k)."""
        direct = torch.zeros_like(gates[0]).scatter(1, experts, self.weight.to(gates.dtype))
        return gates + direct


class AdaTT(Architecture):
    """Adaptive task-to-task fusion."""

    owner: Tensor
    own: Tensor
    common: Tensor

    class Options(GateOptions):
        """Options of adatt."""

        specific: int = Field(2, gt=0, description="experts of each task's own")
        shared: int = Field(0, ge=0, description="shared experts; 0 is AdaTT-sp")
        hidden: Sizes = Field((32,), min_length=1, description="hidden layers of each expert")
        levels: int = Field(2, gt=0, description="levels of fusion")

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        n_tasks, specific, shared = len(self.tasks), options.specific, options.shared
        total = n_tasks * specific + shared
        self.embedding = FieldEmbedding(schema, options)
        self.gates, self.direct = nn.ModuleList(), nn.ModuleList()
        self.shared_gates, self.shared_direct = nn.ModuleList(), nn.ModuleList()
        self.experts = nn.ModuleList()
        width = self.embedding.width
        for level in range(options.levels):
            self.gates.append(Gate(n_tasks, width, total, options))
            self.direct.append(Direct(n_tasks, specific))
            if (
                shared and level < options.levels - 1
            ):  # nothing reads the shared path of the last level
                self.shared_gates.append(Gate(1, width, total, options))
                self.shared_direct.append(Direct(1, shared))
            experts = StackedMLP(total, width, options.hidden, options)
            self.experts.append(experts)
            width = experts.outputs
        self.towers = Towers(self.tasks, width, options)
        owner, names = own_and_shared(schema.task_names, specific, shared)
        self.register_buffer("owner", owner, persistent=False)  # (E,) which path an expert reads
        own, common = torch.arange(total).split([n_tasks * specific, shared])
        self.register_buffer(
            "own", own.view(n_tasks, -1), persistent=False
        )  # (T, specific) experts of each task
        self.register_buffer("common", common[None], persistent=False)  # (1, shared)
        self.expert_names = [names] * options.levels
        for level in range(1, options.levels + 1):
            readers = [*schema.task_names, *["shared"] * (level <= len(self.shared_gates))]
            self.gate_experts |= {f"level-{level}/{reader}": names for reader in readers}

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        n_tasks = len(self.tasks)
        gates: dict[str, Tensor] = {}
        paths: Tensor | EmbeddedBatch = x  # (B, D) at first, then (B, T [+ 1], d)
        for level, expert in enumerate(self.experts):
            read, by_tasks, by_shared = paths, paths, paths
            if not isinstance(paths, EmbeddedBatch):
                read = paths.index_select(1, self.owner)
                by_tasks, by_shared = paths[:, :n_tasks], paths[:, n_tasks:]
            outputs, weights = (
                self.present(level, expert(read)),
                self.gates[level](by_tasks),
            )  # (B, E, d), (B, T, E)
            fused = combine_experts(self.direct[level](weights, self.own), outputs)
            gates |= {
                f"level-{level + 1}/{name}": weights[:, t]
                for t, name in enumerate(self.schema.task_names)
            }
            if level < len(self.shared_gates):
                to_all = self.shared_gates[level](by_shared)  # (B, 1, E)
                gates[f"level-{level + 1}/shared"] = to_all[:, 0]
                fused = torch.cat(
                    [
                        fused,
                        combine_experts(self.shared_direct[level](to_all, self.common), outputs),
                    ],
                    dim=1,
                )
            paths = fused
        logits = self.towers(paths)
        predictions = [
            Prediction(task.name, logit) for task, logit in zip(self.tasks, logits, strict=True)
        ]
        return Output(predictions, gates, x)
