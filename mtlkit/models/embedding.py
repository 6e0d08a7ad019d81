"""From ids to vectors: one fused table an embedding width, and inputs that a first layer may fold into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.data.schema import Feature, Schema
from mtlkit.models.folding import Places, fold, sum_rows
from mtlkit.models.initial import glorot_
from mtlkit.models.sparse_rows import take_rows

if TYPE_CHECKING:
    from mtlkit.models.base import BaseOptions, Batch

FOLD_VOCABULARY = 256
"""Largest vocabulary for which projecting the table costs less than projecting the rows of a usual batch."""


@dataclass(frozen=True)
class _Group:
    """The id features of one embedding width: they share a table."""

    parameter: str
    width: int
    columns: tuple[int, ...]
    start: int  # first column of their part of x
    largest: int  # largest vocabulary

    @property
    def stop(self) -> int:
        return self.start + self.width * len(self.columns)


class FieldEmbedding(nn.Module):
    """Embeds all features of a batch into x = concat(ids by width, bags, dense values or their vectors).

    Row 0 of every feature stands for values that training never saw; it starts as zeros.

    Args:
        schema: Features of the data.
        options: Embedding width, widths of single features, initial standard deviation, what numbers become.
        copies: Number of tables of equal shape, e.g. one a task; kept as one tensor (V, copies, width).

    Attributes:
        numbers: (D, [copies,] width) the vectors of dense features, each a linear layer on one number; or None.
    """

    numbers: nn.Parameter | None

    def __init__(self, schema: Schema, options: BaseOptions, copies: int = 0) -> None:
        super().__init__()
        self.copies = copies
        self.stack_axes: dict[str, int] = {}
        self.foldable = True
        self.sparse_from: int | None = None  # tables of at least so many rows get row-sparse gradients
        ids, bags = schema.of_kind("id"), schema.of_kind("bag")
        widths = {f.name: options.embedding_dims.get(f.name, f.dim or options.embedding) for f in ids + bags}
        self.groups: list[_Group] = []
        self.places: dict[str, range] = {}  # the columns of x that a feature fills
        start = 0
        for width in sorted({widths[feature.name] for feature in ids}):
            columns = tuple(i for i, feature in enumerate(ids) if widths[feature.name] == width)
            members = [ids[i] for i in columns]
            group = _Group(f"width_{width}", width, columns, start, max(f.vocab for f in members))
            self._add_table(group.parameter, members, width, options.embedding_std)
            offsets = torch.tensor([0] + [f.vocab for f in members[:-1]]).cumsum(0)
            self.register_buffer(f"{group.parameter}_offsets", offsets.int(), persistent=False)
            field = torch.repeat_interleave(torch.arange(len(members)), torch.tensor([f.vocab for f in members]))
            self.register_buffer(f"{group.parameter}_field", field.int(), persistent=False)
            self.groups.append(group)
            for k, feature in enumerate(members):
                self.places[feature.name] = range(start + k * width, start + (k + 1) * width)
            start = group.stop
        self.bags = bags
        for feature in bags:
            self._add_table(f"bag_{feature.name}", [feature], widths[feature.name], options.embedding_std)
            self.places[feature.name] = range(start, start + widths[feature.name])
            start += widths[feature.name]
        self.ids_and_bags_width = start
        dense = schema.of_kind("dense")
        width = options.embedding if options.numbers == "vector" else 1
        for k, feature in enumerate(dense):
            self.places[feature.name] = range(start + k * width, start + (k + 1) * width)
        self.width = start + len(dense) * width
        self.register_parameter("numbers", None)
        if options.numbers == "vector" and dense:
            self.numbers = nn.Parameter(torch.empty(len(dense), *self._shape(width)).uniform_(-1, 1))
            if copies:
                self.stack_axes["numbers"] = 1

    def _shape(self, width: int) -> tuple[int, ...]:
        """Of an embedded feature in all copies."""
        return (self.copies, width) if self.copies else (width,)

    def glorot(self) -> None:
        """Other initial vectors of the dense features."""
        if self.numbers is not None:
            glorot_(self.numbers[..., None])

    def _add_table(self, name: str, features: list[Feature], width: int, std: float) -> None:
        table = torch.randn(sum(f.vocab for f in features), *self._shape(width)) * std
        unknown = torch.tensor([0] + [f.vocab for f in features[:-1]]).cumsum(0)
        table[unknown] = 0
        self.register_parameter(name, nn.Parameter(table))
        if self.copies:
            self.stack_axes[name] = 1

    def forward(self, batch: Batch) -> Inputs:
        """The inputs of a batch, not yet materialised."""
        return Inputs(self, batch)

    def take(self, name: str, rows: Tensor) -> Tensor:
        """Rows (M,) of a table (V, ...): (M, ...)."""
        table: Tensor = getattr(self, name)
        large = self.sparse_from is not None and len(table) >= self.sparse_from
        if large and not any(group.parameter == name and group.largest <= FOLD_VOCABULARY for group in self.groups):
            return take_rows(table, rows)
        # index_select, not F.embedding: its dense backward is several times faster on the CPU
        return table.index_select(0, rows)

    def foldable_groups(self) -> list[_Group]:
        """The groups whose part of a first linear layer is folded into the table: all of them, or none."""
        on_cpu = all(getattr(self, group.parameter).device.type == "cpu" for group in self.groups)
        small = all(group.largest <= FOLD_VOCABULARY for group in self.groups)
        return self.groups if self.foldable and on_cpu and small else []


class Inputs:
    """The embedded rows of a batch, x (B, D), or (B, copies, D) for an embedding with copies.

    ``linear`` computes a layer on x. Where vocabularies are small it never forms x: the layer is applied to the table
    once, and each row sums its ids' results, which is the same sum in another order.
    """

    def __init__(self, embedding: FieldEmbedding, batch: Batch) -> None:
        self.embedding = embedding
        self.batch = batch
        self.cuts: list[Tensor] = []
        """Tensors through which the tables reach everything else, none of them made of another."""
        self._tensor: Tensor | None = batch.embedded
        self._direct: Tensor | None = None
        self._found: dict[str, Places] = {}

    def tensor(self) -> Tensor:
        """x itself, made once."""
        if self._direct is None:
            self._direct = self._cut(self._x().view_as(self._x()))  # apart from the x that linear layers read
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
        """``F.linear(x, weight, bias)`` for an embedding without copies; weight (O, D), result (B, O)."""
        if not self._folds():
            return self._cut(F.linear(self._x(), weight, bias))
        return self._folded(weight, bias, None)

    def stacked_linear(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A linear layer for each copy; weight (copies, O, D), bias (copies, O), result (B, copies, O)."""
        if not self._folds():
            product = torch.bmm(self._x().transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
            return self._cut(product if bias is None else product + bias)
        copies = range(self.embedding.copies)
        return torch.stack([self._folded(weight[c], None if bias is None else bias[c], c) for c in copies], dim=1)

    def _folds(self) -> bool:
        return bool(self.embedding.foldable_groups()) and not torch.is_autocast_enabled("cpu")

    def _folded(self, weight: Tensor, bias: Tensor | None, copy: int | None) -> Tensor:
        groups = self.embedding.foldable_groups()
        rest = self._rest(copy)
        parts = []
        if rest:
            parts.append(self._cut(F.linear(torch.cat(rest, -1), weight[:, groups[-1].stop :], bias)))
            bias = None
        for group in groups:
            table = getattr(self.embedding, group.parameter)
            table = table if copy is None else table[:, copy].contiguous()
            field = getattr(self.embedding, f"{group.parameter}_field")
            own = weight if group.stop - group.start == weight.shape[1] else weight[:, group.start : group.stop]
            folded, of_table = fold(table, own, bias, field)
            self._cut(of_table)
            parts.append(sum_rows(folded, self._rows(group)))
            bias = None
        return sum(parts[1:], start=parts[0])

    def _cut(self, tensor: Tensor) -> Tensor:
        if tensor.requires_grad:  # without tables nothing need be found beneath
            self.cuts.append(tensor)
        return tensor

    def _rows(self, group: _Group) -> Places:
        """(B, F) int32 rows of the group's table, made once."""
        if group.parameter not in self._found:
            ids = self.batch.ids
            own = ids if len(group.columns) == ids.shape[1] else ids[:, list(group.columns)]
            rows = own + getattr(self.embedding, f"{group.parameter}_offsets")
            self._found[group.parameter] = Places(rows, len(getattr(self.embedding, group.parameter)))
        return self._found[group.parameter]

    def _lookup(self, group: _Group) -> Tensor:
        rows = self._rows(group).ids
        found = self.embedding.take(group.parameter, rows.flatten()).unflatten(0, (len(rows), len(group.columns)))
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
            found = dense.view(*dense.shape, *[1] * (own.dim() - 1)) * own  # (B, D, [copies,] width)
            parts.append(found.transpose(1, -2).flatten(-2))
        elif dense.shape[1]:
            spread = self.embedding.copies and copy is None
            parts.append(dense[:, None].expand(-1, self.embedding.copies, -1) if spread else dense)
        return parts


def _bag(found: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of the table rows (M, ...) that a ragged batch holds: (B, ...)."""
    owner = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=found.device), offsets.diff())
    out = found.new_zeros(len(offsets) - 1, *found.shape[1:])
    return out.index_add(0, owner, found * weights.view(-1, *[1] * (found.dim() - 1)))


def linear(x: Tensor | Inputs, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer on a tensor or on inputs that are not yet materialised."""
    return x.linear(weight, bias) if isinstance(x, Inputs) else F.linear(x, weight, bias)
