"""CGC: each task mixes its own experts with shared ones; one level of PLE.

h_t = sum_k softmax(W_t x)_k [E_t(x), E_S(x)]_k, y_t = Tower_t(h_t). Other tasks' experts are out of reach.

Paper: Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized
Recommendations", RecSys 2020, doi:10.1145/3383313.3412236.

When to use: tasks that disagree in part; own experts shield them from each other.
When not: many tasks, since experts grow with T.
Cost: T * specific + shared experts as one product, T gates.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.config import Sizes
from mtlkit.data.schema import Schema
from mtlkit.models.base import Architecture, Batch, Output, Prediction
from mtlkit.models.embedding import FieldEmbedding, Inputs
from mtlkit.models.layers import Gate, GateOptions, StackedMLP, Towers, mix, own_and_shared


class CGC(Architecture):
    """Customized gate control; several levels of it are PLE."""

    owner: Tensor
    reach: Tensor

    class Options(GateOptions):
        """Options of cgc."""

        specific: int = Field(3, gt=0, description="experts of each task's own")
        shared: int = Field(2, gt=0, description="experts shared by all tasks")
        hidden: Sizes = Field((32,), min_length=1, description="hidden layers of each expert")

    def __init__(self, schema: Schema, options: Options, levels: int = 1) -> None:
        super().__init__(schema, options)
        n_tasks, specific, shared = len(self.tasks), options.specific, options.shared
        total = n_tasks * specific + shared
        self.embedding = FieldEmbedding(schema, options)
        self.gates, self.shared_gates, self.experts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        width = self.embedding.width
        for level in range(1, levels + 1):
            self.gates.append(Gate(n_tasks, width, specific + shared, options))
            if level < levels:  # nothing reads the shared path of the last level
                self.shared_gates.append(Gate(1, width, total, options))
            experts = StackedMLP(total, width, options.hidden, options)
            self.experts.append(experts)
            width = experts.outputs
        self.towers = Towers(self.tasks, width, options)
        owner, names = own_and_shared(schema.task_names, specific, shared)
        reach = torch.stack([torch.where((owner == t) | (owner == n_tasks))[0] for t in range(n_tasks)])
        self.register_buffer("owner", owner, persistent=False)  # (E,) which level input an expert reads
        self.register_buffer("reach", reach, persistent=False)  # (T, specific + shared) experts a task mixes
        self.expert_names = [names] * levels
        for level in range(1, levels + 1):
            for t, name in enumerate(schema.task_names):
                self.gate_experts[f"level-{level}/{name}"] = tuple(names[k] for k in reach[t])
            if level < levels:
                self.gate_experts[f"level-{level}/shared"] = names

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        gates: dict[str, Tensor] = {}
        paths: Tensor | Inputs = x  # (B, D) at first, then (B, T + 1, d): one path a task and the shared one
        for level, (gate, expert) in enumerate(zip(self.gates, self.experts, strict=True)):
            paths = self._level(level, paths, gate, expert, gates)
        logits = self.towers(paths)
        predictions = [Prediction(task.name, logit) for task, logit in zip(self.tasks, logits, strict=True)]
        return Output(predictions, gates, x)

    def _level(
        self, level: int, paths: Tensor | Inputs, gate: nn.Module, expert: nn.Module, gates: dict[str, Tensor]
    ) -> Tensor:
        n_tasks = len(self.tasks)
        if isinstance(paths, Inputs):
            outputs, weights = self.present(level, expert(paths)), gate(paths)
        else:
            outputs = self.present(level, expert(paths.index_select(1, self.owner)))  # (B, E, d)
            weights = gate(paths[:, :n_tasks])  # (B, T, specific + shared)
        mixed = mix(weights, outputs, self.reach)  # (B, T, d)
        gates |= {f"level-{level + 1}/{name}": weights[:, t] for t, name in enumerate(self.schema.task_names)}
        if level >= len(self.shared_gates):
            return mixed
        to_all = self.shared_gates[level](paths if isinstance(paths, Inputs) else paths[:, n_tasks:])  # (B, 1, E)
        gates[f"level-{level + 1}/shared"] = to_all[:, 0]
        return torch.cat([mixed, mix(to_all, outputs)], dim=1)
