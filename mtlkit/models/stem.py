"""STEM: own and shared embedding tables; a task sees the others' experts, but does not train them.

T + 1 tables give x_1..x_T, x_S. Experts of task t read x_t, shared ones x_S. Task t mixes the
experts of ALL tasks and the shared ones by softmax(MLP_t(x_t + x_S)), the outputs of other tasks'
experts behind a stop-gradient. With several levels the mixtures are the next inputs, and a shared
path mixes all experts by softmax(MLP_S(x_S)). y_t = Tower_t(x_t).

Paper: Su et al., "STEM: Unleashing the Power of Embeddings for Multi-task Recommendation", AAAI
2024, arXiv:2308.13537.

When to use: large vocabularies, and users who differ from task to task.
When not: little memory or data; compare it with models of equally wide embeddings, not with equally
named ones.
Cost: (T + 1) times the embedding parameters; T * specific + shared experts a level.
Deviations from the authors' code: the shared path takes task experts behind a stop-gradient, too.
Without it a task would train the others' tables from the second level on, through the shared path,
against the paper's claim; with one level, the default of both, nothing differs. The gate of the
last shared path, which nothing reads, is not built.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.data.types import Schema
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedded_batch import EmbeddedBatch
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import Gate, GateOptions, StackedMLP, Towers
from mtlkit.models._lookup import Reads, sums_of_copies
from mtlkit.models._moe import GateStack, MoELayer, MoELevels, SpecificAndShared
from mtlkit.models._output import Output
from mtlkit.models._types import Batch
from mtlkit.ops.combine_experts import combine_experts
from mtlkit.settings import Sizes


class STEM(Architecture):
    """Shared and task-specific embeddings."""

    detaches = True
    trained_by_tasks: Tensor
    seen_by_tasks: Tensor
    trained_by_all: Tensor
    seen_by_all: Tensor

    class Options(GateOptions):
        specific: int = Field(1, gt=0, description="experts of each task's own")
        shared: int = Field(1, gt=0, description="experts shared by all tasks")
        hidden: Sizes = Field((32,), min_length=1, description="hidden layers of each expert")
        levels: int = Field(1, gt=0, description="levels of experts")
        gate_hidden: Sizes = Field((32,), description="hidden layers of each gate")
        gate_bias: bool = Field(True, description="whether the gates' linear layer has a bias")

    search_space: ClassVar = {
        "specific": {"int": [1, 2]},
        "shared": {"int": [1, 2]},
        "hidden": {"choice": [[32], [64], [64, 32]]},
    }

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        tasks = schema.task_names
        n_tasks = len(tasks)
        layout = SpecificAndShared(tasks, options.specific, options.shared)
        self.embedding = FieldEmbedding(schema, options, copies=n_tasks + 1)
        self.gates = nn.ModuleList()
        self.shared_gates = nn.ModuleList()
        self.experts = nn.ModuleList()
        self.levels = MoELevels()
        width = self.embedding.width
        for level in range(1, options.levels + 1):
            gate = Gate(n_tasks, width, layout.total, options)
            self.gates.append(gate)
            gate_stacks = [GateStack(tasks, gate)]
            if level < options.levels:  # nothing reads the shared path of the last level
                shared_gate = Gate(1, width, layout.total, options)
                self.shared_gates.append(shared_gate)
                gate_stacks.append(GateStack(["shared"], shared_gate))
            experts = StackedMLP(layout.total, width, options.hidden, options)
            self.experts.append(experts)
            self.levels.append(MoELayer(level, experts, gate_stacks, layout.names, layout.owner))
            width = experts.outputs
        self.towers = Towers(self.tasks, width, options)

        # The paths whose sum each expert and each gate reads; the shared one comes last.
        self._expert_reads = [(int(owner),) for owner in layout.owner]
        self._gate_reads = [(t, n_tasks) for t in range(n_tasks)]

        # The experts that a reader trains, (T, k) and (1, shared), and those that it only sees.
        trained_by_tasks = layout.of_tasks_and_all
        trained_by_all = layout.of_all[None]
        for name, trained in (("tasks", trained_by_tasks), ("all", trained_by_all)):
            seen = torch.stack([_others(experts, layout.total) for experts in trained])
            self.register_buffer(f"trained_by_{name}", trained, persistent=False)
            self.register_buffer(f"seen_by_{name}", seen, persistent=False)

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        n_tasks = len(self.tasks)
        paths: Tensor | EmbeddedBatch = x  # copies of x, then mixtures (B, T + 1, d)
        gates: dict[str, Tensor] = {}
        for level in self.levels:
            outputs = level.experts(_sums(paths, self._expert_reads))  # (B, E, d)

            # The gate of a task reads its own path and the shared one.
            task_gates, *shared_gates = level.gate_stacks
            weights = task_gates.gate(_sums(paths, self._gate_reads))  # (B, T, E)
            task_paths = _mix_in_part(weights, outputs, self.trained_by_tasks, self.seen_by_tasks)
            all_weights = [weights]

            # The shared path, which the last level does not have.
            for stack in shared_gates:
                weights = stack.gate(_sums(paths, [(n_tasks,)]))  # (B, 1, E)
                shared_path = _mix_in_part(weights, outputs, self.trained_by_all, self.seen_by_all)
                paths = torch.cat([task_paths, shared_path], dim=1)
                all_weights.append(weights)
            gates |= level.named_gates(*all_weights)
        output = self.output(self.towers(task_paths), x, gates)
        output.representation = x.copy_if_formed(n_tasks)  # what tasks have in common of x
        return output


def _sums(paths: Tensor | EmbeddedBatch, reads: Reads) -> Tensor | EmbeddedBatch:
    """What each of n layers reads, the sum of some paths; (B, n, d) of (B, paths, d)."""
    if isinstance(paths, EmbeddedBatch):
        return paths.sums_of_copies(reads)
    return sums_of_copies(paths.unbind(1), reads, dim=1)


def _others(experts: Tensor, total: int) -> Tensor:
    """The experts of a level that are not among some of them."""
    return torch.tensor([k for k in range(total) if k not in experts.tolist()], dtype=torch.int64)


def _mix_in_part(weights: Tensor, outputs: Tensor, trained: Tensor, seen: Tensor) -> Tensor:
    """(B, n, d) mixtures of all experts, of which each trains only some.

    Args:
        weights: (B, n, E).
        outputs: (B, E, d).
        trained: (n, k) the experts that a mixture trains.
        seen: (n, E - k) those that it sees behind a stop-gradient.
    """
    n_rows = weights.shape[0]  # not len, which is a constant where a model is exported
    trained_weights = weights.gather(2, trained.expand(n_rows, -1, -1))
    mixed = combine_experts(trained_weights, outputs, trained)
    if not seen.numel():
        return mixed
    seen_weights = weights.gather(2, seen.expand(n_rows, -1, -1))
    return mixed + combine_experts(seen_weights, outputs.detach(), seen)
