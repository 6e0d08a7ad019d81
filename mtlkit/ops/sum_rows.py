"""Sums of a table's rows, ``out[b] = sum over f of table[ids[b, f]]``, and back by id.

With ``table`` the result of :func:`mtlkit.ops.folded_linear.fold` this is a linear layer on the
concatenated embeddings of F ids. What the layer makes of dense values is added in the same pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtlkit.ops._dispatch import use_kernel
from mtlkit.ops._numba import kernel
from mtlkit.ops._simd import LANES, add, fma, load, prefetch, store, zero, zeros

BLOCK = 4 * LANES  # numbers of a row that are added at a time
PANEL = 2 * BLOCK  # columns whose sums are made in one pass over the rows
AHEAD = 4  # rows between asking for one and adding it


def plain_sum_rows(
    table: Tensor, ids: Tensor, dense: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """:func:`sum_rows` in PyTorch's own operations; ids (B, F)."""
    sums = table.index_select(0, ids.flatten()).unflatten(0, ids.shape).sum(1)  # (B, O)
    if dense is None or weight is None:
        return sums
    return sums + F.linear(dense, weight)


def plain_scatter_sum(ids: Tensor, rows: Tensor, size: int) -> Tensor:
    """:meth:`RowIndex.scatter_sum` without dense values, in PyTorch's own operations."""
    sums = rows.new_zeros(size, rows.shape[1])
    return sums.index_add(0, ids.flatten(), rows.repeat_interleave(ids.shape[1], 0))


@kernel
def _sum_rows(
    ids: np.ndarray, table: np.ndarray, dense: np.ndarray, dense_weight: np.ndarray, out: np.ndarray
) -> None:
    """``out[b] = table[ids[b]].sum(0) + dense[b] @ dense_weight``.

    A plain loop over single vectors gives the same sums, and takes up to three times as long where
    rows are 256 numbers wide: rows that many bytes apart push each other out of the cache.

    Args:
        ids: (B, F) uint32.
        table: (V, O).
        dense: (B, D).
        dense_weight: (D, O).
        out: (B, O).
    """
    width = out.shape[1]
    block_end = width - width % BLOCK
    vector_end = width - width % LANES

    for b in range(out.shape[0]):
        row_ids, values, target = ids[b], dense[b], out[b]  # (F,), (D,), (O,)

        # blocks of four vectors: an id is looked up once for all four
        for o in range(0, block_end, BLOCK):
            first = second = third = fourth = zeros(target)
            for f in range(row_ids.shape[0]):
                row = table[row_ids[f]]
                first = add(first, load(row, o))
                second = add(second, load(row, o + LANES))
                third = add(third, load(row, o + 2 * LANES))
                fourth = add(fourth, load(row, o + 3 * LANES))
            for d in range(values.shape[0]):
                row, value = dense_weight[d], values[d]
                first = fma(value, load(row, o), first)
                second = fma(value, load(row, o + LANES), second)
                third = fma(value, load(row, o + 2 * LANES), third)
                fourth = fma(value, load(row, o + 3 * LANES), fourth)
            store(target, o, first)
            store(target, o + LANES, second)
            store(target, o + 2 * LANES, third)
            store(target, o + 3 * LANES, fourth)

        # the vectors that are left
        for o in range(block_end, vector_end, LANES):
            vector_sum = zeros(target)
            for f in range(row_ids.shape[0]):
                vector_sum = add(vector_sum, load(table[row_ids[f]], o))
            for d in range(values.shape[0]):
                vector_sum = fma(values[d], load(dense_weight[d], o), vector_sum)
            store(target, o, vector_sum)

        # the numbers that are left
        for o in range(vector_end, width):
            rest_sum = zero(target)
            for f in range(row_ids.shape[0]):
                rest_sum += table[row_ids[f], o]
            for d in range(values.shape[0]):
                rest_sum += values[d] * dense_weight[d, o]
            target[o] = rest_sum


@kernel
def _scatter_sum(
    ids: np.ndarray,
    dense: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
    d_dense_weight: np.ndarray,
) -> None:
    """``out[ids[b, f]] += rows[b]`` and ``d_dense_weight[d] += dense[b, d] * rows[b]``.

    In the order of the rows and not of the ids: the sums of ids that occur often stay in the
    cache, and nothing need be sorted. A plain loop over single vectors gives the same sums, and
    takes up to twice as long where rows are 256 or more numbers wide.

    Args:
        ids: (B, F) uint32.
        dense: (B, D).
        rows: (B, O).
        out: (V, O).
        d_dense_weight: (D, O).
    """
    width = rows.shape[1]
    block_end = width - width % BLOCK
    vector_end = width - width % LANES

    # Blocks of four vectors, a panel of columns at a time, so that the panel's sums stay in the
    # cache. An id is looked up once for all four.
    for start in range(0, block_end, PANEL):
        end = min(start + PANEL, block_end)
        for b in range(ids.shape[0]):
            row_ids, values, row = ids[b], dense[b], rows[b]  # (F,), (D,), (O,)
            later_row = rows[min(b + AHEAD, ids.shape[0] - 1)]
            for o in range(start, end, BLOCK):
                for line in range(o, o + BLOCK, LANES):
                    prefetch(later_row, line)
                first, second = load(row, o), load(row, o + LANES)
                third, fourth = load(row, o + 2 * LANES), load(row, o + 3 * LANES)
                for f in range(row_ids.shape[0]):
                    target = out[row_ids[f]]
                    store(target, o, add(load(target, o), first))
                    store(target, o + LANES, add(load(target, o + LANES), second))
                    store(target, o + 2 * LANES, add(load(target, o + 2 * LANES), third))
                    store(target, o + 3 * LANES, add(load(target, o + 3 * LANES), fourth))
                for d in range(values.shape[0]):
                    target, value = d_dense_weight[d], values[d]
                    store(target, o, fma(value, first, load(target, o)))
                    store(target, o + LANES, fma(value, second, load(target, o + LANES)))
                    store(target, o + 2 * LANES, fma(value, third, load(target, o + 2 * LANES)))
                    store(target, o + 3 * LANES, fma(value, fourth, load(target, o + 3 * LANES)))

    # what is left of each row: single vectors, then single numbers
    for b in range(ids.shape[0] if block_end < width else 0):
        row_ids, values, row = ids[b], dense[b], rows[b]
        for o in range(block_end, vector_end, LANES):
            added = load(row, o)
            for f in range(row_ids.shape[0]):
                target = out[row_ids[f]]
                store(target, o, add(load(target, o), added))
            for d in range(values.shape[0]):
                target = d_dense_weight[d]
                store(target, o, fma(values[d], added, load(target, o)))
        for o in range(vector_end, width):
            for f in range(row_ids.shape[0]):
                out[row_ids[f], o] += row[o]
            for d in range(values.shape[0]):
                d_dense_weight[d, o] += values[d] * row[o]


class RowIndex:
    """Row numbers (B, F) of a table.

    Args:
        ids: (B, F) int32, none below 0.
        size: Rows of the table, V.
    """

    def __init__(self, ids: Tensor, size: int) -> None:
        self.ids = ids
        self.size = size
        self._checked_ids: np.ndarray | None = None

    def checked_ids(self) -> np.ndarray:
        """The ids (B, F) uint32, each of which is a row of the table: kernels do not look again.

        Raises:
            IndexError: An id is beyond the table.
        """
        if self._checked_ids is None:
            # unsigned: no index counts from the end
            checked_ids = self.ids.int().contiguous().numpy().view(np.uint32)
            if checked_ids.max(initial=0) >= max(self.size, 1):
                raise IndexError(f"an id beyond the {self.size} rows of its table")
            self._checked_ids = checked_ids
        return self._checked_ids

    def scatter_sum(
        self, rows: Tensor, dense: Tensor | None = None, d_dense_weight: Tensor | None = None
    ) -> Tensor:
        """Sum rows by id: (V, O) with ``out[ids[b, f]] += rows[b]`` for all b and f.

        Args:
            rows: (B, O).
            dense: (B, D) dense values, if any.
            d_dense_weight: (D, O) contiguous, to which ``dense.T @ rows`` is added.
        """
        rows = rows.detach().contiguous()
        # kernels know no None
        if dense is None or d_dense_weight is None:
            dense = rows.new_empty(len(rows), 0)
            d_dense_weight = rows.new_empty(0, rows.shape[1])
        dense = dense.detach().contiguous()

        if not use_kernel(rows, dense, d_dense_weight):
            d_dense_weight.add_(dense.t() @ rows)
            return plain_scatter_sum(self.ids, rows, self.size)

        out = rows.new_zeros(self.size, rows.shape[1])
        _scatter_sum(
            self.checked_ids(), dense.numpy(), rows.numpy(), out.numpy(), d_dense_weight.numpy()
        )
        return out


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, table: Tensor, row_index: RowIndex, dense: Tensor, weight: Tensor
    ) -> Tensor:
        ctx.row_index, ctx.dense = row_index, dense
        out = table.new_empty(len(row_index.ids), table.shape[1])
        _sum_rows(
            row_index.checked_ids(),
            table.contiguous().numpy(),
            dense.numpy(),
            weight.t().contiguous().numpy(),
            out.numpy(),
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, Tensor]:
        d_dense_weight = grad.new_zeros(ctx.dense.shape[1], grad.shape[1])
        d_table = ctx.row_index.scatter_sum(grad, ctx.dense, d_dense_weight)
        return d_table, None, None, d_dense_weight.t()


def sum_rows(
    table: Tensor, row_index: RowIndex, dense: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """``table[ids].sum(1) + F.linear(dense, weight)``, (B, O).

    Args:
        table: (V, O).
        row_index: The ids (B, F).
        dense: (B, D) dense values, which get no gradient; or None.
        weight: (O, D) of the dense values.

    Raises:
        IndexError: An id is beyond the table.
    """
    # kernels know no None
    if dense is None or weight is None:
        dense = table.new_empty(len(row_index.ids), 0)
        weight = table.new_empty(table.shape[1], 0)

    if use_kernel(table, dense, weight):
        return _SumRows.apply(table, row_index, dense.contiguous(), weight)
    return plain_sum_rows(table, row_index.ids, dense, weight)
