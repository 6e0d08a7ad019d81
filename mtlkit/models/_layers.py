"""Layers in stacks: n layers of one shape as one tensor, computed as one product.

Experts of a level, gates of a level and towers of one shape are stacks. ``stack_axes`` names the
axis along which a parameter is a stack, so that training can tell which slice belongs to which
task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mtlkit.data.types import Task
from mtlkit.models._embedded_batch import EmbeddedBatch
from mtlkit.models._initial import glorot_
from mtlkit.models._options import BaseOptions, ModelOptions
from mtlkit.ops.softmax import softmax
from mtlkit.settings import Sizes

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class StackedLinear(nn.Module):
    """n linear layers of one shape.

    Args:
        n: Number of layers.
        inputs: Width of the input of each.
        outputs: Width of the output of each.
        bias: Whether they have one.
    """

    stack_axes = {"weight": 0, "bias": 0}  # noqa: RUF012 - read only

    def __init__(self, n: int, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.n = n
        bound = 1 / math.sqrt(inputs)  # as nn.Linear
        self.weight = nn.Parameter(torch.empty(n, outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n, outputs).uniform_(-bound, bound)) if bias else None

    def glorot(self) -> None:
        """Other initial layers."""
        glorot_(self.weight, self.bias)

    def forward(self, x: Tensor | EmbeddedBatch) -> Tensor:
        """(B, inputs), the same for all layers, or (B, n, inputs); returns (B, n, outputs)."""
        n, outputs, _ = self.weight.shape
        if isinstance(x, EmbeddedBatch) and x.embedding.copies:
            return x.stacked_linear(self.weight, self.bias)
        if isinstance(x, EmbeddedBatch):
            return x.linear_stack(self)
        if x.dim() == 2:
            bias = None if self.bias is None else self.bias.flatten()
            return F.linear(x, self.weight.flatten(0, 1), bias).view(-1, n, outputs)
        if n == 1:
            return F.linear(x[:, 0], self.weight[0], None if self.bias is None else self.bias[0])[
                :, None
            ]
        product = torch.bmm(x.transpose(0, 1), self.weight.transpose(1, 2)).transpose(0, 1)
        return product if self.bias is None else product + self.bias


class StackedNorm(nn.Module):
    """Batch or layer normalisation with its own scale and shift for each layer of a stack.

    Args:
        kind: ``batch`` or ``layer``.
        n: Number of layers.
        width: Width of each.
    """

    stack_axes = {"scale": 0, "shift": 0}  # noqa: RUF012 - read only

    def __init__(self, kind: str, n: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(n, width))
        self.shift = nn.Parameter(torch.zeros(n, width))
        self.batch_norm = nn.BatchNorm1d(n * width, affine=False) if kind == "batch" else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, width) to the same shape."""
        if self.batch_norm is None:
            return F.layer_norm(x, x.shape[-1:]) * self.scale + self.shift
        flat = x.flatten(1).contiguous()  # part of a wider matrix takes many times as long
        mean, variance, training = (
            self.batch_norm.running_mean,
            self.batch_norm.running_var,
            self.training,
        )
        scale, shift = self.scale.flatten(), self.shift.flatten()
        return F.batch_norm(
            flat, mean, variance, scale, shift, training, eps=self.batch_norm.eps
        ).view(x.shape)


class StackedMLP(nn.Module):
    """n multi-layer perceptrons of one shape: linear, optional norm, activation, dropout, for each
    hidden layer.

    Args:
        n: Number of perceptrons.
        inputs: Width of the input of each.
        hidden: Widths of the hidden layers; the last is the output.
        options: Activation, norm and dropout.
    """

    def __init__(self, n: int, inputs: int, hidden: Sequence[int], options: BaseOptions) -> None:
        super().__init__()
        widths = [inputs, *hidden]
        self.linears = nn.ModuleList(StackedLinear(n, a, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(
            nn.Identity() if options.norm == "none" else StackedNorm(options.norm, n, width)
            for width in hidden
        )
        self.activation = ACTIVATIONS[options.activation]
        self.dropout = nn.Dropout(options.dropout)
        self.n = n
        self.outputs = widths[-1]

    @property
    def first(self) -> list[StackedLinear]:
        """The layer that reads the input, if there is one."""
        return [layer for layer in self.linears if isinstance(layer, StackedLinear)][:1]

    def forward(self, x: Tensor | EmbeddedBatch, gates: Sequence[Tensor] = ()) -> Tensor:
        """(B, inputs), the same for all, or (B, n, inputs); returns (B, n, outputs). Gates scale
        the layers.
        """
        for k in range(len(self.linears)):
            x = self.layer(k, x)
            x = x * gates[k] if gates else x
        if isinstance(x, EmbeddedBatch):
            x = x.tensor()
        return (
            x[:, None].expand(-1, self.n, -1) if x.dim() == 2 else x
        )  # no hidden layer: the input itself

    def layer(self, k: int, x: Tensor | EmbeddedBatch) -> Tensor:
        """The k-th hidden layer alone: (B, width) or (B, n, width) to (B, n, its width)."""
        return self.dropout(self.activation(self.norms[k](self.linears[k](x))))


class GateOptions(ModelOptions):
    """Options of every architecture with softmax gates. As they stand, a gate is one linear layer,
    as in the papers.
    """

    gate_hidden: Sizes = Field((), description="hidden layers of each gate")
    gate_bias: bool = Field(False, description="whether the gates' linear layer has a bias")
    gate_norm: Literal["none", "batch", "layer"] = Field(
        "none", description="norm before the gates' softmax"
    )


class Gate(nn.Module):
    """n softmax gates over k experts each.

    Args:
        n: Number of gates.
        inputs: Width of their inputs.
        experts: Number of experts each one mixes.
        options: Hidden layers, bias and norm.
    """

    def __init__(self, n: int, inputs: int, experts: int, options: GateOptions) -> None:
        super().__init__()
        hidden, norm = options.gate_hidden, options.gate_norm
        self.hidden = StackedMLP(n, inputs, hidden, options) if hidden else None
        self.linear = StackedLinear(
            n, hidden[-1] if hidden else inputs, experts, bias=options.gate_bias
        )
        self.norm = StackedNorm(norm, n, experts) if norm != "none" else None

    @property
    def first(self) -> list[StackedLinear]:
        """The layer that reads the input."""
        return [self.linear] if self.hidden is None else self.hidden.first

    def forward(self, x: Tensor | EmbeddedBatch) -> Tensor:
        """(B, inputs) or (B, n, inputs) to weights (B, n, experts) that sum to 1."""
        logits = self.linear(x if self.hidden is None else self.hidden(x))
        logits = logits if self.norm is None else self.norm(logits)
        return softmax(logits)


def own_and_shared(
    tasks: Sequence[str], specific: int, shared: int
) -> tuple[Tensor, tuple[str, ...]]:
    """Experts of a level in the order own of task 1, own of task 2, ..., shared.

    Args:
        tasks: Names of the T tasks.
        specific: Experts of each.
        shared: Experts of all.

    Returns:
        (E,) the task that owns each expert, T for a shared one; and the experts' names.
    """
    owner = torch.cat(
        [torch.arange(len(tasks)).repeat_interleave(specific), torch.full((shared,), len(tasks))]
    )
    names = [f"{name} {k + 1}" for name in tasks for k in range(specific)]
    return owner, (*names, *(f"shared {k + 1}" for k in range(shared)))


class Towers(nn.Module):
    """A tower (MLP and linear layer) for each task; towers of one shape are one stack.

    Args:
        tasks: In the order of the predictions.
        inputs: Width of each task's input.
        options: Hidden layers (``tower``), for all tasks or by task name.
    """

    def __init__(self, tasks: Sequence[Task], inputs: int, options: BaseOptions) -> None:
        super().__init__()
        sizes = (
            options.tower
            if isinstance(options.tower, dict)
            else {task.name: options.tower for task in tasks}
        )
        shapes = {task.name: (sizes.get(task.name, (16,)), task.outputs) for task in tasks}
        self.members = [
            [t for t, task in enumerate(tasks) if shapes[task.name] == shape]
            for shape in dict.fromkeys(shapes.values())
        ]
        self.sizes = [hidden for hidden, _ in dict.fromkeys(shapes.values())]
        self.hidden = nn.ModuleList()
        self.heads = nn.ModuleList()
        for (hidden, outputs), members in zip(
            dict.fromkeys(shapes.values()), self.members, strict=True
        ):
            body = StackedMLP(len(members), inputs, hidden, options)
            self.hidden.append(body)
            self.heads.append(StackedLinear(len(members), body.outputs, outputs))
        self.multiclass = [task.outputs > 1 for task in tasks]

    def forward(self, h: Tensor, gates: Sequence[Sequence[Tensor]] | None = None) -> list[Tensor]:
        """(B, T, d) to the logits of each task: (B,), or (B, C) for a multiclass one.

        Args:
            h: The towers' inputs.
            gates: For each stack, and each of its hidden layers, factors (B, members, width) on the
                layer's output.
        """
        logits: list[Tensor] = [h] * len(self.multiclass)
        for s, (members, hidden, head) in enumerate(
            zip(self.members, self.hidden, self.heads, strict=True)
        ):
            own = h if len(members) == h.shape[1] else h[:, members]
            out = head(hidden(own, () if gates is None else gates[s]))  # (B, members, outputs)
            for place, t in enumerate(members):
                logits[t] = out[:, place] if self.multiclass[t] else out[:, place, 0]
        return logits
