"""Naive twins of the architectures: one module an expert, gate and tower, one lookup a feature, no
stacks.

A twin holds a copy of every slice of every parameter as a parameter of its own, and computes the
forward pass expert by expert as the papers write it. Its outputs, gradients and sharing are what
the batched model must have.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, count

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.models._architecture import Architecture
from mtlkit.models._output import Output
from mtlkit.models._types import Batch, Prediction

Forward = Callable[["Twin", Batch], list[Tensor]]


class Twin(nn.Module):
    """The naive form of a model with ReLU, without norm and dropout, and with one embedding width.

    Args:
        model: The batched model whose weights are copied.
        forward: Computes the logits of each task from ``Twin``'s pieces.
    """

    def __init__(self, model: Architecture, forward: Forward) -> None:
        super().__init__()
        self.model, self._forward = [model], forward  # in a list: no sub-module
        self.slices: list[tuple[str, int]] = []
        self.values = nn.ParameterList()
        self.axes = {
            f"{prefix}.{name}".lstrip("."): axis
            for prefix, module in model.named_modules()
            for name, axis in getattr(module, "stack_axes", {}).items()
        }
        for name, value in model.named_parameters():
            axis = self.axes.get(name)
            slices = [value] if axis is None else value.unbind(axis)
            for k, piece in enumerate(slices):
                self.slices.append((name, k))
                self.values.append(nn.Parameter(piece.detach().clone()))

    def piece(self, name: str, k: int = 0) -> Tensor | None:
        """The k-th slice of a parameter, or None if there is no such parameter."""
        return self.values[self.slices.index((name, k))] if (name, k) in self.slices else None

    def forward(self, batch: Batch) -> Output:
        model = self.model[0]
        logits = self._forward(self, batch)
        logits = [
            x if task.outputs > 1 else x[:, 0] for task, x in zip(model.tasks, logits, strict=True)
        ]
        return Output(
            [Prediction(task.name, x) for task, x in zip(model.tasks, logits, strict=True)]
        )

    def losses(self, batch: Batch) -> list[Tensor]:
        """The loss of each task."""
        return [objective.loss for objective in self.model[0].objectives(self(batch), batch)]

    # the pieces that papers are made of

    def x(self, batch: Batch, copy: int = 0) -> Tensor:
        """(B, D) lookups of all ids, then the dense values."""
        embedding = self.model[0].embedding
        (group,) = embedding.groups
        table, start, columns = self.piece(f"embedding.{group.parameter}", copy), 0, []
        for column, feature in enumerate(self.model[0].schema.of_kind("id")):
            columns.append(table[start : start + feature.vocab][batch.ids[:, column].long()])
            start += feature.vocab
        return torch.cat([*columns, batch.dense], -1)

    def mlp(self, name: str, k: int, x: Tensor) -> Tensor:
        """The k-th perceptron of a stack."""
        for layer in count():
            weight = self.piece(f"{name}.linears.{layer}.weight", k)
            if weight is None:
                break
            x = F.relu(F.linear(x, weight, self.piece(f"{name}.linears.{layer}.bias", k)))
        return x

    def gate(self, name: str, k: int, x: Tensor, experts: list[Tensor]) -> Tensor:
        """The mixture of experts by the k-th gate of a stack."""
        weights = F.linear(x, self.piece(f"{name}.linear.weight", k)).softmax(-1)
        assert weights.shape[1] == len(experts)
        return sum(weights[:, e, None] * expert for e, expert in enumerate(experts))

    def tower(self, t: int, h: Tensor) -> Tensor:
        """The logits of task t."""
        stack, k = next(
            (s, members.index(t))
            for s, members in enumerate(self.model[0].towers.members)
            if t in members
        )
        h = self.mlp(f"towers.hidden.{stack}", k, h)
        return F.linear(
            h,
            self.piece(f"towers.heads.{stack}.weight", k),
            self.piece(f"towers.heads.{stack}.bias", k),
        )


def single_task(twin: Twin, batch: Batch) -> list[Tensor]:
    tasks = range(len(twin.model[0].tasks))
    return [twin.tower(t, twin.mlp("bottom", t, twin.x(batch, copy=t))) for t in tasks]


def shared_bottom(twin: Twin, batch: Batch) -> list[Tensor]:
    h = twin.mlp("bottom", 0, twin.x(batch))
    return [twin.tower(t, h) for t in range(len(twin.model[0].tasks))]


def mmoe(twin: Twin, batch: Batch) -> list[Tensor]:
    x = twin.x(batch)
    experts = [twin.mlp("experts", k, x) for k in range(twin.model[0].options.experts)]
    return [
        twin.tower(t, twin.gate("gates", t, x, experts)) for t in range(len(twin.model[0].tasks))
    ]


def omoe(twin: Twin, batch: Batch) -> list[Tensor]:
    x = twin.x(batch)
    h = twin.gate(
        "gates", 0, x, [twin.mlp("experts", k, x) for k in range(twin.model[0].options.experts)]
    )
    return [twin.tower(t, h) for t in range(len(twin.model[0].tasks))]


def ple(twin: Twin, batch: Batch) -> list[Tensor]:
    model = twin.model[0]
    tasks, specific, shared_count = len(model.tasks), model.options.specific, model.options.shared
    levels = getattr(model.options, "levels", 1)
    paths = [twin.x(batch)] * tasks  # x_1 .. x_T
    shared_path = paths[0]  # x_S
    for level in range(levels):
        name = f"experts.{level}"
        mine = [
            [twin.mlp(name, t * specific + k, paths[t]) for k in range(specific)]
            for t in range(tasks)
        ]
        shared = [twin.mlp(name, tasks * specific + k, shared_path) for k in range(shared_count)]
        mixed = [twin.gate(f"gates.{level}", t, paths[t], mine[t] + shared) for t in range(tasks)]
        if level < levels - 1:
            shared_path = twin.gate(
                f"shared_gates.{level}", 0, shared_path, [*chain(*mine), *shared]
            )
        paths = mixed
    return [twin.tower(t, h) for t, h in enumerate(paths)]


FORWARD: dict[str, Forward] = {
    "single-task": single_task,
    "shared-bottom": shared_bottom,
    "mmoe": mmoe,
    "omoe": omoe,
    "cgc": ple,
    "ple": ple,
}
