"""The embedded rows of a batch, and the layers that read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.ops.folded_linear import add_fold_weight_gradients, fold
from mtlkit.ops.sum_rows import RowIndex, sum_rows

if TYPE_CHECKING:
    from mtlkit.models._embedding import FieldEmbedding, TableGroup
    from mtlkit.models._types import Batch


class LinearStack(Protocol):
    """n linear layers of one shape, as :class:`mtlkit.models._layers.StackedLinear`."""

    weight: nn.Parameter  # (n, O, D)
    bias: nn.Parameter | None  # (n, O)


class FirstLayer:
    """Layers that read x, computed as one: ``x @ [W_1; W_2; ...].T``.

    Attributes:
        layers: The layers.
        output: (B, C) what they make of x, one after the other.
        cuts: Tensors (rows, C) through which the tables reach it.
    """

    def __init__(self, layers: Sequence[LinearStack], embedded: EmbeddedBatch) -> None:
        self.layers = list(layers)
        sizes = self.sizes = [
            layer.weight.shape[0] * layer.weight.shape[1] for layer in self.layers
        ]
        weights = [layer.weight.flatten(0, 1) for layer in self.layers]
        biases = [layer.bias for layer in self.layers]
        bias: Tensor | None = None
        if any(own is not None for own in biases):
            parts = [
                weights[0].new_zeros(size) if own is None else own.flatten()
                for size, own in zip(sizes, biases, strict=True)
            ]
            bias = parts[0] if len(parts) == 1 else torch.cat(parts)
        known = len(embedded.cuts)
        self.output = embedded.linear(weights[0] if len(weights) == 1 else torch.cat(weights), bias)
        self.cuts = embedded.cuts[known:]
        self._parts: list[Tensor] = []

    def output_of(self, layer: LinearStack) -> Tensor:
        """What a layer makes of x, (B, n, O)."""
        if not self._parts:
            self._parts = (
                [self.output] if len(self.sizes) == 1 else list(self.output.split(self.sizes, 1))
            )
        place = next(k for k, own in enumerate(self.layers) if own is layer)
        return self._parts[place].view(len(self.output), *layer.weight.shape[:2])

    @property
    def endpoints(self) -> list[tuple[Tensor, list[int]]]:
        """Tensors through which alone the layers reach the losses, and the places of the layers
        behind each.
        """
        places = list(range(len(self.layers)))
        if self._parts:
            return [(part, [k]) for k, part in zip(places, self._parts, strict=True)]
        return [(self.output, places)]

    def parameters(self) -> list[nn.Parameter]:
        """Of all layers."""
        return [
            value
            for layer in self.layers
            for value in (layer.weight, layer.bias)
            if value is not None
        ]


class EmbeddedBatch:
    """The embedded rows of a batch, x (B, D), or (B, copies, D) for an embedding with copies.

    ``linear`` computes a layer on x. Where vocabularies are small it never forms x: the layer is
    applied to the table once, and each row sums its ids' results, which is the same sum in another
    order.
    """

    def __init__(self, embedding: FieldEmbedding, batch: Batch) -> None:
        self.embedding = embedding
        self.batch = batch
        self.cuts: list[Tensor] = []
        """Tensors through which the tables reach everything else, none of them made of another."""
        self.first_layers: list[FirstLayer] = []
        self._fused: tuple[LinearStack, ...] = ()
        self._tensor: Tensor | None = batch.embedded
        self._direct: Tensor | None = None
        self._found: dict[str, RowIndex] = {}
        self._joined: dict[int | None, Tensor] = {}  # by copy
        self._folds = bool(embedding.foldable_groups()) and not torch.is_autocast_enabled("cpu")

    def fuse(self, *layers: LinearStack) -> EmbeddedBatch:
        """Have these layers computed as one product, when the first of them is asked for."""
        self._fused = layers
        return self

    def linear_stack(self, layer: LinearStack) -> Tensor:
        """A stack of layers on x, for an embedding without copies; (B, n, O)."""
        return self.first_layer_of(layer).output_of(layer)

    def first_layer_of(self, layer: LinearStack) -> FirstLayer:
        """The product that a layer is part of."""
        for product in self.first_layers:
            if any(own is layer for own in product.layers):
                return product
        members = self._fused if any(own is layer for own in self._fused) else (layer,)
        self.first_layers.append(FirstLayer(members, self))
        return self.first_layers[-1]

    def tensor(self) -> Tensor:
        """x itself, made once."""
        if self._direct is None:
            x = self._x()
            self._direct = self._cut(x.view_as(x), x)  # apart from the x that linear layers read
        return self._direct

    def _x(self) -> Tensor:
        if self._tensor is None:
            parts = [self._lookup(group) for group in self.embedding.groups] + self._rest()
            self._tensor = torch.cat(parts, dim=-1)
        return self._tensor

    @property
    def materialised(self) -> Tensor | None:
        """x, if some layer asked for it."""
        return self._tensor

    def linear(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``F.linear(x, weight, bias)`` for an embedding without copies; weight (O, D), result (B,
        O).
        """
        if not self._folds:
            return self._cut(F.linear(self._x(), weight, bias), self._x())
        return self._folded(weight, bias, None)

    def stacked_linear(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A linear layer for each copy; weight (copies, O, D), bias (copies, O), result (B, copies,
        O).
        """
        if not self._folds:
            product = torch.bmm(self._x().transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
            return self._cut(product if bias is None else product + bias, self._x())
        copies = range(self.embedding.copies)
        return torch.stack(
            [self._folded(weight[c], None if bias is None else bias[c], c) for c in copies], dim=1
        )

    def _folded(self, weight: Tensor, bias: Tensor | None, copy: int | None) -> Tensor:
        groups = self.embedding.foldable_groups()
        by_rest = weight[:, groups[-1].stop :]
        parts = []
        numbers = self.batch.dense if self._numbers_fold else None
        if numbers is None:
            rest = self._joined_rest(copy)
            parts.append(self._cut(F.linear(rest, by_rest, bias), rest))
            bias = None
        elif self.embedding.numbers is not None:
            by_rest = self._by_number(by_rest, copy)
        for group in groups:
            table = getattr(self.embedding, group.parameter)
            table = table if copy is None else table[:, copy].contiguous()
            field = getattr(self.embedding, f"{group.parameter}_field")
            own = (
                weight
                if group.stop - group.start == weight.shape[1]
                else weight[:, group.start : group.stop]
            )
            folded, of_table = fold(table, own, bias, field)
            self._cut(of_table, table)
            parts.append(sum_rows(folded, self._rows(group), numbers, by_rest))
            bias, numbers = None, None
        return sum(parts[1:], start=parts[0])

    @property
    def _numbers_fold(self) -> bool:
        """Whether all that stands beside ids are numbers, whose part of a layer needs no vectors."""
        return not self.embedding.bags

    def _by_number(self, weight: Tensor, copy: int | None) -> Tensor:
        """What a layer (O, D * width) on vectors times numbers does to the numbers themselves: (O,
        D).
        """
        assert self.embedding.numbers is not None
        vectors = (
            self.embedding.numbers if copy is None else self.embedding.numbers[:, copy]
        )  # (D, width)
        return self._cut((weight.unflatten(1, vectors.shape) * vectors).sum(-1).t(), vectors).t()

    def _joined_rest(self, copy: int | None = None) -> Tensor:
        """Bags and dense values (B, d) of one copy, made once."""
        if copy not in self._joined:
            self._joined[copy] = torch.cat(self._rest(copy), -1)
        return self._joined[copy]

    def vjp(self, columns: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """What gradients (B, C) of a product's outputs mean beneath: a column is that of any one
        output, in any order.

        Returns:
            The gradients (C, D) of the rows of the weights that made them, (C,) of biases, and
            (rows, C) at each cut.
        """
        if not self._folds:
            x = self._x()
            return (
                columns.t() @ x.detach().to(columns.dtype),
                columns.sum(0),
                [columns] if x.requires_grad else [],
            )
        groups = self.embedding.foldable_groups()
        by_weight = columns.new_zeros(self.embedding.width, columns.shape[1])  # transposed
        by_rest, by_bias = by_weight[groups[-1].stop :], columns.new_empty(0)
        at_cuts: list[Tensor] = []
        numbers, vectors = self.batch.dense if self._numbers_fold else None, self.embedding.numbers
        by_number = by_rest
        if numbers is not None and vectors is not None:
            by_number = columns.new_zeros(numbers.shape[1], columns.shape[1])
        if numbers is None:
            rest = self._joined_rest()
            torch.mm(rest.detach().t(), columns, out=by_rest)
            at_cuts += [columns] if rest.requires_grad else []
        for place, group in enumerate(groups):
            table = getattr(self.embedding, group.parameter)
            sums = self._rows(group).scatter_sum(
                columns, None if place else numbers, by_number
            )  # (V, C)
            if place == 0 and numbers is not None and vectors is not None:
                by_rest.copy_((by_number[:, None] * vectors.detach()[..., None]).flatten(0, 1))
                at_cuts += [by_number] if vectors.requires_grad else []
            field = getattr(self.embedding, f"{group.parameter}_field")
            by_bias = add_fold_weight_gradients(
                table, field, sums, by_weight[group.start : group.stop]
            )
            at_cuts += [sums] if table.requires_grad else []
        return by_weight.t(), by_bias, at_cuts

    def _cut(self, tensor: Tensor, made_of: Tensor) -> Tensor:
        if made_of.requires_grad:  # without tables nothing need be found beneath
            self.cuts.append(tensor)
        return tensor

    def _rows(self, group: TableGroup) -> RowIndex:
        """(B, F) int32 rows of the group's table, made once."""
        if group.parameter not in self._found:
            ids = self.batch.ids
            own = ids if len(group.columns) == ids.shape[1] else ids[:, list(group.columns)]
            rows = own + getattr(self.embedding, f"{group.parameter}_offsets")
            self._found[group.parameter] = RowIndex(
                rows, len(getattr(self.embedding, group.parameter))
            )
        return self._found[group.parameter]

    def _lookup(self, group: TableGroup) -> Tensor:
        rows = self._rows(group).ids
        found = self.embedding.take(group.parameter, rows.flatten()).unflatten(
            0, (len(rows), len(group.columns))
        )
        return found.transpose(1, -2).flatten(-2)  # (B, [copies,] F * width)

    def _rest(self, copy: int | None = None) -> list[Tensor]:
        """Bags and dense values, or their vectors: (B, [copies,] d) each; of one copy, if given."""
        parts = []
        for feature in self.embedding.bags:
            offsets, values, weights = self.batch.bags[feature.name]
            found = self.embedding.take(f"bag_{feature.name}", values)
            parts.append(_bag(found if copy is None else found[:, copy], offsets, weights))
        dense, numbers = self.batch.dense, self.embedding.numbers
        if numbers is not None:
            own = numbers if copy is None else numbers[:, copy]
            found = (
                dense.view(*dense.shape, *[1] * (own.dim() - 1)) * own
            )  # (B, D, [copies,] width)
            parts.append(found.transpose(1, -2).flatten(-2))
        elif dense.shape[1]:
            spread = self.embedding.copies and copy is None
            parts.append(dense[:, None].expand(-1, self.embedding.copies, -1) if spread else dense)
        return parts


def _bag(found: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of the table rows (M, ...) that a ragged batch holds: (B, ...)."""
    owner = torch.repeat_interleave(
        torch.arange(len(offsets) - 1, device=found.device), offsets.diff()
    )
    out = found.new_zeros(len(offsets) - 1, *found.shape[1:])
    return out.index_add(0, owner, found * weights.view(-1, *[1] * (found.dim() - 1)))
