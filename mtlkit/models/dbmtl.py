"""DBMTL: towers whose hidden vectors are passed on to the tasks that depend on them.

x -> [MaskNet] -> [bottom] -> [experts, a gate a task] -> h_t = MLP_t -> r_t = Relation_t([h_t; r_j
for each parent j]) -> y_t = Linear_t(r_t). Parts in brackets are optional. The parents form a
Bayesian network over the tasks, so that P(purchase) may depend on what is known about the click.
Hidden vectors are passed, not logits, and not detached: a child trains its parents, too.

Paper: Wang et al., "Deep Bayesian Multi-Target Learning for Recommender Systems", arXiv:1902.09154.

When to use: tasks with a known order or cause, such as click and purchase.
When not: no reason to put one task before another; the declared order is then arbitrary.
Cost: that of the parts in use; relation towers run one after another, along the longest chain of
parents.
Deviations: the MaskNet block (arXiv:2102.07619) and the experts are additions of public
implementations. Without the option ``parents`` the tasks form a chain, in the order of the funnel
or else of the tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import nn

from mtlkit.data.types import Schema
from mtlkit.errors import UsageError
from mtlkit.models._architecture import Architecture
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._layers import Gate, GateOptions, StackedLinear, StackedMLP, tower_layers
from mtlkit.models._masknet import MaskNet
from mtlkit.models._moe import GateStack, MoELayer
from mtlkit.models._options import BaseOptions
from mtlkit.models._output import Output
from mtlkit.models._types import Batch
from mtlkit.settings import Sizes


def _as_names(value: Any) -> Any:
    """One name as a list of names; "none" as none."""
    if isinstance(value, (list, tuple)):
        return value
    return [] if value in (None, "none") else [value]


class DBMTL(Architecture):
    """Deep Bayesian multi-target learning."""

    class Options(GateOptions):
        mask: Literal["none", "parallel", "serial"] = Field(
            "none", description="MaskNet blocks on the embeddings"
        )
        mask_blocks: int = Field(2, gt=0, description="number of MaskNet blocks")
        mask_hidden: int = Field(64, gt=0, description="hidden width of each mask")
        mask_width: int = Field(64, gt=0, description="width of the output of each MaskNet block")
        bottom: Sizes = Field((128,), description="hidden layers of the bottom, none for no bottom")
        experts: int = Field(0, ge=0, description="number of experts above the bottom, 0 for none")
        hidden: Sizes = Field((32,), min_length=1, description="hidden layers of each expert")
        relation: Sizes = Field(
            (16,), min_length=1, description="hidden layers of each relation tower"
        )
        parents: dict[str, Annotated[tuple[str, ...], BeforeValidator(_as_names)]] = Field(
            default_factory=dict,
            description="task: the tasks it depends on; default: each on the one before",
        )

    search_space: ClassVar = {
        "bottom": {"choice": [[64], [128], [256]]},
        "relation": {"choice": [[16], [32]]},
    }

    @classmethod
    def check(cls, schema: Schema, options: BaseOptions) -> None:
        assert isinstance(options, cls.Options)
        order_of(parents_of(schema, options.parents))

    def __init__(self, schema: Schema, options: Options) -> None:
        super().__init__(schema, options)
        names = schema.task_names
        parents = parents_of(schema, options.parents)
        self.order = [names.index(name) for name in order_of(parents)]
        self.parents = [[names.index(parent) for parent in parents[name]] for name in names]
        self.embedding = FieldEmbedding(schema, options)
        width = self.embedding.width

        # The optional parts below the towers.
        self.mask: MaskNet | None = None
        if options.mask != "none":
            serial = options.mask == "serial"
            blocks, hidden = options.mask_blocks, options.mask_hidden
            self.mask = MaskNet(serial, blocks, width, hidden, options.mask_width)
            width = self.mask.outputs
        self.bottom = StackedMLP(1, width, options.bottom, options)
        width = self.bottom.outputs
        self.moe: MoELayer | None = None
        if options.experts:
            self.gates = Gate(len(names), width, options.experts, options)
            self.experts = StackedMLP(options.experts, width, options.hidden, options)
            self.moe = MoELayer(1, self.experts, [GateStack(names, self.gates)])
            width = self.experts.outputs

        # For each task a tower, a relation tower on it and on those of its parents, and a head.
        hidden_layers = tower_layers(self.tasks, options)
        related = options.relation[-1]
        self.towers = nn.ModuleList()
        self.relations = nn.ModuleList()
        self.heads = nn.ModuleList()
        for task in self.tasks:
            tower = StackedMLP(1, width, hidden_layers[task.name], options)
            inputs = tower.outputs + len(parents[task.name]) * related
            self.towers.append(tower)
            self.relations.append(StackedMLP(1, inputs, options.relation, options))
            self.heads.append(StackedLinear(1, related, task.outputs))

    def forward(self, batch: Batch) -> Output:
        x = self.embedding(batch)
        gates = {}

        # Below the towers: one vector for all tasks, or a mixture of experts for each.
        h = self.bottom(x if self.mask is None else self.mask(x.tensor()))  # (B, 1, d)
        if self.moe is None:
            inputs = h.expand(-1, len(self.tasks), -1)  # (B, T, d)
        else:
            mixture = self.moe(h[:, 0])
            inputs = mixture.outputs  # (B, T, d)
            gates = mixture.gates

        # Towers first, and then relation towers, parents before their children.
        hidden = [tower(inputs[:, t]) for t, tower in enumerate(self.towers)]  # T x (B, 1, w)
        related: dict[int, torch.Tensor] = {}
        for t in self.order:
            passed_on = [related[parent] for parent in self.parents[t]]
            related[t] = self.relations[t](torch.cat([hidden[t], *passed_on], dim=-1))

        logits = []
        for t in range(len(self.tasks)):
            task_logits = self.heads[t](related[t])[:, 0]  # (B, C)
            logits.append(task_logits if task_logits.shape[1] > 1 else task_logits[:, 0])
        return self.output(logits, x, gates)


def parents_of(schema: Schema, parents: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The parents of every task: those of the option, or a chain.

    Raises:
        UsageError: A name is no task of the data.
    """
    names = schema.task_names
    for name in [*parents, *(parent for of_task in parents.values() for parent in of_task)]:
        if name not in names:
            raise UsageError(
                f"dbmtl names the task {name!r}, which the data set does not have.",
                f"it has {', '.join(names)}",
            )
    if parents:
        return {name: tuple(dict.fromkeys(parents.get(name, ()))) for name in names}
    chain = schema.funnel or names
    before = dict(zip(chain[1:], chain, strict=False))
    return {name: (before[name],) if name in before else () for name in names}


def order_of(parents: dict[str, tuple[str, ...]]) -> Sequence[str]:
    """The tasks, parents first.

    Raises:
        UsageError: They depend on each other in a circle.
    """
    try:
        return list(TopologicalSorter(parents).static_order())
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        hint = "mtlkit bench --models dbmtl makes each task depend on the one before it"
        raise UsageError(
            f"The tasks of dbmtl depend on each other in a circle: {circle}.", hint
        ) from None
