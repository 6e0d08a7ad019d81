"""ESMM: click times conversion, trained on all rows, so that conversion needs no clicked rows.

x -> f_t(x), one network a step: pCTR = s(f_1(x)), pCVR = s(f_2(x)), pCTCVR = pCTR * pCVR, all (B,);
f_t = Tower_t o Bottom_t. Loss: BCE(click, pCTR) + BCE(click & buy, pCTCVR), both over all rows, and
none on pCVR. The embeddings are shared; through the product, the loss of CTCVR reaches the click
network as well.

Paper: Ma et al., "Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click
Conversion Rate", SIGIR 2018, doi:10.1145/3209978.3210104, arXiv:1804.07931.

When to use: click -> purchase data where conversion is to be ranked on all rows and not only on
clicked ones.
When not: without a funnel; where the level of CVR matters, which the product leaves loose where
clicks are rare (see escm2).
Cost: one bottom and one tower a step, one embedding.
Deviations: the product is taken of logits, -logsumexp(-a, -b, -a - b), instead of clamped
probabilities; it is finite for any logits. Longer funnels are products of all steps. Tasks outside
of the funnel get a network of their own. With --force on data without a funnel, all tasks are taken
for one in their declared order. The last layer that the networks share, which gradnorm asks for, is
the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from mtlkit.data.types import ALL_ROWS, Schema, Task, rows_with
from mtlkit.errors import UsageError
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._funnel import funnel_columns, running_products
from mtlkit.models._layers import StackedMLP, Towers
from mtlkit.models._options import BaseOptions
from mtlkit.models._output import Output
from mtlkit.models._types import Batch, Prediction
from mtlkit.settings import Sizes

ONE_LOGIT = "take a loss of one logit, such as bce or listwise, or a model without products"


class ESMM(Architecture):
    """Entire-space multi-task model."""

    needs_funnel = True

    class Options(BaseOptions):
        bottom: Sizes = Field(
            (128,), min_length=1, description="hidden layers of each step's bottom"
        )

    search_space: ClassVar = {"bottom": {"choice": [[64], [128], [256], [256, 128]]}}

    @classmethod
    def inapplicable(cls, schema: Schema) -> str | None:
        return super().inapplicable(schema) or _wide_step(schema)

    @classmethod
    def check(cls, schema: Schema, options: BaseOptions) -> None:
        super().check(schema, options)
        reason = _wide_step(schema)
        if reason is not None:
            raise UsageError(f"{cls.__name__} cannot be built: the data set {reason}.", ONE_LOGIT)

    def __init__(self, schema: Schema, options: Options, extra: Sequence[Task] = ()) -> None:
        super().__init__(schema, options)
        self.steps = funnel_columns(schema, type(self).__name__)
        networks = (*self.tasks, *extra)
        self.embedding = FieldEmbedding(schema, options)
        self.bottom = StackedMLP(len(networks), self.embedding.width, options.bottom, options)
        self.towers = Towers(networks, self.bottom.outputs, options)

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        names = self.schema.task_names
        logits = self.towers(self.bottom(x))  # of a step: given the one before
        output = self.output(logits[: len(names)], x)
        output.extra = logits[len(names) :]

        # The products are trained, on all rows.
        products = running_products([logits[step] for step in self.steps])
        for step, product in zip(self.steps, products, strict=True):
            output.predictions[step] = Prediction(names[step], product, ALL_ROWS)

        # Their factors are scored, on the rows that took the step before.
        for before, step in pairwise(self.steps):
            space = rows_with(names[before])
            output.further.append(Prediction(names[step], logits[step], space))
        return output

    def own_logits(self, output: Output) -> list[Tensor]:
        logits = super().own_logits(output)
        for step, factor in zip(self.steps[1:], output.further, strict=True):
            logits[step] = factor.logits
        return logits


def _wide_step(schema: Schema) -> str | None:
    """Why a product means nothing: a step of the funnel whose loss needs several logits."""
    for task in schema.tasks:
        if task.outputs > 1 and task.name in (schema.funnel or ()):
            losses = " + ".join(task.losses)
            return f"trains {task.name} by {losses}, which a product, of one logit a row, cannot"
    return None
