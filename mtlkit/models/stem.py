"""STEM: own and shared embedding tables; a task sees the others' experts, but does not train them.

T + 1 tables give x_1..x_T, x_S. Experts of task t read x_t, shared ones x_S. Task t mixes the
experts of ALL tasks and the shared ones by softmax(MLP_t(x_t + x_S)), the outputs of other tasks'
experts behind a stop-gradient. With several levels the mixtures are the next inputs, and a shared
path mixes all experts by softmax(MLP_S(x_S)). y_t = Tower_t(x_t).

Paper: Su et al., "STEM: Unleashing the Power of Embeddings for Multi-task Recommendation", AAAI
2024, arXiv:2308.13537.

When to use: large vocabularies, and users who differ from task to task. When not: little memory or
data; compare it with models of equally wide embeddings, not with equally named ones.
Cost: (T + 1) times the embedding parameters; T * specific + shared experts a level. Deviations from
the authors' code: the shared path takes task experts behind a stop-gradient, too. Without it a task
would train the others' tables from the second level on, through the shared path, against the
paper's claim; with one level, the default of both, nothing differs. The gate of the last shared
path, which nothing reads, is not built.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.data.types import Schema
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import Gate, GateOptions, StackedMLP, Towers, own_and_shared
from mtlkit.models._types import Batch, Output, Prediction
from mtlkit.ops.combine_experts import combine_experts
from mtlkit.settings import Sizes


class STEM(Architecture):
    """Shared and task-specific embeddings."""

    detaches = True
    owner: Tensor
    own: Tensor
    foreign: Tensor
    common: Tensor
    specific: Tensor

    class Options(GateOptions):
        """Options of stem."""

        specific: int = Field(1, gt=0, description="experts of each task's own")
        shared: int = Field(1, gt=0, description="experts shared by all tasks")
        hidden: Sizes = Field((32,), min_length=1, description="hidden layers of each expert")
        levels: int = Field(1, gt=0, description="levels of experts")
        gate_hidden: Sizes = Field((32,), description="hidden layers of each gate")
        gate_bias: bool = Field(True, description="whether the gates' linear layer has a bias")

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        n_tasks, specific, shared = len(self.tasks), options.specific, options.shared
        total = n_tasks * specific + shared
        self.embedding = FieldEmbedding(schema, options, copies=n_tasks + 1)
        self.gates, self.shared_gates, self.experts = (
            nn.ModuleList(),
            nn.ModuleList(),
            nn.ModuleList(),
        )
        width = self.embedding.width
        for level in range(options.levels):
            self.gates.append(Gate(n_tasks, width, total, options))
            if level < options.levels - 1:  # nothing reads the shared path of the last level
                self.shared_gates.append(Gate(1, width, total, options))
            experts = StackedMLP(total, width, options.hidden, options)
            self.experts.append(experts)
            width = experts.outputs
        self.towers = Towers(self.tasks, width, options)
        owner, names = own_and_shared(schema.task_names, specific, shared)
        reads = [(owner == t) | (owner == n_tasks) for t in range(n_tasks)]
        self.register_buffer(
            "owner", owner, persistent=False
        )  # (E,) which table or path an expert reads
        self.register_buffer(
            "own", torch.stack([torch.where(r)[0] for r in reads]), persistent=False
        )  # (T, k) trained
        self.register_buffer(
            "foreign", torch.stack([torch.where(~r)[0] for r in reads]), persistent=False
        )  # (T, E - k)
        parts = torch.arange(total)[None].split([n_tasks * specific, shared], dim=1)
        self.register_buffer("specific", parts[0], persistent=False)  # (1, T * specific)
        self.register_buffer("common", parts[1], persistent=False)  # (1, shared)
        self.expert_names = [names] * options.levels
        for level in range(1, options.levels + 1):
            readers = (
                [*schema.task_names, "shared"] if level < options.levels else schema.task_names
            )
            self.gate_experts |= {f"level-{level}/{reader}": names for reader in readers}

    def forward(self, batch: Batch) -> Output:
        n_tasks = len(self.tasks)
        x = self.embedding(batch)
        own, shared = x.tensor().split([n_tasks, 1], dim=1)
        paths = torch.cat([own, shared], dim=1)  # (B, T + 1, D)
        gates: dict[str, Tensor] = {}
        for level, (gate, expert) in enumerate(zip(self.gates, self.experts, strict=True)):
            outputs = self.present(level, expert(paths.index_select(1, self.owner)))  # (B, E, d)
            weights = gate(paths[:, :n_tasks] + paths[:, n_tasks:])  # (B, T, E)
            mixed = _mix_in_part(weights, outputs, self.own, self.foreign)  # (B, T, d)
            gates |= {
                f"level-{level + 1}/{name}": weights[:, t]
                for t, name in enumerate(self.schema.task_names)
            }
            if level < len(self.shared_gates):
                to_all = self.shared_gates[level](paths[:, n_tasks:])  # (B, 1, E)
                gates[f"level-{level + 1}/shared"] = to_all[:, 0]
                common = _mix_in_part(to_all, outputs, self.common, self.specific)  # (B, 1, d)
                mixed = torch.cat([mixed, common], dim=1)
            paths = mixed
        logits = self.towers(paths)
        predictions = [
            Prediction(task.name, logit) for task, logit in zip(self.tasks, logits, strict=True)
        ]
        return Output(predictions, gates, x, shared)  # the part of x that tasks have in common


def _mix_in_part(weights: Tensor, outputs: Tensor, own: Tensor, foreign: Tensor) -> Tensor:
    """Mixtures of all experts, of which each trains only its own: weights (B, n, E), outputs (B, E,
    d) to (B, n, d).
    """
    rows = len(weights)
    mixed = combine_experts(weights.gather(2, own.expand(rows, -1, -1)), outputs, own)
    if not foreign.numel():
        return mixed
    return mixed + combine_experts(
        weights.gather(2, foreign.expand(rows, -1, -1)), outputs.detach(), foreign
    )
