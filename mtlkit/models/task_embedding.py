"""Task-embedding: learnt embeddings of tasks and experts, and attention between them as the
mixture.

a_t = mean over heads of softmax_k(<W_q e_t, W_k c_k> / sqrt(d)), with learnt embeddings e_t of the
tasks and c_k of the experts; h_t = sum_k a_tk E_k(x), y_t = Tower_t(h_t). The mixture of a task is
the same for all rows.

Paper: the attention of Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762,
in place of the gates of Ma et al., KDD 2018, doi:10.1145/3219819.3220007; a search for the experts
of a task by its embedding.

When to use: to see how much of mmoe's gain needs gates that look at the row; many tasks with few
rows each. When not: rows of one task that need different experts.
Cost: that of mmoe without its gates; the attention is computed once a batch.
Deviations: there is no reference code.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.data.types import Schema
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import StackedMLP, Towers
from mtlkit.models._options import ModelOptions
from mtlkit.models._types import Batch, Output, Prediction
from mtlkit.ops.combine_experts import combine_experts
from mtlkit.settings import Sizes


class ExpertAttention(nn.Module):
    """Multi-head attention from task embeddings to expert embeddings.

    Args:
        tasks: Number of tasks.
        experts: Number of experts.
        width: Width of the embeddings, and of each head.
        heads: Number of heads.
    """

    stack_axes = {"tasks": 0}  # noqa: RUF012 - read only

    def __init__(self, tasks: int, experts: int, width: int, heads: int) -> None:
        super().__init__()
        self.tasks = nn.Parameter(torch.randn(tasks, width))
        self.experts = nn.Parameter(torch.randn(experts, width))
        self.query = nn.Linear(width, heads * width, bias=False)
        self.key = nn.Linear(
            width, heads * width, bias=False
        )  # a bias would add the same to all experts
        self.heads = heads

    def forward(self) -> Tensor:
        """(T, K) weights that sum to 1 for each task."""
        query = self.query(self.tasks).unflatten(1, (self.heads, -1)).transpose(0, 1)  # (H, T, d)
        key = self.key(self.experts).unflatten(1, (self.heads, -1)).transpose(0, 1)  # (H, K, d)
        logits = query @ key.transpose(1, 2) / math.sqrt(key.shape[-1])
        return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).mean(0)


class TaskEmbedding(Architecture):
    """Experts mixed by attention from task embeddings."""

    class Options(ModelOptions):
        """Options of task-embedding."""

        experts: int = Field(8, gt=0, description="number of experts")
        hidden: Sizes = Field((32,), min_length=1, description="hidden layers of each expert")
        task_width: int = Field(
            16, gt=0, description="width of the embeddings of tasks and experts"
        )
        heads: int = Field(2, gt=0, description="number of attention heads")

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        self.embedding = FieldEmbedding(schema, options)
        self.attention = ExpertAttention(
            len(self.tasks), options.experts, options.task_width, options.heads
        )
        self.experts = StackedMLP(options.experts, self.embedding.width, options.hidden, options)
        self.towers = Towers(self.tasks, self.experts.outputs, options)
        self.one_level(options.experts, schema.task_names)

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        weights = self.attention().expand(len(batch), -1, -1)  # (B, T, K)
        logits = self.towers(combine_experts(weights, self.present(0, self.experts(x))))
        predictions = [
            Prediction(task.name, logit) for task, logit in zip(self.tasks, logits, strict=True)
        ]
        gates = {name: weights[:, t] for t, name in enumerate(self.gate_experts)}
        return Output(predictions, gates, x)
