"""OMoE: experts shared by all tasks, mixed by one gate for all.

h = sum_k softmax(W x)_k E_k(x), y_t = Tower_t(h): the one-gate ablation of MMoE.

Paper: Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts", KDD 2018, doi:10.1145/3219819.3220007.

When to use: to see what the separate gates of mmoe bring.
When not: tasks in conflict; they cannot weigh experts differently.
Cost: that of mmoe less T - 1 gates.
"""

from __future__ import annotations

from mtlkit.models._output import Output
from mtlkit.models._types import Batch
from mtlkit.models.mmoe import MMoE


class OMoE(MMoE):
    """One-gate mixture of experts."""

    def gate_readers(self) -> tuple[str, ...]:
        """One gate for all tasks."""
        return ("all tasks",)

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        mixture = self.moe(x)
        h = mixture.outputs.expand(-1, len(self.tasks), -1)  # (B, 1, d) to (B, T, d)
        logits = self.towers(h)
        # The tasks have the mixture in common, so they do not part at it: no boundary.
        return self.output(logits, x, mixture.gates)
