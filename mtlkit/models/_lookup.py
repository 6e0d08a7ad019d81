"""The look-ups of a batch: what its rows find in the embedding tables."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit.models._tables import EmbeddingTables, TableGroup
from mtlkit.models._types import Batch
from mtlkit.ops._dispatch import use_kernel
from mtlkit.ops.sum_rows import RowIndex
from mtlkit.ops.take_rows import place_rows

Reads = Sequence[Sequence[int]]
"""For each of n layers, the copies of the embedding whose sum it reads."""


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
        self._bags: dict[str, Tensor] = {}
        self._other_features: Tensor | None = None
        self._copies: tuple[Tensor, ...] = ()

    def x(self) -> Tensor:
        """(B, [copies,] D) all embedded features side by side."""
        if self.materialised is None:
            groups = self.tables.groups
            tables = [getattr(self.tables, group.parameter) for group in groups]
            is_plain = not tables or bool(self.tables.copies) or bool(self.tables.takers)
            if (
                not is_plain
                and not torch.is_grad_enabled()
                and use_kernel(*tables, self.batch.dense)
            ):
                # rows of which nobody asks for gradients go to their place at once
                indices = [self.row_index(group) for group in groups]
                self.materialised = place_rows(tables, indices, self._embed_others())
            else:
                ids = [self._embed_ids(group) for group in groups]
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

    def other_features(self) -> Tensor:
        """(B, [copies,] d) bags and dense features: the columns of x that follow those of ids."""
        if self._other_features is None:
            self._other_features = torch.cat(self._embed_others(), -1)
        return self._other_features

    def copies(self) -> tuple[Tensor, ...]:
        """x by copy, (B, D) each."""
        if not self._copies:
            self._copies = self.x().unbind(1)
        return self._copies

    def _embed_ids(self, group: TableGroup) -> Tensor:
        """(B, [copies,] F * width) the embedded ids of one group."""
        rows = self.row_index(group).ids  # (B, F)
        embedded = self.tables.take(group.parameter, rows.flatten())  # (B * F, [copies,] width)
        embedded = embedded.unflatten(0, (rows.shape[0], len(group.columns)))
        return embedded.transpose(1, -2).flatten(-2)

    def _bag_sums(self, feature: str) -> Tensor:
        """(B, [copies,] width) the embedded bags of a feature, in all copies."""
        if feature not in self._bags:
            bags = self.batch.bags[feature]
            self._bags[feature] = self.tables.sum_bags(f"bag_{feature}", bags)
        return self._bags[feature]

    def _embed_others(self) -> list[Tensor]:
        """Bags, and dense values or their vectors; (B, [copies,] d) each."""
        embedded = [self._bag_sums(feature.name) for feature in self.tables.bags]

        dense = self.batch.dense
        vectors, number_embedding = self.tables.dense_vectors, self.tables.number_embedding
        if number_embedding is not None:
            embedded.append(number_embedding(dense))
        elif vectors is not None:
            # Each value times the vector of its feature.
            values = dense.view(*dense.shape, *[1] * (vectors.dim() - 1))
            scaled = values * vectors  # (B, D_dense, [copies,] width)
            embedded.append(scaled.transpose(1, -2).flatten(-2))
        elif dense.shape[1]:
            # The values as they are, the same for all copies.
            if self.tables.copies:
                dense = dense[:, None].expand(-1, self.tables.copies, -1)
            embedded.append(dense)
        return embedded


def sums_of_copies(copies: Sequence[Tensor], reads: Reads, dim: int) -> Tensor:
    """What each of n layers reads of the copies, stacked along a dimension."""
    sums = []
    for first, *others in reads:
        sums.append(sum((copies[k] for k in others), start=copies[first]))
    return torch.stack(sums, dim)
