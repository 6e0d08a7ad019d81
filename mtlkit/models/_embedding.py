"""From ids to vectors: one fused table an embedding width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mtlkit.data.types import Feature, Schema
from mtlkit.models._embedded_batch import EmbeddedBatch
from mtlkit.models._initial import glorot_
from mtlkit.ops.take_rows import take_rows

if TYPE_CHECKING:
    from mtlkit.models._options import BaseOptions
    from mtlkit.models._types import Batch

FOLD_VOCABULARY = 256
"""Largest vocabulary for which projecting the table costs less than projecting the rows of a usual
batch.
"""


@dataclass(frozen=True)
class FastPaths:
    """Which fast forms a model may take; each computes the same as its plain form.

    Args:
        fold: Apply the layers that read the embedding to small tables instead of to looked-up rows.
        fuse: Compute gates, experts and their mixture in one kernel.
        sparse_from: Tables of at least so many rows get row-sparse gradients; None for none.
    """

    fold: bool = True
    fuse: bool = True
    sparse_from: int | None = None


@dataclass(frozen=True)
class TableGroup:
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
    """Embeds all features of a batch into x = concat(ids by width, bags, dense values or their
    vectors).

    Row 0 of every feature stands for values that training never saw; it starts as zeros.

    Args:
        schema: Features of the data.
        options: Embedding width, widths of single features, initial standard deviation, what
            numbers become.
        copies: Number of tables of equal shape, e.g. one a task; kept as one tensor (V, copies,
            width).

    Attributes:
        numbers: (D, [copies,] width) the vectors of dense features, each a linear layer on one
            number; or None.
    """

    numbers: nn.Parameter | None

    def __init__(self, schema: Schema, options: BaseOptions, copies: int = 0) -> None:
        super().__init__()
        self.copies = copies
        self.stack_axes: dict[str, int] = {}
        self.fast_paths = FastPaths()
        ids, bags = schema.of_kind("id"), schema.of_kind("bag")
        widths = {
            f.name: options.embedding_dims.get(f.name, f.dim or options.embedding)
            for f in ids + bags
        }
        self.groups: list[TableGroup] = []
        self.places: dict[str, range] = {}  # the columns of x that a feature fills
        start = 0
        for width in sorted({widths[feature.name] for feature in ids}):
            columns = tuple(i for i, feature in enumerate(ids) if widths[feature.name] == width)
            members = [ids[i] for i in columns]
            group = TableGroup(
                f"width_{width}", width, columns, start, max(f.vocab for f in members)
            )
            self._add_table(group.parameter, members, width, options.embedding_std)
            offsets = torch.tensor([0] + [f.vocab for f in members[:-1]]).cumsum(0)
            self.register_buffer(f"{group.parameter}_offsets", offsets.int(), persistent=False)
            field = torch.repeat_interleave(
                torch.arange(len(members)), torch.tensor([f.vocab for f in members])
            )
            self.register_buffer(f"{group.parameter}_field", field.int(), persistent=False)
            self.groups.append(group)
            for k, feature in enumerate(members):
                self.places[feature.name] = range(start + k * width, start + (k + 1) * width)
            start = group.stop
        self.bags = bags
        for feature in bags:
            self._add_table(
                f"bag_{feature.name}", [feature], widths[feature.name], options.embedding_std
            )
            self.places[feature.name] = range(start, start + widths[feature.name])
            start += widths[feature.name]
        dense = schema.of_kind("dense")
        width = options.embedding if options.numbers == "vector" else 1
        for k, feature in enumerate(dense):
            self.places[feature.name] = range(start + k * width, start + (k + 1) * width)
        self.width = start + len(dense) * width
        self.register_parameter("numbers", None)
        if options.numbers == "vector" and dense:
            self.numbers = nn.Parameter(
                torch.empty(len(dense), *self._shape(width)).uniform_(-1, 1)
            )
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

    def forward(self, batch: Batch) -> EmbeddedBatch:
        """The inputs of a batch, not yet materialised."""
        return EmbeddedBatch(self, batch)

    def take(self, name: str, rows: Tensor) -> Tensor:
        """Rows (M,) of a table (V, ...): (M, ...)."""
        table: Tensor = getattr(self, name)
        large = (
            self.fast_paths.sparse_from is not None and len(table) >= self.fast_paths.sparse_from
        )
        if large and not any(
            group.parameter == name and group.largest <= FOLD_VOCABULARY for group in self.groups
        ):
            return take_rows(table, rows)
        # index_select, not F.embedding: its dense backward is several times faster on the CPU
        return table.index_select(0, rows)

    def foldable_groups(self) -> list[TableGroup]:
        """The groups whose part of a first linear layer is folded into the table: all of them, or
        none.
        """
        on_cpu = all(getattr(self, group.parameter).device.type == "cpu" for group in self.groups)
        small = all(group.largest <= FOLD_VOCABULARY for group in self.groups)
        return self.groups if self.fast_paths.fold and on_cpu and small else []
