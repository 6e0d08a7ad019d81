"""CGC: each task mixes its own experts with shared ones; one level of PLE.

h_t = sum_k softmax(W_t x)_k [E_t(x), E_S(x)]_k, y_t = Tower_t(h_t). Other tasks' experts are out of
reach.

Paper: Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
Personalized Recommendations", RecSys 2020, doi:10.1145/3383313.3412236.

When to use: tasks that disagree in part; own experts shield them from each other.
When not: many tasks, since experts grow with T.
Cost: T * specific + shared experts as one product, T gates.
"""

from __future__ import annotations

from typing import ClassVar

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


class CGC(Architecture):
    """Customized gate control; several levels of it are PLE."""

    class Options(GateOptions):
        specific: int = Field(3, gt=0, description="experts of each task's own")
        shared: int = Field(2, gt=0, description="experts shared by all tasks")
        hidden: Sizes = Field((32,), min_length=1, description="hidden layers of each expert")

    search_space: ClassVar = {
        "specific": {"int": [1, 3]},
        "shared": {"int": [1, 3]},
        "hidden": {"choice": [[32], [64], [64, 32]]},
    }

    def __init__(self, schema: Schema, options: Options, levels: int = 1) -> None:
        super().__init__(schema, options)
        tasks = schema.task_names
        n_tasks = len(tasks)
        layout = SpecificAndShared(tasks, options.specific, options.shared)
        self.embedding = FieldEmbedding(schema, options)
        self.gates = nn.ModuleList()
        self.shared_gates = nn.ModuleList()
        self.experts = nn.ModuleList()
        self.levels = MoELevels()
        width = self.embedding.width
        for level in range(1, levels + 1):
            # Each task mixes its own and the shared experts.
            gate = Gate(n_tasks, width, options.specific + options.shared, options)
            self.gates.append(gate)
            gate_stacks = [GateStack(tasks, gate, layout.of_tasks_and_all, slice(n_tasks))]

            # The shared path mixes all experts; nothing reads that of the last level.
            if level < levels:
                shared_gate = Gate(1, width, layout.total, options)
                self.shared_gates.append(shared_gate)
                gate_stacks.append(GateStack(["shared"], shared_gate, paths=slice(n_tasks, None)))

            experts = StackedMLP(layout.total, width, options.hidden, options)
            self.experts.append(experts)
            self.levels.append(MoELayer(level, experts, gate_stacks, layout.names, layout.owner))
            width = experts.outputs
        self.towers = Towers(self.tasks, width, options)

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        gates: dict[str, Tensor] = {}
        paths = x  # (B, D) for all, then (B, T + 1, d): one path a task and the shared one
        for level in self.levels:
            mixture = level(paths)
            gates |= mixture.gates
            paths = mixture.outputs
        logits = self.towers(paths)  # of (B, T, d)
        return self.output(logits, x, gates, mixture.boundary)
