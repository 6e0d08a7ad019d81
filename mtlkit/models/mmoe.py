"""MMoE: experts shared by all tasks, mixed by one softmax gate a task.

h_t = sum_k softmax(W_t x)_k E_k(x), y_t = Tower_t(h_t).

Paper: Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts", KDD 2018, doi:10.1145/3219819.3220007.

When to use: the default choice; tasks of unknown relation share as much as their gates find useful.
When not: strong conflict, where every expert still serves every task (see ple), or gates that
collapse on one expert.
Cost: the experts are one product; T gates of one linear layer each.
Deviations: gates are one bias-free linear layer and a softmax, as in the paper; for ports that give
them hidden layers, a bias or batch norm there are options.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from mtlkit.data.types import Schema
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import Gate, GateOptions, StackedMLP, Towers
from mtlkit.models._moe import GateStack, MoELayer
from mtlkit.models._output import Output
from mtlkit.models._types import Batch
from mtlkit.settings import Sizes


class MMoE(Architecture):
    """Multi-gate mixture of experts."""

    class Options(GateOptions):
        experts: int = Field(8, gt=0, description="number of experts")
        hidden: Sizes = Field((32,), min_length=1, description="hidden layers of each expert")

    search_space: ClassVar = {
        "experts": {"choice": [4, 8]},
        "hidden": {"choice": [[32], [64], [64, 32]]},
    }

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        readers = self.gate_readers()
        self.embedding = FieldEmbedding(schema, options)
        width = self.embedding.width
        self.gates = Gate(len(readers), width, options.experts, options)
        self.experts = StackedMLP(options.experts, width, options.hidden, options)
        self.moe = MoELayer(1, self.experts, [GateStack(readers, self.gates)])
        self.towers = Towers(self.tasks, self.experts.outputs, options)

    def gate_readers(self) -> tuple[str, ...]:
        """Whom the gates serve: one task each."""
        return self.schema.task_names

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        mixture = self.moe(x)
        logits = self.towers(mixture.outputs)  # of (B, T, d)
        return self.output(logits, x, mixture.gates, mixture.boundary)
