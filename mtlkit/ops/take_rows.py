"""Rows of large tables, ``table[rows]``, with gradients that hold those rows alone.

Kernels sum the gradients of equal row numbers as they come. The plain form leaves that to who reads
the gradient, see :func:`summed_rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtlkit.ops._dispatch import launches, use_kernel
from mtlkit.ops._numba import kernel
from mtlkit.ops._simd import LANES, add, load, prefetch, store
from mtlkit.ops.sum_rows import RowIndex

DIGIT_BITS = 11  # row numbers are sorted by digits of this many bits
DIGITS = 1 << DIGIT_BITS  # values of a digit
POSITION_BITS = np.uint64(32)  # of a key, below those of the row number
POSITION_MASK = np.uint64(0xFFFFFFFF)
AHEAD = 2  # rows of a batch between asking for their rows of a table and copying these
ROWS_AHEAD = 32  # rows of a table between asking for one and copying it


@kernel
def _sorted_groups(
    row_numbers: np.ndarray, largest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort row numbers (M,) of at most ``largest`` by radix, and find where each begins.

    Returns:
        Those that occur (U,), where each begins in the order (U + 1,), and the order (M,).
    """
    count = len(row_numbers)
    keys, sorted_keys = np.empty(count, np.uint64), np.empty(count, np.uint64)

    # a key is a row number and, in its last bits, the position: what is moved is looked up nowhere
    for i in range(count):
        keys[i] = np.uint64(row_numbers[i]) << POSITION_BITS | np.uint64(i)

    # by one digit after the other, from the last on; each pass keeps the order of equal digits
    shift = 0
    while shift == 0 or largest >> shift:
        # how often each digit occurs, one further on, and from that where its keys begin
        begins = np.zeros(DIGITS + 1, np.int32)
        for i in range(count):
            begins[((row_numbers[i] >> shift) & (DIGITS - 1)) + 1] += 1
        for digit in range(DIGITS):
            begins[digit + 1] += begins[digit]

        # each key goes to the next free position of its digit
        for i in range(count):
            digit = keys[i] >> (POSITION_BITS + np.uint64(shift)) & np.uint64(DIGITS - 1)
            sorted_keys[begins[digit]] = keys[i]
            begins[digit] += 1
        keys, sorted_keys = sorted_keys, keys
        shift += DIGIT_BITS

    # a group begins where the row number is another than before
    rows, starts = np.empty(count, np.int64), np.empty(count + 1, np.int32)
    order = np.empty(count, np.int32)
    groups = 0
    for i in range(count):
        row = np.int64(keys[i] >> POSITION_BITS)
        order[i] = keys[i] & POSITION_MASK
        if groups == 0 or rows[groups - 1] != row:
            rows[groups], starts[groups] = row, i
            groups += 1
    starts[groups] = count
    return rows[:groups], starts[: groups + 1], order


@kernel
def _group_sums(grad: np.ndarray, starts: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Sum the rows of a gradient (M, W) that belong together: (U, W)."""
    width = grad.shape[1]
    vector_end = width - width % LANES
    out = np.empty((len(starts) - 1, width), grad.dtype)

    for u in range(out.shape[0]):
        first, target = grad[order[starts[u]]], out[u]  # (W,)

        # the full vectors
        for w in range(0, vector_end, LANES):
            vector_sum = load(first, w)
            for i in range(starts[u] + 1, starts[u + 1]):
                vector_sum = add(vector_sum, load(grad[order[i]], w))
            store(target, w, vector_sum)

        # the rest, one by one
        for w in range(vector_end, width):
            rest_sum = first[w]
            for i in range(starts[u] + 1, starts[u + 1]):
                rest_sum += grad[order[i], w]
            target[w] = rest_sum
    return out


class CompiledGroups:
    """Equal row numbers as groups.

    Args:
        row_numbers: (M,) int32 or int64.
        table_rows: Rows of the table.

    Attributes:
        rows: (U,) int64 the row numbers that occur, sorted.
    """

    def __init__(self, row_numbers: Tensor, table_rows: int) -> None:
        rows, self.starts, self.order = _sorted_groups(row_numbers.numpy(), table_rows - 1)
        self.rows = torch.from_numpy(rows)

    @cached_property
    def group(self) -> Tensor:
        """(M,) int32 the group of each row number."""
        group = np.empty_like(self.order)
        group[self.order] = np.repeat(
            np.arange(len(self.rows), dtype=np.int32), np.diff(self.starts)
        )
        return torch.from_numpy(group)

    def sum(self, grad: Tensor) -> Tensor:
        """Sum gradients (M, ...) by group: (U, ...)."""
        flat = grad.flatten(1).contiguous()  # (M, W)
        sums = torch.from_numpy(_group_sums(flat.numpy(), self.starts, self.order))
        return sums.view(len(self.rows), *grad.shape[1:])


def row_sparse(rows: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """The sparse gradient of a table of this shape: rows as in :func:`summed_rows`, and theirs."""
    is_coalesced = not launches(values)
    return torch.sparse_coo_tensor(
        rows[None], values, shape, is_coalesced=is_coalesced, check_invariants=False
    )


def summed_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (M,) int64 that a sparse gradient holds, sorted, and the sums (M, ...) by row.

    Each row is there once. On a GPU, whose host would wait for the number of different ones, it is
    there as often as it was taken, see :func:`sums_in_place`.
    """
    if launches(grad):
        return sums_in_place(grad._indices()[0], grad._values())
    grad = coalesced(grad)
    return grad.indices()[0], grad.values()


def sums_in_place(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the values (M, ...) of equal rows, in tensors whose shapes depend on no number.

    Returns:
        The rows (M,) sorted, and (M, ...): of equal rows the first has the sum, the others zeros.
    """
    ordered = rows.sort().values
    first = torch.searchsorted(ordered, rows)
    return ordered, torch.zeros_like(values).index_add_(0, first, values)


def coalesced(grad: Tensor) -> Tensor:
    """A row-sparse gradient with its rows sorted, each once.

    Autograd forgets that they are so already when it puts a gradient into ``grad``. On a CPU, a
    look takes far less time than sorting them again.
    """
    rows = grad._indices()[0]
    if rows.is_cpu and not grad.is_coalesced() and bool((rows[1:] > rows[:-1]).all()):
        return row_sparse(rows, grad._values(), grad.shape)
    return grad.coalesce()


@kernel
def _copy_rows(rows: np.ndarray, table: np.ndarray, out: np.ndarray) -> bool:
    """``out[i] = table[rows[i]]`` until one is beyond the table; whether none is.

    Args:
        rows: (M,).
        table: (V, W).
        out: (M, W).
    """
    width = table.shape[1]
    vector_end = width - width % LANES

    for i in range(rows.shape[0]):
        if not 0 <= rows[i] < table.shape[0]:
            return False
        row, later_row = table[rows[i]], table[rows[min(i + ROWS_AHEAD, rows.shape[0] - 1)]]
        target = out[i]
        for w in range(0, width, LANES):
            prefetch(later_row, w)
        for w in range(0, vector_end, LANES):
            store(target, w, load(row, w))
        for w in range(vector_end, width):
            target[w] = row[w]
    return True


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, by_kernel: bool) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape, ctx.by_kernel = table.shape, by_kernel
        ctx.groups = None
        if not by_kernel:
            return table.index_select(0, rows)

        # on a CPU each row is asked for some time before it is copied
        taken = table.new_empty(len(rows), *table.shape[1:])
        numbers, values = rows.numpy(), table.detach().flatten(1).numpy()
        if not _copy_rows(numbers, values, taken.flatten(1).numpy()):
            raise IndexError(f"a row beyond the {len(table)} rows of its table")
        return taken

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        if not ctx.by_kernel:
            as_taken = torch.sparse_coo_tensor(
                rows.long()[None], grad, ctx.shape, check_invariants=False
            )
            return as_taken, None, None

        # groups are kept: several backward passes may come
        if ctx.groups is None:
            ctx.groups = CompiledGroups(rows, ctx.shape[0])
        return row_sparse(ctx.groups.rows, ctx.groups.sum(grad), ctx.shape), None, None


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """``table.index_select(0, rows)``, whose gradient by the table is a sparse tensor.

    The gradient holds the rows that were taken: by kernels sorted, each once; else as they were.

    Args:
        table: (V, ...).
        rows: (M,) int32 or int64.

    Raises:
        IndexError: A row is beyond the table.
    """
    return _TakeRows.apply(table, rows, use_kernel(table))


@kernel
def _place_rows(ids: np.ndarray, table: np.ndarray, out: np.ndarray, start: int) -> None:
    """Copy ``table[ids[b, f]]`` into ``out[b]``, from the column ``start + f * W`` on.

    Args:
        ids: (B, F) uint32.
        table: (V, W).
        out: (B, D).
        start: The first column that is written.
    """
    width = table.shape[1]
    vector_end = width - width % LANES

    for b in range(ids.shape[0]):
        row_ids, target = ids[b], out[b]  # (F,), (D,)
        later_ids = ids[min(b + AHEAD, ids.shape[0] - 1)]
        for f in range(row_ids.shape[0]):
            row, later_row = table[row_ids[f]], table[later_ids[f]]
            column = start + f * width
            for w in range(0, width, LANES):
                prefetch(later_row, w)
            for w in range(0, vector_end, LANES):
                store(target, column + w, load(row, w))
            for w in range(vector_end, width):
                target[column + w] = row[w]


def place_rows(
    tables: Sequence[Tensor], indices: Sequence[RowIndex], others: Sequence[Tensor]
) -> Tensor:
    """``torch.cat`` of rows of tables and of other columns, whose parts are not made on the way;
    without gradients.

    Args:
        tables: (V, W) each, on the CPU.
        indices: The rows (B, F) of each table.
        others: (B, d) each.

    Returns:
        (B, D).
    """
    widths = [
        index.ids.shape[1] * table.shape[1] for table, index in zip(tables, indices, strict=True)
    ]
    columns = sum(widths) + sum(other.shape[1] for other in others)
    out = tables[0].new_empty(len(indices[0].ids), columns)
    start = 0
    for table, index, width in zip(tables, indices, widths, strict=True):
        _place_rows(index.checked_ids(), table.data.numpy(), out.numpy(), start)
        start += width
    if others:
        torch.cat(list(others), 1, out=out[:, start:])
    return out
