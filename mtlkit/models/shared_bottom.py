"""Shared-bottom: one network under all task towers.

h = Bottom(x), y_t = Tower_t(h). The oldest form of multi-task learning and the baseline of the
field.

Paper: Caruana, "Multitask Learning", Machine Learning 1997, doi:10.1023/A:1007379606734.

When to use: related tasks, little compute; always as a baseline.
When not: tasks in conflict, which have no way to part before the towers.
Cost: one bottom and T towers, the cheapest model here.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from mtlkit.data.types import Schema
from mtlkit.models._architecture import Architecture
from mtlkit.models._boundary import copies_boundary
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import StackedMLP, Towers
from mtlkit.models._options import ModelOptions
from mtlkit.models._output import Output
from mtlkit.models._types import Batch
from mtlkit.settings import Sizes


class SharedBottom(Architecture):
    """Shared-bottom."""

    class Options(ModelOptions):
        bottom: Sizes = Field((128,), min_length=1, description="hidden layers of the bottom")

    search_space: ClassVar = {"bottom": {"choice": [[64], [128], [256], [256, 128]]}}

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        self.embedding = FieldEmbedding(schema, options)
        self.bottom = StackedMLP(1, self.embedding.width, options.bottom, options)
        self.towers = Towers(self.tasks, self.bottom.outputs, options)

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        bottom = self.bottom(x)  # (B, 1, d)
        h = bottom.expand(-1, len(self.tasks), -1)  # (B, T, d)
        logits = self.towers(h)
        return self.output(logits, x, boundary=copies_boundary(h, bottom))
