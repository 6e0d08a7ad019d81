"""The embedding tables of all features: one table an embedding width, and one a bag feature.

Id features of one width are fused into a table; bags are looked up one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtlkit.data.types import Feature, Schema
from mtlkit.models._initial import glorot_
from mtlkit.models._numbers import number_embedding
from mtlkit.models._options import BaseOptions
from mtlkit.ops._dispatch import use_kernel
from mtlkit.ops.bags import Bags, sum_bags, take_few_rows
from mtlkit.ops.take_rows import take_rows

FOLD_VOCABULARY = 256
"""Largest vocabulary for which projecting the table costs less than projecting the rows of a usual
batch.
"""


@dataclass(frozen=True)
class FastPaths:
    """Which fast forms a model may take; each computes the same as its plain form."""

    # Apply the layers that read the embedding to small tables instead of to looked-up rows.
    fold: bool = True
    # Compute gates and experts that read the embedding, and their mixture, in one kernel.
    fuse: bool = True
    # Tables with at least this number of rows get row-sparse gradients; None for none.
    sparse_from: int | None = None


@dataclass(frozen=True)
class TableGroup:
    """The id features of one embedding width: they share a table."""

    parameter: str  # name of the table
    width: int  # embedding width
    columns: tuple[int, ...]  # the features' columns in ``Batch.ids``
    start: int  # first column of the group in x
    largest: int  # largest vocabulary among the features

    @property
    def stop(self) -> int:
        """The column of x after the group's last one."""
        return self.start + self.width * len(self.columns)


class EmbeddingTables(nn.Module):
    """The parameters of x = concat(embedded ids by width, bags, dense values or vectors).

    Row 0 of every feature stands for values that training never saw; it starts as zeros.

    Args:
        schema: Features of the data.
        options: Embedding width, widths of single features, initial standard deviation, and what
            dense features become.
        copies: Number of tables of equal shape, e.g. one a task; kept as one tensor (V, copies,
            width). 0 for a single table without this axis.

    Attributes:
        width: Number of columns of x, D.
        feature_columns: Feature name to the columns of x that it fills.
        groups: The tables of id features, the narrowest first.
        bags: The bag features, each with a table of its own.
        numbers: The parameter behind ``dense_vectors``, named as the option that asks for it.
        number_embedding: What makes vectors of encoded numbers, or None.
        fast_paths: The fast forms that the model may take.
        takers: By table, what takes rows of it where this process does not have all of them.
    """

    numbers: nn.Parameter | None

    def __init__(self, schema: Schema, options: BaseOptions, copies: int = 0) -> None:
        super().__init__()
        self.copies = copies
        self.stack_axes: dict[str, int] = {}
        self.fast_paths = FastPaths()
        self.takers: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
        self.width = 0
        self.feature_columns: dict[str, range] = {}
        self.groups: list[TableGroup] = []
        self.bags = schema.of_kind("bag")

        ids = schema.of_kind("id")
        widths = {
            feature.name: options.embedding_dims.get(feature.name, feature.dim or options.embedding)
            for feature in [*ids, *self.bags]
        }

        # Id features of one width share a table; narrow ones come first.
        for width in sorted({widths[feature.name] for feature in ids}):
            columns = [k for k, feature in enumerate(ids) if widths[feature.name] == width]
            self._add_group(ids, columns, width, options.embedding_std)

        # Each bag feature has a table of its own.
        for feature in self.bags:
            width = widths[feature.name]
            self._add_table(f"bag_{feature.name}", [feature], width, options.embedding_std)
            self._add_columns(feature, width)

        # Dense features fill one column each, or a vector.
        dense = schema.of_kind("dense")
        width = 1 if options.numbers == "value" else options.embedding
        for feature in dense:
            self._add_columns(feature, width)
        self.register_parameter("numbers", None)
        if options.numbers == "vector" and dense:
            vectors = torch.empty(len(dense), *self._copies_by(width)).uniform_(-1, 1)
            self.numbers = nn.Parameter(vectors)
            if copies:
                self.stack_axes["numbers"] = 1
        self.number_embedding = number_embedding(options, len(dense), copies)

    @property
    def dense_vectors(self) -> Tensor | None:
        """(D_dense, [copies,] width) the vectors that dense values are multiplied by; None where
        something else becomes of the values.
        """
        return self.numbers

    def _copies_by(self, width: int) -> tuple[int, ...]:
        """The shape of one embedded feature in all copies."""
        return (self.copies, width) if self.copies else (width,)

    def _add_columns(self, feature: Feature, width: int) -> None:
        """Give a feature the next columns of x."""
        self.feature_columns[feature.name] = range(self.width, self.width + width)
        self.width += width

    def _add_group(
        self, ids: Sequence[Feature], columns: Sequence[int], width: int, std: float
    ) -> None:
        """Add the table of the id features in some columns, which have one width.

        Beside the table (V, [copies,] width) stand two buffers: ``<table>_offsets`` (F,), the first
        row of each feature, and ``<table>_field`` (V,), the feature that each row belongs to.
        """
        members = [ids[column] for column in columns]
        sizes = [feature.vocab for feature in members]
        group = TableGroup(f"width_{width}", width, tuple(columns), self.width, max(sizes))
        self._add_table(group.parameter, members, width, std)
        offsets = _first_rows(members)
        field = torch.repeat_interleave(torch.arange(len(members)), torch.tensor(sizes))
        self.register_buffer(f"{group.parameter}_offsets", offsets.int(), persistent=False)
        self.register_buffer(f"{group.parameter}_field", field.int(), persistent=False)
        self.groups.append(group)
        for feature in members:
            self._add_columns(feature, width)

    def _add_table(self, name: str, features: Sequence[Feature], width: int, std: float) -> None:
        rows = sum(feature.vocab for feature in features)
        table = torch.randn(rows, *self._copies_by(width)).mul_(std)
        table[_first_rows(features)] = 0  # of values that training never saw
        self.register_parameter(name, nn.Parameter(table))
        if self.copies:
            self.stack_axes[name] = 1

    def glorot(self) -> None:
        """Draw the vectors of the dense features anew."""
        if self.dense_vectors is not None:
            glorot_(self.dense_vectors[..., None])

    def take(self, name: str, rows: Tensor) -> Tensor:
        """Rows (M,) of the table ``name`` (V, ...): (M, ...)."""
        table: Tensor = getattr(self, name)
        if name in self.takers:
            return self.takers[name](table, rows)
        if self._has_sparse_gradient(name, len(table)):
            return take_rows(table, rows)
        return take_few_rows(table, rows)

    def sum_bags(self, name: str, bags: Bags) -> Tensor:
        """Weighted sums of the rows of the table ``name`` (V, ...) in bags: (B, ...)."""
        table: Tensor = getattr(self, name)
        return sum_bags(table, bags, self._has_sparse_gradient(name, len(table)))

    def _has_sparse_gradient(self, name: str, rows: int) -> bool:
        """Whether a table is large enough for row-sparse gradients, and never folded."""
        sparse_from = self.fast_paths.sparse_from
        if sparse_from is None or rows < sparse_from:
            return False
        small = {group.parameter for group in self.groups if group.largest <= FOLD_VOCABULARY}
        return name not in small

    def foldable_groups(self) -> list[TableGroup]:
        """The groups whose columns of a linear layer on x are applied to the table instead.

        All groups, or none: a single one that has to be looked up spoils the saving.
        """
        if not self.fast_paths.fold or not self.groups:
            return []
        if any(group.largest > FOLD_VOCABULARY for group in self.groups):
            return []
        tables = [getattr(self, group.parameter) for group in self.groups]
        return self.groups if use_kernel(*tables) else []


def _first_rows(features: Sequence[Feature]) -> Tensor:
    """(F,) the first row of each feature in their common table."""
    return torch.tensor([0, *(feature.vocab for feature in features[:-1])]).cumsum(0)
