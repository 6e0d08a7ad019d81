"""Rows of large tables, with gradients that hold those rows alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtlkit.ops._numba import kernel
from mtlkit.ops._simd import LANES, add, load, store

DIGIT = 11  # bits sorted by at a time


@kernel
def _grouped(rows: np.ndarray, largest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort row numbers (M,) by radix.

    Returns:
        Those that occur (U,), where each begins in the order (U + 1,), and the order (M,).
    """
    count = len(rows)
    keys, other = np.empty(count, np.uint64), np.empty(count, np.uint64)
    for i in range(count):
        keys[i] = np.uint64(rows[i]) << np.uint64(32) | np.uint64(
            i
        )  # side by side: nothing is looked up
    shift = 0
    while shift == 0 or largest >> shift:
        places = np.zeros((1 << DIGIT) + 1, np.int32)
        for i in range(count):
            places[((rows[i] >> shift) & ((1 << DIGIT) - 1)) + 1] += 1
        for digit in range(1 << DIGIT):
            places[digit + 1] += places[digit]
        for i in range(count):
            digit = keys[i] >> np.uint64(32 + shift) & np.uint64((1 << DIGIT) - 1)
            other[places[digit]] = keys[i]
            places[digit] += 1
        keys, other = other, keys
        shift += DIGIT
    taken, starts, order = (
        np.empty(count, np.int64),
        np.empty(count + 1, np.int32),
        np.empty(count, np.int32),
    )
    found = 0
    for i in range(count):
        row = np.int64(keys[i] >> np.uint64(32))
        order[i] = keys[i] & np.uint64(0xFFFFFFFF)
        if found == 0 or taken[found - 1] != row:
            taken[found], starts[found] = row, i
            found += 1
    starts[found] = count
    return taken[:found], starts[: found + 1], order


@kernel
def _sums(grad: np.ndarray, starts: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Sum the rows of grad (M, W) that belong together: (U, W)."""
    width = grad.shape[1]
    whole = width - width % LANES
    out = np.empty((len(starts) - 1, width), grad.dtype)
    for u in range(out.shape[0]):
        first, target = grad[order[starts[u]]], out[u]
        for w in range(0, whole, LANES):
            found = load(first, w)
            for i in range(starts[u] + 1, starts[u + 1]):
                found = add(found, load(grad[order[i]], w))
            store(target, w, found)
        for w in range(whole, width):
            rest = first[w]
            for i in range(starts[u] + 1, starts[u + 1]):
                rest += grad[order[i], w]
            target[w] = rest
    return out


def has_kernels(tensor: Tensor) -> bool:
    """Whether the compiled form serves a tensor; the plain form beside it serves all."""
    return tensor.device.type == "cpu"


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = table.shape
        ctx.groups = None
        return table.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        if ctx.groups is None:  # kept: several backward passes may come
            ctx.groups = _groups(rows, ctx.shape[0])
        taken, starts, order = ctx.groups
        if has_kernels(grad):
            flat = grad.flatten(1).contiguous()
            sums = torch.from_numpy(_sums(flat.numpy(), starts.numpy(), order.numpy()))
            values = sums.view(len(taken), *grad.shape[1:])
        else:
            values = grad.new_zeros(len(taken), *grad.shape[1:]).index_add(0, order, grad)
        return torch.sparse_coo_tensor(
            taken[None], values, ctx.shape, is_coalesced=True, check_invariants=False
        ), None


def _groups(rows: Tensor, table_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows taken, sorted, and how to sum by them: starts and order for :func:`_sums`, or places
    for ``index_add``.

    The places are given twice, in the stead of both.
    """
    if has_kernels(rows):
        taken, starts, order = map(torch.from_numpy, _grouped(rows.numpy(), table_rows - 1))
        return taken, starts, order
    taken, place = torch.unique(rows, return_inverse=True)
    return taken.long(), place, place


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """``table.index_select(0, rows)``, whose gradient by the table is a sparse tensor of the rows
    that were taken.

    Args:
        table: (V, ...).
        rows: (M,) int32 or int64.
    """
    return _TakeRows.apply(table, rows)
