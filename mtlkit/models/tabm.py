"""TabM: k small networks in one, which share their weights and differ by rank-one adapters.

h_i = Bottom_i(x), a layer of which is s_i * W (r_i * h) + b_i: W is shared by all members i, the
vectors r_i, s_i and b_i are a member's own. y_ti = Tower_ti(h_i). Each member is trained by itself
(the loss is the mean of the members' losses), and the prediction is the mean of the members'
probabilities.

Paper: Gorishniy et al., "TabM: Advancing Tabular Deep Learning with Parameter-Efficient
Ensembling", ICLR 2025, arXiv:2410.24210. Adapters of rank one are those of BatchEnsemble,
arXiv:2002.06715.

When to use: tables where a boosted tree is better than one network; variance over seeds is large.
When not: time counts; as evidence on sharing, since any network gains by an ensemble.
Cost: in training and in prediction k shared-bottoms, members=16 of them by default; parameters
hardly more than one, but for its k towers a task.
Deviations: the paper has one task and linear heads, which is tower=(); other layers of a tower are
a member's own, as its head. The first r_i are random signs, one a feature, all other adapters ones;
the authors' code draws them from a normal distribution where numbers have embeddings. Of a
regression the mean is that of logits, which for poisson and ziln lies below that of amounts.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtlkit.data.splits import NO_GROUP
from mtlkit.data.types import Schema, Task
from mtlkit.models._architecture import Architecture
from mtlkit.models._boundary import copies_boundary
from mtlkit.models._embedded_batch import EmbeddedBatch
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._initial import glorot_
from mtlkit.models._layers import StackedMLP, Towers
from mtlkit.models._options import ModelOptions
from mtlkit.models._output import Output
from mtlkit.models._types import Batch, Objective, Prediction
from mtlkit.settings import Sizes


class TabM(Architecture):
    """An ensemble in one model."""

    class Options(ModelOptions):
        """Options of tabm."""

        members: int = Field(16, gt=0, le=256, description="networks of the ensemble, k")
        bottom: Sizes = Field((128,), min_length=1, description="hidden layers of each bottom")

    search_space: ClassVar = {
        "members": {"choice": [4, 8, 16]},
        "bottom": {"choice": [[64], [128], [256], [256, 128]]},
    }

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        self.members = options.members
        self.embedding = FieldEmbedding(schema, options)
        width = self.embedding.width
        self.bottom = StackedMLP(self.members, width, options.bottom, options, MemberLinear)
        self._draw_first_adapters()
        towers = [task for task in self.tasks for _ in range(self.members)]
        self.towers = Towers(towers, self.bottom.outputs, options)

    @torch.no_grad()
    def _draw_first_adapters(self) -> None:
        """Draw what makes members differ: a sign for each feature, on all of its columns."""
        widths = [len(columns) for columns in self.embedding.feature_columns.values()]
        signs = torch.randint(2, (self.members, len(widths))) * 2.0 - 1
        by_column = signs.repeat_interleave(torch.tensor(widths), 1)
        self.bottom.get_parameter("linears.0.input_scale").copy_(by_column)

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        bottoms = self.bottom(x).flatten(1)[:, None]  # (B, 1, k * d)
        h = bottoms.expand(-1, len(self.tasks), -1)  # (B, T, k * d)
        logits = self.towers(h.unflatten(2, (self.members, -1)).flatten(1, 2))
        by_task = [
            torch.stack(logits[start : start + self.members])  # (k, B), or (k, B, C)
            for start in range(0, len(logits), self.members)
        ]
        means = map(mean_prediction, self.tasks, by_task)
        output = self.output(list(means), x, boundary=copies_boundary(h, bottoms))
        output.extra = by_task
        return output

    def objectives(self, output: Output, batch: Batch) -> list[Objective]:
        """The mean of the members' losses: each row counts once for each member."""
        rows = _rows_of_members(batch, self.members)
        objectives = []
        for prediction, members in zip(output.predictions, output.extra, strict=True):
            own = Prediction(prediction.task, members.flatten(0, 1), prediction.space)
            objective = self.objective(own, rows)
            if objective.total is not None:
                objective.total = objective.total / self.members
            objectives.append(objective)
        return objectives


class MemberLinear(nn.Module):
    """n linear layers that share a weight but for adapters of rank one: s_i * W (r_i * x) + b_i."""

    stack_axes = {"input_scale": 0, "output_scale": 0, "bias": 0}  # noqa: RUF012 - read only

    def __init__(self, n: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        bias = torch.empty(outputs).uniform_(-bound, bound)
        self.input_scale = nn.Parameter(torch.ones(n, inputs))
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))
        self.output_scale = nn.Parameter(torch.ones(n, outputs))
        self.bias = nn.Parameter(bias.repeat(n, 1))

    def glorot(self) -> None:
        """Draw the layers anew."""
        glorot_(self.weight, self.bias)

    def forward(self, x: Tensor | EmbeddedBatch) -> Tensor:
        """(B, inputs), the same for all layers, or (B, n, inputs), to (B, n, outputs)."""
        # Adapters on the weight cost nothing beside adapters on n inputs a row.
        weight = self.output_scale[:, :, None] * self.weight * self.input_scale[:, None]
        if isinstance(x, EmbeddedBatch):
            product = x.linear(weight.flatten(0, 1), self.bias.flatten())
            return product.unflatten(1, self.bias.shape)
        return torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1) + self.bias


def mean_prediction(task: Task, members: Tensor) -> Tensor:
    """From the members' logits (k, B) or (k, B, C) to those of their mean probability, (B,) or
    (B, C); of a regression to their mean.
    """
    if task.kind == "regression":
        return members.mean(0)
    members = members.to(torch.promote_types(members.dtype, torch.float32))
    if task.outputs > 1:
        return members.log_softmax(-1).logsumexp(0)
    return F.logsigmoid(members).logsumexp(0) - F.logsigmoid(-members).logsumexp(0)


def _rows_of_members(batch: Batch, members: int) -> Batch:
    """The rows of a batch once for each member, without the features: losses read none."""
    # Rows of a group are compared with those of the same member.
    groups = {}
    for name, ids in batch.groups.items():
        by_member = [ids.long() * members + k for k in range(members)]
        groups[name] = torch.cat([torch.where(ids == NO_GROUP, ids, own) for own in by_member])
    ids, dense = batch.ids[:, :0], batch.dense[:, :0]
    rows = replace(batch, ids=ids, dense=dense, bags={}, groups={})
    repeated = rows.map(lambda column: torch.cat([column] * members), lambda bags: bags)
    return replace(repeated, groups=groups)
