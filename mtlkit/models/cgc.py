"""CGC: each task mixes its own experts with shared ones; one level of PLE.

h_t = sum_k softmax(W_t x)_k [E_t(x), E_S(x)]_k, y_t = Tower_t(h_t). Other tasks' experts are out of
expert_index.

Paper: Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
Personalized Recommendations", RecSys 2020, doi:10.1145/3383313.3412236.

When to use: tasks that disagree in part; own experts shield them from each other.
When not: many tasks, since experts grow with T.
Cost: T * specific + shared experts as one product, T gates.
"""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.data.types import Schema
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedded_batch import EmbeddedBatch
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import Gate, GateOptions, StackedMLP, Towers, own_and_shared
from mtlkit.models._moe import Mixture, gated_mixture, mixture
from mtlkit.models._types import Batch, Output, Prediction
from mtlkit.ops.combine_experts import combine_experts
from mtlkit.settings import Sizes


class CGC(Architecture):
    """Customized gate control; several levels of it are PLE."""

    owner: Tensor
    expert_index: Tensor

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
        self.gates, self.shared_gates, self.experts = (
            nn.ModuleList(),
            nn.ModuleList(),
            nn.ModuleList(),
        )
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
        expert_index = torch.stack(
            [torch.where((owner == t) | (owner == n_tasks))[0] for t in range(n_tasks)]
        )
        self.register_buffer(
            "owner", owner, persistent=False
        )  # (E,) which level input an expert reads
        self.register_buffer(
            "expert_index", expert_index, persistent=False
        )  # (T, specific + shared) experts a task mixes
        self.expert_names = [names] * levels
        for level in range(1, levels + 1):
            for t, name in enumerate(schema.task_names):
                self.gate_experts[f"level-{level}/{name}"] = tuple(
                    names[k] for k in expert_index[t]
                )
            if level < levels:
                self.gate_experts[f"level-{level}/shared"] = names

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        gates: dict[str, Tensor] = {}
        paths: Tensor | EmbeddedBatch = (
            x  # (B, D) at first, then (B, T + 1, d): one path a task and the shared one
        )
        for level in range(len(self.shared_gates)):
            paths = self._shared_level(level, paths, gates)
        last = self._last_level(paths)
        gates |= self._named(len(self.shared_gates), last.weights)
        logits = self.towers(last.own)
        predictions = [
            Prediction(task.name, logit) for task, logit in zip(self.tasks, logits, strict=True)
        ]
        return Output(predictions, gates, x, boundary=last.boundary)

    def _shared_level(
        self, level: int, paths: Tensor | EmbeddedBatch, gates: dict[str, Tensor]
    ) -> Tensor:
        """A level but the last: (B, T + 1, d), the mixture of each task and that of the shared
        path.
        """
        gate, experts = self._stage(level)
        to_all = cast(Gate, self.shared_gates[level])
        if isinstance(paths, EmbeddedBatch):
            paths.fuse(*gate.first, *to_all.first, *experts.first)
            weights, shared = gate(paths), to_all(paths)  # (B, T, specific + shared) and (B, 1, E)
        else:
            weights, shared = gate(paths[:, : len(self.tasks)]), to_all(paths[:, len(self.tasks) :])
        outputs = self.present(level, experts(self._by_owner(paths)))  # (B, E, d)
        gates |= self._named(level, weights)
        gates[f"level-{level + 1}/shared"] = shared[:, 0]
        return torch.cat(
            [
                combine_experts(weights, outputs, self.expert_index),
                combine_experts(shared, outputs),
            ],
            dim=1,
        )

    def _last_level(self, paths: Tensor | EmbeddedBatch) -> Mixture:
        level = len(self.shared_gates)
        gate, experts = self._stage(level)
        present = self.silencer(level)
        if isinstance(paths, EmbeddedBatch):
            return gated_mixture(paths, gate, experts, self.expert_index, present)
        return mixture(
            gate(paths[:, : len(self.tasks)]),
            experts(self._by_owner(paths)),
            self.expert_index,
            present,
        )

    def _stage(self, level: int) -> tuple[Gate, StackedMLP]:
        return cast(Gate, self.gates[level]), cast(StackedMLP, self.experts[level])

    def _by_owner(self, paths: Tensor | EmbeddedBatch) -> Tensor | EmbeddedBatch:
        """What each expert reads."""
        return paths if isinstance(paths, EmbeddedBatch) else paths.index_select(1, self.owner)

    def _named(self, level: int, weights: Tensor) -> dict[str, Tensor]:
        return {
            f"level-{level + 1}/{name}": weights[:, t]
            for t, name in enumerate(self.schema.task_names)
        }
