"""Layers in stacks: n layers of one shape as one tensor, computed as one product.

Experts of a level, gates of a level and towers of one shape are stacks. ``stack_axes`` names the
axis along which a parameter is a stack, so that training can tell which slice belongs to which
task. All of them take a tensor or an ``EmbeddedBatch``.
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
from mtlkit.models._options import DEFAULT_TOWER, BaseOptions, ModelOptions
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
        """Draw the layers anew."""
        glorot_(self.weight, self.bias)

    def forward(self, x: Tensor | EmbeddedBatch) -> Tensor:
        """Apply the layers.

        Args:
            x: (B, inputs), the same for all layers, or (B, n, inputs), or (B, p, inputs), of which
                the first n / p layers read the first, and so on.

        Returns:
            (B, n, outputs).
        """
        # The embedded features, which need not be formed.
        if isinstance(x, EmbeddedBatch):
            if x.embedding.copies:
                return x.linear_by_copy(self.weight, self.bias)
            return x.linear_stack(self)

        # One input for all layers: a single wide layer.
        if x.dim() == 2:
            bias = None if self.bias is None else self.bias.flatten()
            product = F.linear(x, self.weight.flatten(0, 1), bias)  # (B, n * outputs)
            return product.view(-1, *self.weight.shape[:2])

        # A single layer is not worth a batched product.
        if self.n == 1:
            bias = None if self.bias is None else self.bias[0]
            return F.linear(x[:, 0], self.weight[0], bias)[:, None]

        # An input for each layer; those of one input are a wide layer.
        by_input, paths = x.transpose(0, 1), x.shape[1]
        weight = self.weight.view(paths, -1, x.shape[2]).transpose(1, 2)
        if self.bias is None:
            product = torch.bmm(by_input, weight)
        elif torch.is_autocast_enabled(x.device.type):  # the bias stays in full precision
            product = torch.bmm(by_input, weight) + self.bias.view(paths, 1, -1)
        else:
            product = torch.baddbmm(self.bias.view(paths, 1, -1), by_input, weight)
        product = product.transpose(0, 1)  # (B, p, n / p * outputs)
        return product if paths == self.n else product.reshape(-1, *self.weight.shape[:2])


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
        flat = x.flatten(1).contiguous()  # slices of a wider matrix take many times as long
        normalised = F.batch_norm(
            flat,
            self.batch_norm.running_mean,
            self.batch_norm.running_var,
            self.scale.flatten(),
            self.shift.flatten(),
            self.training,
            eps=self.batch_norm.eps,
        )
        return normalised.view(x.shape)


class StackedMLP(nn.Module):
    """n multi-layer perceptrons of one shape.

    Each hidden layer is a linear layer, an optional norm, the activation and dropout.

    Args:
        n: Number of perceptrons.
        inputs: Width of the input of each.
        hidden: Widths of the hidden layers; the last is the output.
        options: Activation, norm and dropout.
        linear: From n, inputs and outputs to n linear layers.

    Attributes:
        outputs: Width of the output of each.
    """

    def __init__(
        self,
        n: int,
        inputs: int,
        hidden: Sequence[int],
        options: BaseOptions,
        linear: Callable[[int, int, int], nn.Module] = StackedLinear,
    ) -> None:
        super().__init__()
        self.n = n
        widths = [inputs, *hidden]
        self.outputs = widths[-1]
        self.linears = nn.ModuleList(linear(n, a, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList()
        for width in hidden:
            plain = options.norm == "none"
            self.norms.append(nn.Identity() if plain else StackedNorm(options.norm, n, width))
        self.activation = ACTIVATIONS[options.activation]
        self.dropout = nn.Dropout(options.dropout)

    @property
    def first(self) -> list[StackedLinear]:
        """The layer that reads the input, if there is one."""
        return [layer for layer in self.linears if isinstance(layer, StackedLinear)][:1]

    @property
    def is_one_relu_layer(self) -> bool:
        """Whether it is, in its present mode, nothing but relu(W x + b)."""
        return (
            len(self.linears) == 1
            and isinstance(self.norms[0], nn.Identity)
            and self.activation is F.relu
            and not (self.training and self.dropout.p > 0)
        )

    def forward(self, x: Tensor | EmbeddedBatch, factors: Sequence[Tensor] = ()) -> Tensor:
        """Apply the perceptrons.

        Args:
            x: (B, inputs), the same for all, or (B, n, inputs).
            factors: For each hidden layer, (B, n, width) factors on its output; none by default.

        Returns:
            (B, n, outputs), the input itself where there is no hidden layer.
        """
        for k in range(len(self.linears)):
            x = self.layer(k, x)
            if factors:
                x = x * factors[k]
        if isinstance(x, EmbeddedBatch):
            x = x.tensor()
        return x[:, None].expand(-1, self.n, -1) if x.dim() == 2 else x

    def layer(self, k: int, x: Tensor | EmbeddedBatch) -> Tensor:
        """The k-th hidden layer alone: (B, width) or (B, n, width) to (B, n, its width)."""
        z = self.norms[k](self.linears[k](x))
        return self.dropout(self.activation(z))


class GateOptions(ModelOptions):
    """Options of every architecture with softmax gates.

    By default a gate is one linear layer, as in the papers.
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
        experts: Number of experts that each one mixes, k.
        options: Hidden layers, bias and norm.
    """

    def __init__(self, n: int, inputs: int, experts: int, options: GateOptions) -> None:
        super().__init__()
        hidden = options.gate_hidden
        norm = options.gate_norm
        self.hidden = StackedMLP(n, inputs, hidden, options) if hidden else None
        width = hidden[-1] if hidden else inputs
        self.linear = StackedLinear(n, width, experts, bias=options.gate_bias)
        self.norm = StackedNorm(norm, n, experts) if norm != "none" else None

    @property
    def first(self) -> list[StackedLinear]:
        """The layer that reads the input."""
        return [self.linear] if self.hidden is None else self.hidden.first

    @property
    def is_one_layer(self) -> bool:
        """Whether it is nothing but a linear layer and the softmax."""
        return self.hidden is None and self.norm is None

    def forward(self, x: Tensor | EmbeddedBatch) -> Tensor:
        """(B, inputs) or (B, n, inputs) to weights (B, n, k) that sum to 1."""
        logits = self.linear(x if self.hidden is None else self.hidden(x))
        if self.norm is not None:
            logits = self.norm(logits)
        return softmax(logits)


class Towers(nn.Module):
    """A tower (MLP and linear layer) for each task; towers of one shape are one stack.

    Args:
        tasks: In the order of the predictions.
        inputs: Width of each task's input.
        options: Hidden layers (``tower``), for all tasks or by task name.

    Attributes:
        members: For each stack, the columns of its tasks.
        sizes: For each stack, the widths of its hidden layers.
    """

    def __init__(self, tasks: Sequence[Task], inputs: int, options: BaseOptions) -> None:
        super().__init__()
        hidden_layers = tower_layers(tasks, options)

        # Tasks by the shape of their tower, in the order in which shapes first appear.
        stacks: dict[tuple[Sizes, int], list[int]] = {}
        for t, task in enumerate(tasks):
            shape = (hidden_layers[task.name], task.outputs)
            stacks.setdefault(shape, []).append(t)

        self.members = list(stacks.values())
        self.sizes = [hidden for hidden, _ in stacks]
        self.is_wide = [task.outputs > 1 for task in tasks]
        self.hidden = nn.ModuleList()
        self.heads = nn.ModuleList()
        for (hidden, outputs), members in stacks.items():
            body = StackedMLP(len(members), inputs, hidden, options)
            self.hidden.append(body)
            self.heads.append(StackedLinear(len(members), body.outputs, outputs))

    def forward(self, h: Tensor, factors: Sequence[Sequence[Tensor]] | None = None) -> list[Tensor]:
        """The logits of all tasks.

        Args:
            h: (B, T, d) the towers' inputs.
            factors: For each stack and each of its hidden layers, (B, members, width) factors on
                the layer's output.

        Returns:
            For each task (B,), or (B, C) for one of C logits a row.
        """
        logits: list[Tensor] = [h] * len(self.is_wide)
        stacks = zip(self.members, self.hidden, self.heads, strict=True)
        for stack, (members, hidden, head) in enumerate(stacks):
            inputs = h if len(members) == h.shape[1] else h[:, members]
            body = hidden(inputs, () if factors is None else factors[stack])
            outputs = head(body)  # (B, members, outputs)
            if not self.is_wide[members[0]]:
                outputs = outputs.flatten(1)  # (B, members)
            # at once: the gradient is put together in one operation
            for t, task_logits in zip(members, outputs.unbind(1), strict=True):
                logits[t] = task_logits
        return logits


def tower_layers(tasks: Sequence[Task], options: BaseOptions) -> dict[str, Sizes]:
    """Task name to the hidden layers of its tower; tasks that the option leaves out get the
    default.
    """
    if isinstance(options.tower, dict):
        return {task.name: options.tower.get(task.label_name, DEFAULT_TOWER) for task in tasks}
    return {task.name: options.tower for task in tasks}
