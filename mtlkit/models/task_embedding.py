"""Task-embedding: experts are mixed by attention between embeddings of tasks and of experts.

a_t = mean over heads of softmax_k(<W_q e_t, W_k c_k> / sqrt(d)), with learnt embeddings e_t of the
tasks and c_k of the experts; h_t = sum_k a_tk E_k(x), y_t = Tower_t(h_t). The mixture of a task is
the same for all rows.

Paper: the attention of Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762,
in place of the gates of Ma et al., KDD 2018, doi:10.1145/3219819.3220007; a search for the experts
of a task by its embedding.

When to use: to see how much of mmoe's gain needs gates that look at the row; many tasks with few
rows each.
When not: rows of one task that need different experts.
Cost: that of mmoe without its gates; the attention is computed once a batch.
Deviations: there is no reference code.
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
from mtlkit.models._layers import StackedMLP, Towers
from mtlkit.models._moe import GateStack, MoELayer
from mtlkit.models._options import ModelOptions
from mtlkit.models._output import Output
from mtlkit.models._types import Batch
from mtlkit.settings import Sizes


class ExpertAttention(nn.Module):
    """Multi-head attention from task embeddings to expert embeddings.

    Args:
        width: Width of the embeddings, and of each head.
    """

    stack_axes = {"tasks": 0}  # noqa: RUF012 - read only

    def __init__(self, tasks: int, experts: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.tasks = nn.Parameter(torch.randn(tasks, width))
        self.experts = nn.Parameter(torch.randn(experts, width))
        self.query = nn.Linear(width, heads * width, bias=False)
        # No bias either: it would add the same to the logits of all experts.
        self.key = nn.Linear(width, heads * width, bias=False)

    def forward(self) -> Tensor:
        """(T, K) weights that sum to 1 for each task."""
        query = self._by_head(self.query(self.tasks))  # (H, T, d)
        key = self._by_head(self.key(self.experts))  # (H, K, d)
        logits = query @ key.transpose(1, 2) / math.sqrt(key.shape[-1])  # (H, T, K)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return logits.softmax(-1, dtype=dtype).mean(0)

    def _by_head(self, projected: Tensor) -> Tensor:
        """(n, H * d) to (H, n, d)."""
        return projected.unflatten(1, (self.heads, -1)).transpose(0, 1)


class TaskEmbedding(Architecture):
    """Experts mixed by attention from task embeddings."""

    class Options(ModelOptions):
        experts: int = Field(8, gt=0, description="number of experts")
        hidden: Sizes = Field((32,), min_length=1, description="hidden layers of each expert")
        task_width: int = Field(
            16, gt=0, description="width of the embeddings of tasks and experts"
        )
        heads: int = Field(2, gt=0, description="number of attention heads")

    search_space: ClassVar = {
        "experts": {"choice": [4, 8]},
        "hidden": {"choice": [[32], [64], [64, 32]]},
    }

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        self.embedding = FieldEmbedding(schema, options)
        self.attention = ExpertAttention(
            len(self.tasks), options.experts, options.task_width, options.heads
        )
        self.experts = StackedMLP(options.experts, self.embedding.width, options.hidden, options)
        self.moe = MoELayer(1, self.experts, [GateStack(schema.task_names)])
        self.towers = Towers(self.tasks, self.experts.outputs, options)

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        weights = self.attention().expand(batch.labels.shape[0], -1, -1)  # (B, T, K)
        mixture = self.moe.mix([weights], self.moe.expert_outputs(x))
        logits = self.towers(mixture.outputs)  # of (B, T, d)
        return self.output(logits, x, mixture.gates)
