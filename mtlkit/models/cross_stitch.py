"""Cross-stitch: one network a task; after each layer they exchange linear combinations.

h_t^0 = x, u_t^l = f_t^l(h_t^(l-1)), h_t^l = sum_j A^l_tj u_j^l for each hidden layer l, y_t =
Tower_t(h_t^L). A starts with .9 for a task's own network and .1 / (T - 1) for each of the others.

Paper: Misra et al., "Cross-stitch Networks for Multi-task Learning", CVPR 2016, arXiv:1604.03539.

When to use: tasks whose common part is unknown, layer by layer; to look at A afterwards.
When not: many tasks, since every task has a network of its own.
Cost: T bottoms and T * T numbers a layer (times its width with ``channels``).
Deviations: the paper stitches networks that were trained alone before. The parameters are named and
shaped as those of single-task (with ``tables=own`` its embeddings, too), so that such a start is
possible; by default the tables are shared, as in recommenders. The paper trains A at a rate 100 to
1000 times as high, under SGD; Adam needs less.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.data.types import Schema
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import StackedMLP, Towers
from mtlkit.models._options import ModelOptions
from mtlkit.models._output import Output
from mtlkit.models._types import Batch
from mtlkit.settings import Sizes


class Stitch(nn.Module):
    """h_t = sum_j A_tj u_j, where A_tj is a number, or a vector with a number for each channel.

    Args:
        width: Number of channels, or None for one number a pair.
        diagonal: Initial A_tt; the rest of 1 is spread evenly.
    """

    stack_axes = {"weight": 0}  # noqa: RUF012 - read only

    def __init__(self, tasks: int, width: int | None, diagonal: float) -> None:
        super().__init__()
        others = (1 - diagonal) / max(tasks - 1, 1)
        weight = torch.full((tasks, tasks), others).fill_diagonal_(diagonal)
        if width is not None:
            weight = weight[..., None].repeat(1, 1, width)  # (T, T, d)
        self.weight = nn.Parameter(weight)

    def forward(self, u: Tensor) -> Tensor:
        """(B, T, d) to the same shape."""
        equation = "tj,bjd->btd" if self.weight.dim() == 2 else "tjd,bjd->btd"
        return torch.einsum(equation, self.weight.to(u.dtype), u)


class CrossStitch(Architecture):
    """Cross-stitch networks."""

    class Options(ModelOptions):
        bottom: Sizes = Field(
            (128,),
            min_length=1,
            description="hidden layers of each task's network; all are stitched",
        )
        channels: bool = Field(False, description="whether every channel has its own stitches")
        own: float = Field(0.9, ge=0, le=1, description="initial weight of a task's own network")
        stitch_lr: float = Field(
            10.0, gt=0, description="factor on the learning rate of the stitches"
        )
        tables: Literal["shared", "own"] = Field(
            "shared", description="embeddings: shared, or one table a task"
        )

    search_space: ClassVar = {
        "bottom": {"choice": [[64], [128], [256], [256, 128]]},
        "own": {"float": [0.5, 0.99]},
    }
    options: Options

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        n_tasks = len(self.tasks)
        copies = n_tasks if options.tables == "own" else 0
        self.embedding = FieldEmbedding(schema, options, copies)

        # Stitches first, though each follows a layer: the last shared weight has to be one of the
        # bottom.
        self.stitches = nn.ModuleList(
            Stitch(n_tasks, width if options.channels else None, options.own)
            for width in options.bottom
        )
        self.bottom = StackedMLP(n_tasks, self.embedding.width, options.bottom, options)
        self.towers = Towers(self.tasks, self.bottom.outputs, options)

    def learning_rates(self) -> dict[str, float]:
        return {"stitches.": self.options.stitch_lr}

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        h = x
        for k, stitch in enumerate(self.stitches):
            h = stitch(self.bottom.layer(k, h))  # (B, T, d)
        return self.output(self.towers(h), x)
