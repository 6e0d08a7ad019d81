"""The embedded rows of a batch, and the layers that read them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import zip_longest
from typing import Protocol

import torch
from torch import Tensor, nn

from mtlkit.models._input_linear import Cuts, FoldedLinear, PlainLinear
from mtlkit.models._lookup import Lookup, Reads
from mtlkit.models._tables import EmbeddingTables
from mtlkit.models._types import Batch
from mtlkit.ops._simd import LANES


class LinearStack(Protocol):
    """n linear layers of one shape, as :class:`mtlkit.models._layers.StackedLinear`."""

    weight: nn.Parameter  # (n, O, D)
    bias: nn.Parameter | None  # (n, O)


class EmbeddedBatch:
    """The embedded rows of a batch, x (B, D), or (B, copies, D) for an embedding with copies.

    Linear layers on x need not form it, see :mod:`mtlkit.models._input_linear`.

    Attributes:
        cuts: See :class:`~mtlkit.models._input_linear.Cuts`.
        is_folded: Whether linear layers are applied to the tables.
        first_layers: The layers on x so far.
    """

    def __init__(self, embedding: EmbeddingTables, batch: Batch) -> None:
        self.embedding = embedding
        self.cuts = Cuts()
        self.first_layers: list[FirstLayer] = []
        self._lookup = Lookup(embedding, batch)
        self._together: tuple[LinearStack, ...] = ()
        self._tensor: Tensor | None = None
        self._reads: Reads | None = None
        groups = embedding.foldable_groups()
        self.is_folded = bool(groups)
        self._form: PlainLinear | FoldedLinear = (
            FoldedLinear(self._lookup, self.cuts, groups)
            if groups
            else PlainLinear(self._lookup, self.cuts)
        )

    def tensor(self) -> Tensor:
        """x itself, made once."""
        if self._tensor is None:
            x = self._lookup.x()
            # A view of its own: linear layers read x itself, and have cuts of their own.
            self._tensor = self.cuts.add(x.view_as(x), x)
        return self._tensor

    @property
    def materialised(self) -> Tensor | None:
        """x, if a layer has asked for it."""
        return self._lookup.materialised

    def compute_together(self, *layers: LinearStack) -> EmbeddedBatch:
        """Have these layers computed as one product, when the first of them is asked for."""
        self._together = layers
        return self

    def first_layer_of(self, layer: LinearStack) -> FirstLayer:
        """The product that a layer is part of."""
        for first_layer in self.first_layers:
            if _contains(first_layer.layers, layer):
                return first_layer
        layers = self._together if _contains(self._together, layer) else (layer,)
        first_layer = FirstLayer(layers, self)
        self.first_layers.append(first_layer)
        return first_layer

    def linear_stack(self, layer: LinearStack) -> Tensor:
        """A stack of layers on x, for an embedding without copies; (B, n, O)."""
        return self.first_layer_of(layer).output_of(layer)

    def linear(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``F.linear(x, weight, bias)`` for an embedding without copies; (O, D) to (B, O)."""
        return self._form.linear(weight, bias)

    def linear_by_copy(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(B, n, O) of a linear layer for each copy, or for each of :meth:`sums_of_copies`.

        Args:
            weight: (n, O, D).
            bias: (n, O).
        """
        return self._form.linear_by_copy(weight, bias, self._reads)

    def sums_of_copies(self, reads: Reads) -> EmbeddedBatch:
        """The same rows for stacks of layers of which each reads the sum of some copies."""
        sums = copy(self)
        sums._reads = reads
        return sums

    def copy_if_formed(self, k: int) -> Tensor | None:
        """(B, D) one copy, if a layer has asked for x."""
        return None if self.materialised is None else self._lookup.copies()[k]

    def weight_and_cut_gradients(self, columns: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """From gradients of a product's outputs to those of its weights and cuts.

        Args:
            columns: (B, C), each the gradient of one output of the product. An output may appear
                several times, for several tasks, and in any order.

        Returns:
            (C, D) the gradients of the rows of the weights that made these outputs, (C,) those of
            their biases, and for each cut (rows, C).
        """
        return self._form.weight_and_cut_gradients(columns)


class FirstLayer:
    """Layers that read x, computed as one: ``x @ [W_1; W_2; ...].T``.

    Attributes:
        layers: The layers.
        sizes: The number of columns of each, n * O; and last that of columns without a layer.
        output: (B, C) the outputs of all layers, side by side.
        cuts: Those of the batch's cuts (rows, columns) that this product added.
    """

    def __init__(self, layers: Sequence[LinearStack], embedded: EmbeddedBatch) -> None:
        self.layers = list(layers)
        self.sizes = [layer.weight.shape[:2].numel() for layer in self.layers]
        columns = sum(self.sizes)

        # The kernels of the fold take twice as long where rows are no whole number of vectors. A
        # single layer is left as it is: what follows takes longer on a slice.
        pads = embedded.is_folded and len(self.layers) > 1
        self.sizes.append(-columns % LANES if pads else 0)

        # The product adds to the cuts of the batch; what is new there belongs to it.
        cuts_before = len(embedded.cuts)
        output = embedded.linear(*side_by_side(self.layers, self.sizes[-1]))
        self.output = output[:, :columns] if self.sizes[-1] else output
        self.cuts = list(embedded.cuts[cuts_before:])
        self._outputs: list[Tensor] = []  # by layer, once one of them is asked for

    def output_of(self, layer: LinearStack) -> Tensor:
        """The output of one layer, (B, n, O)."""
        if not self._outputs:
            single = len(self.layers) == 1
            self._outputs = [self.output] if single else list(self.output.split(self.sizes[:-1], 1))
        index = next(k for k, member in enumerate(self.layers) if member is layer)
        return self._outputs[index].view(self.output.shape[0], *layer.weight.shape[:2])

    @property
    def endpoints(self) -> list[tuple[Tensor, list[int]]]:
        """Tensors through which alone the layers reach the losses, each with its layers."""
        if self._outputs:
            return [(output, [k]) for k, output in enumerate(self._outputs)]
        return [(self.output, list(range(len(self.layers))))]

    def parameters(self) -> list[nn.Parameter]:
        """The weights and biases of all layers."""
        parameters = []
        for layer in self.layers:
            parameters.append(layer.weight)
            if layer.bias is not None:
                parameters.append(layer.bias)
        return parameters


def side_by_side(layers: Sequence[LinearStack], zeros: int = 0) -> tuple[Tensor, Tensor | None]:
    """Layers as a single one, and some columns of zeros after them.

    Returns:
        Weight (C, D) and bias (C,), 0 for columns without one; None if no layer has any.
    """
    first = layers[0].weight
    weights = [layer.weight.flatten(0, 1) for layer in layers]
    if zeros:
        weights.append(first.new_zeros(zeros, first.shape[2]))
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)

    biases = [layer.bias for layer in layers]
    if all(bias is None for bias in biases):
        return weight, None
    columns = [
        first.new_zeros(len(layer_weight)) if bias is None else bias.flatten()
        for layer_weight, bias in zip_longest(weights, biases)
    ]
    return weight, columns[0] if len(columns) == 1 else torch.cat(columns)


def _contains(layers: Sequence[LinearStack], layer: LinearStack) -> bool:
    return any(member is layer for member in layers)
