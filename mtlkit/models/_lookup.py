"""The look-ups of a batch: what its rows find in the embedding tables."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkit.models._tables import EmbeddingTables, TableGroup
from mtlkit.models._types import Batch
from mtlkit.ops.sum_rows import RowIndex


class Lookup:
    """The rows of one batch in the tables; everything is made once, when it is first asked for.

    Shapes have the axis ``[copies]`` where the tables have copies.

    Args:
        tables: The embedding tables.
        batch: The rows. ``Batch.embedding_output`` stands for x, if it is there.
    """

    def __init__(self, tables: EmbeddingTables, batch: Batch) -> None:
        self.tables = tables
        self.batch = batch
        self.materialised: Tensor | None = batch.embedding_output
        self._row_indices: dict[str, RowIndex] = {}
        self._other_features: dict[int | None, Tensor] = {}  # by copy

    def x(self) -> Tensor:
        """(B, [copies,] D) all embedded features side by side."""
        if self.materialised is None:
            ids = [self._embed_ids(group) for group in self.tables.groups]
            self.materialised = torch.cat([*ids, *self._embed_others()], dim=-1)
        return self.materialised

    def row_index(self, group: TableGroup) -> RowIndex:
        """(B, F) int32 rows of the group's table."""
        if group.parameter not in self._row_indices:
            ids = self.batch.ids
            if len(group.columns) < ids.shape[1]:
                ids = ids[:, list(group.columns)]
            rows = ids + getattr(self.tables, f"{group.parameter}_offsets")
            size = len(getattr(self.tables, group.parameter))
            self._row_indices[group.parameter] = RowIndex(rows, size)
        return self._row_indices[group.parameter]

    def other_features(self, copy: int | None = None) -> Tensor:
        """(B, d) bags and dense features of one copy: the columns of x that follow those of ids."""
        if copy not in self._other_features:
            self._other_features[copy] = torch.cat(self._embed_others(copy), -1)
        return self._other_features[copy]

    def _embed_ids(self, group: TableGroup) -> Tensor:
        """(B, [copies,] F * width) the embedded ids of one group."""
        rows = self.row_index(group).ids  # (B, F)
        embedded = self.tables.take(group.parameter, rows.flatten())  # (B * F, [copies,] width)
        embedded = embedded.unflatten(0, (rows.shape[0], len(group.columns)))
        return embedded.transpose(1, -2).flatten(-2)

    def _embed_others(self, copy: int | None = None) -> list[Tensor]:
        """Bags, and dense values or their vectors.

        Args:
            copy: The copy to take; None for all copies.

        Returns:
            Tensors (B, [copies,] d) each, without the copies' axis for a single copy.
        """
        embedded = []
        for feature in self.tables.bags:
            offsets, values, weights = self.batch.bags[feature.name]
            rows = self.tables.take(f"bag_{feature.name}", values)  # (M, [copies,] width)
            if copy is not None:
                rows = rows[:, copy]
            embedded.append(_sum_bags(rows, offsets, weights))

        dense = self.batch.dense
        vectors = self.tables.dense_vectors
        if vectors is not None:
            # Each value times the vector of its feature.
            if copy is not None:
                vectors = vectors[:, copy]
            values = dense.view(*dense.shape, *[1] * (vectors.dim() - 1))
            scaled = values * vectors  # (B, D_dense, [copies,] width)
            embedded.append(scaled.transpose(1, -2).flatten(-2))
        elif dense.shape[1]:
            # The values as they are, the same for all copies.
            if self.tables.copies and copy is None:
                dense = dense[:, None].expand(-1, self.tables.copies, -1)
            embedded.append(dense)
        return embedded


def _sum_bags(rows: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of the table rows in each bag.

    Args:
        rows: (M, ...) the table rows of all bags, one bag after the other.
        offsets: (B + 1,) where each bag starts, and where the last one ends.
        weights: (M,).

    Returns:
        (B, ...).
    """
    # The bag of an id is the number of bags that end before it. Shapes that depend on no values,
    # and no ``len``, which is a constant there, can be exported.
    ends = offsets[1:]
    ending = offsets.new_zeros(rows.shape[0] + 1).index_add(0, ends, torch.ones_like(ends))
    bag = ending.cumsum(0)[:-1]  # (M,)
    sums = rows.new_zeros(offsets.shape[0] - 1, *rows.shape[1:])
    weights = weights.view(-1, *[1] * (rows.dim() - 1))
    return sums.index_add(0, bag, rows * weights)
