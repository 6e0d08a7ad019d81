"""AITM: each step of a funnel receives what the step before has learnt, and is held below it.

In funnel order, q_t = Bottom_t(x), z_1 = q_1, p_t = ReLU(W_t z_{t-1} + b_t) and z_t = sum_{u in
(p_t, q_t)} softmax_u(<h1 u, h2 u> / sqrt(d)) h3 u, all (B, d), with bias-free linear h1, h2, h3
that are shared by all transitions; y_t = Tower_t(z_t), on all rows. Beside the loss of each y_t,
step t is charged the calibrator weight * mean(max(s(y_t) - s(y_{t-1}), 0)), which acts on
probabilities.

Paper: Xi et al., "Modeling the Sequential Dependence among Audience Multi-step Conversions with
Multi-task Learning in Targeted Display Advertising", KDD 2021, doi:10.1145/3447548.3467071,
arXiv:2105.08489.

When to use: funnels, also of many steps, whose later steps are rare.
When not: tasks without an order, or where CVR itself is to be learnt (AITM predicts CTCVR; its CVR
is a quotient).
Cost: one bottom and tower a step; the transitions are computed one after the other.
Deviations: none in the wiring; most ports drop the calibrator or reverse the steps, and one sums
the calibrator over the batch, which here is averaged like the losses. Widths are our own. The
information layer is a ReLU as in the paper, whatever ``activation`` is elsewhere. Tasks outside of
the funnel are towers on their q_t. With --force on data without a funnel, all tasks are taken for
one in their declared order. The last shared layer, which gradnorm asks for, is that of the
predictions: the calibrator does not count.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.data.types import ALL_ROWS, Schema
from mtlkit.losses._build import prediction
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._funnel import funnel_columns
from mtlkit.models._layers import StackedMLP, Towers
from mtlkit.models._losses import mean_of_rows, row_weight
from mtlkit.models._options import BaseOptions
from mtlkit.models._output import Output
from mtlkit.models._types import Batch, Objective
from mtlkit.settings import Sizes


class Transfer(nn.Module):
    """Attention over two vectors: the one that is handed on, and the step's own.

    Args:
        width: Width of both, and of the result.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.h1 = nn.Linear(width, width, bias=False)
        self.h2 = nn.Linear(width, width, bias=False)
        self.h3 = nn.Linear(width, width, bias=False)

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2, d) to their mixture (B, d) and its weights (B, 2)."""
        scores = (self.h1(u) * self.h2(u)).sum(-1) / u.shape[-1] ** 0.5  # (B, 2)
        dtype = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.softmax(-1, dtype=dtype)
        mixture = (weights[..., None].to(u.dtype) * self.h3(u)).sum(1)
        return mixture, weights


class AITM(Architecture):
    """Adaptive information transfer multi-task model."""

    class Options(BaseOptions):
        bottom: Sizes = Field(
            (128, 32), min_length=1, description="hidden layers of each step's bottom"
        )
        weight: float = Field(0.6, ge=0, description="of the calibrator; 0 leaves it out")

    search_space: ClassVar = {
        "bottom": {"choice": [[64, 32], [128, 32], [128, 64], [256, 128]]},
        "weight": {"float": [0, 1]},
    }
    needs_funnel = True
    options: Options

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        self.steps = funnel_columns(schema, "AITM")
        self.embedding = FieldEmbedding(schema, options)
        self.bottom = StackedMLP(len(self.tasks), self.embedding.width, options.bottom, options)
        width = self.bottom.outputs
        self.info = nn.ModuleList(nn.Linear(width, width) for _ in self.steps[1:])
        self.transfer = Transfer(width)
        self.dropout = nn.Dropout(options.dropout)
        self.towers = Towers(self.tasks, width, options)

    @property
    def gate_experts(self) -> dict[str, tuple[str, ...]]:
        """What the attention of each step but the first mixes: no experts, so without ablation."""
        names = self.schema.task_names
        return {
            f"level-1/{names[step]}": (f"from {names[before]}", "own")
            for before, step in pairwise(self.steps)
        }

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        z = list(self.bottom(x).unbind(1))  # T x (B, d), at first q_t
        gates = {}
        transitions = zip(self.gate_experts, self.info, pairwise(self.steps), strict=True)
        for gate, info, (before, step) in transitions:
            handed_on = self.dropout(info(z[before]).relu())
            z[step], gates[gate] = self.transfer(torch.stack([handed_on, z[step]], dim=1))
        logits = self.towers(torch.stack(z, dim=1))  # of (B, T, d)

        output = self.output(logits, x, gates)
        for step in self.steps:
            output.predictions[step].space = ALL_ROWS
        return output

    def objectives(self, output: Output, batch: Batch) -> list[Objective]:
        objectives = super().objectives(output, batch)
        if not self.options.weight:
            return objectives

        # The calibrator: how far the probability of a step exceeds that of the one before.
        dtype = objectives[0].loss.dtype
        probabilities = {
            step: prediction(self.tasks[step], output.predictions[step].logits).to(dtype).sigmoid()
            for step in self.steps
        }
        for before, step in pairwise(self.steps):
            task = self.tasks[step]
            excess = (probabilities[step] - probabilities[before]).relu()  # (B,)
            excess_mean = mean_of_rows(excess, None, row_weight(self.schema, task, batch))
            price = self.options.weight * excess_mean.mean
            active, total = objectives[step].active, excess_mean.total
            objectives.append(Objective(price, task.name, active, total))
        return objectives
