"""Steps of the training loop, made by hand from a model and a batch."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.data.types import Schema
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import StackedMLP, Towers
from mtlkit.models._options import ModelOptions
from mtlkit.models._output import Output
from mtlkit.models._types import Batch, Prediction
from mtlkit.training.sharing import SharedParameters
from mtlkit.training.step import LoopStep, StepInfo
from mtlkit.training.task_losses import owner_active, owner_losses

SHARING: WeakKeyDictionary[Architecture, SharedParameters] = WeakKeyDictionary()


def loop_step(model: Architecture, batch: Batch, **options: Any) -> LoopStep:
    """What ``Trainer._step`` makes of a batch; the sharing is found once for each model."""
    output = model(batch)
    objectives = model.objectives(output, batch)
    tasks = model.schema.task_names
    sharing = options.pop("sharing", None) or SHARING.get(model)
    if sharing is None:
        sharing = SHARING.setdefault(model, SharedParameters(model, batch))
    draw = options.pop("draw", lambda: loop_step(model, batch))
    info = {"index": 0, "total": 10, "seed": 0, "scope": "dense"} | options
    return LoopStep(
        sharing,
        output,
        owner_losses(objectives, tasks),
        owner_active(objectives, tasks, torch.ones(len(tasks), dtype=torch.bool)),
        StepInfo(**info),
        draw,
    )


class Islands(Architecture):
    """Tasks in groups: those of a group share a bottom, all share the embedding or, with ``apart``,
    nothing.
    """

    class Options(ModelOptions):
        groups: tuple[tuple[int, ...], ...] = ((0, 1), (2,))
        apart: bool = False
        unused: bool = False
        bottom: bool = Field(True)

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        groups = options.groups
        self.embedding = FieldEmbedding(schema, options, copies=len(groups) if options.apart else 0)
        self.bottom = StackedMLP(
            len(groups), self.embedding.width, (6,) if options.bottom else (), options
        )
        self.towers = Towers(self.tasks, self.bottom.outputs, options)
        if options.unused:
            self.unused = nn.Linear(3, 3)

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch).tensor()
        h: Tensor = self.bottom(x)  # (B, G, d)
        group = {t: g for g, members in enumerate(self.options.groups) for t in members}
        logits = self.towers(h[:, [group[t] for t in range(len(self.tasks))]])
        return Output(
            [Prediction(task.name, x) for task, x in zip(self.tasks, logits, strict=True)]
        )
