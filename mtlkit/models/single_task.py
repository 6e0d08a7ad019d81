"""Single-task: a full model for each task, with nothing in common.

y_t = Tower_t(Bottom_t(Embedding_t(x))). The reference of every multi-task method: each task has its
own embeddings, bottom and tower, sees the same batches under the same budget, and keeps its own
best evaluation point. The T models are trained side by side as one batched model, which changes
nothing: no parameter is shared.

On a funnel every score has a network of its own, trained for that score: click -> purchase has one
for CTR and one for CTCVR on all rows, and one for CVR on clicked rows. A CVR derived from networks
that know nothing of each other would be a straw man.

Paper: the single-task baseline as in Ma et al., "Modeling Task Relationships in Multi-task Learning
with Multi-gate Mixture-of-Experts", KDD 2018, doi:10.1145/3219819.3220007.

When to use: always, as the reference.
When not: as a proposal; it costs T models.
Cost: T full models, and one more for each later step of a funnel; no balancer applies.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mtlkit.data.types import Schema
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import StackedMLP, Towers
from mtlkit.models._options import ModelOptions
from mtlkit.models._output import Output
from mtlkit.models._types import Batch
from mtlkit.settings import Sizes


class SingleTask(Architecture):
    """One model a task."""

    class Options(ModelOptions):
        bottom: Sizes = Field(
            (128,), min_length=1, description="hidden layers of each task's bottom"
        )
        cvr: Literal["both", "derived", "clicked"] = Field(  # type: ignore[assignment]
            "both",
            description="later steps of a funnel: both: one network for CTCVR on all rows, and one "
            "for CVR on the rows that took the step before; derived or clicked: one of the two, "
            "from which the other score is derived",
        )

    search_space: ClassVar = {"bottom": {"choice": [[64], [128], [256], [256, 128]]}}
    shares_parameters = False
    is_reference = True

    def __init__(self, schema: Schema, options: Options) -> None:
        if options.cvr == "both":
            schema = schema.with_conditional_tasks()
        super().__init__(schema, options)
        n_tasks = len(self.tasks)
        self.embedding = FieldEmbedding(schema, options, copies=n_tasks)
        self.bottom = StackedMLP(n_tasks, self.embedding.width, options.bottom, options)
        self.towers = Towers(self.tasks, self.bottom.outputs, options)

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)  # (B, T, D)
        h = self.bottom(x)  # (B, T, d)
        return self.output(self.towers(h))
