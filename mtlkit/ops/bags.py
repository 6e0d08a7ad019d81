"""Bags of weighted ids: those of a batch, their sums of a table's rows, and back to the rows.

``out[k] = sum over the ids i of bag k of weight[i] * table[value[i]]``. The kernels add the same
products in the same order as the plain forms, and give the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtlkit.ops._dispatch import use_kernel
from mtlkit.ops._numba import njit
from mtlkit.ops._simd import (
    HALF_LANES,
    LANES,
    add,
    load,
    load_half,
    prefetch,
    scale,
    store,
    zero,
    zeros,
    zeros_half,
)
from mtlkit.ops.take_rows import CompiledGroups, row_sparse, take_rows

AHEAD = 16  # ids between asking the memory for a row and adding it
NEAR = 1 << 19  # bytes of a table that is not asked for: the processor's own cache holds it

bag_kernel = njit(error_model="numpy")  # products and sums are rounded one by one


class Bags(NamedTuple):
    """Bags of weighted ids, one after another; those that rows share are there once."""

    offsets: Tensor  # (K + 1,) int64, where each bag starts, and where the last one ends
    values: Tensor  # (M,) int32, the ids
    weights: Tensor  # (M,)
    # (B,) int32, which bag belongs to each row; None where bag i belongs to row i.
    row: Tensor | None = None


def plain_take_bags(
    features: Mapping[str, Bags], rows: Tensor, room: Mapping[str, int] | None = None
) -> dict[str, Bags]:
    """:func:`take_bags` in PyTorch's own operations."""
    starts, offsets = {}, {}
    for name, bags in features.items():
        starts[name] = bags.offsets.index_select(0, rows)
        lengths = bags.offsets.index_select(0, rows + 1) - starts[name]
        offsets[name] = F.pad(lengths.cumsum(0), (1, 0))

    # The host has to know how many values there are: of all features at once, as it waits for it.
    if room is None:
        ends = [feature_offsets[-1] for feature_offsets in offsets.values()]
        room = dict(zip(features, torch.stack(ends).tolist() if ends else [], strict=True))

    taken = {}
    for name, bags in features.items():
        # What is left of the room repeats values of the batch, so that no other ids occur in it.
        number = torch.arange(room[name], device=rows.device)
        total = offsets[name][-1:]
        is_there, number = number < total, number % total.clamp_min(1)

        # Value number i of the batch is a row's start plus its number within the row.
        bag = torch.searchsorted(offsets[name][1:-1], number, right=True)
        position = number + (starts[name] - offsets[name][:-1]).index_select(0, bag)
        position = position.clamp_max(len(bags.values) - 1)  # the batch may have no value
        taken[name] = Bags(
            F.pad(offsets[name][:-1], (0, 1), value=room[name]),
            bags.values.index_select(0, position),
            torch.where(is_there, bags.weights.index_select(0, position), 0),
        )
    return taken


@bag_kernel
def _take_bags(
    offsets: np.ndarray, values: np.ndarray, weights: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Copy the bags of some rows (K,): offsets (K + 1,), values and weights."""
    taken = np.zeros(len(rows) + 1, np.int64)
    for k in range(len(rows)):
        taken[k + 1] = taken[k] + offsets[rows[k] + 1] - offsets[rows[k]]

    out_values = np.empty(taken[-1], values.dtype)
    out_weights = np.empty(taken[-1], weights.dtype)
    for k in range(len(rows)):
        start, stop = offsets[rows[k]], offsets[rows[k] + 1]
        out_values[taken[k] : taken[k + 1]] = values[start:stop]
        out_weights[taken[k] : taken[k + 1]] = weights[start:stop]
    return taken, out_values, out_weights


def take_bags(
    features: Mapping[str, Bags], rows: Tensor, room: Mapping[str, int] | None = None
) -> dict[str, Bags]:
    """The bags of some rows, one after another, of each feature.

    Args:
        features: Feature name to the bags of N rows.
        rows: (K,) int64 numbers of rows, which must be there.
        room: By feature, M: how many values there are to be, at least as many as the rows have. The
            last bag is filled up with ids of the batch that have weight 0. None for no more than
            there are, which a GPU is asked for.
    """
    weights = [bags.weights for bags in features.values()]
    if room is not None or not (weights and use_kernel(*weights)):
        return plain_take_bags(features, rows, room)
    taken = {}
    for name, bags in features.items():
        arrays = _take_bags(*(tensor.numpy() for tensor in (*bags[:3], rows)))
        taken[name] = Bags(*map(torch.from_numpy, arrays))
    return taken


def plain_sum_bags(table: Tensor, bags: Bags, sparse: bool = False) -> Tensor:
    """:func:`sum_bags` in PyTorch's own operations, which hold a row (M, ...) for every id."""
    offsets, values, weights, row = bags
    rows = take_rows(table, values) if sparse else table.index_select(0, values)

    # The bag of an id is the number of bags that end before it. Shapes that depend on no values,
    # and no ``len``, which is a constant there, can be exported.
    ends = offsets[1:]
    ending = offsets.new_zeros(rows.shape[0] + 1).index_add(0, ends, torch.ones_like(ends))
    bag = ending.cumsum(0)[:-1]  # (M,)
    products = rows * weights.view(-1, *[1] * (rows.dim() - 1))
    sums = rows.new_zeros(offsets.shape[0] - 1, *rows.shape[1:]).index_add(0, bag, products)
    return sums if row is None else sums.index_select(0, row)


@bag_kernel
def _sum_bags(
    offsets: np.ndarray, values: np.ndarray, weights: np.ndarray, table: np.ndarray, out: np.ndarray
) -> None:
    """``out[k] += weights[i] * table[values[i]]`` for every id i of bag k.

    Offsets are (K + 1,), values (M,) uint32, weights (M,), the table (V, W) and out (K, W).
    """
    width = out.shape[1]
    vector_end = width - width % LANES
    half_end = width - width % HALF_LANES
    is_far, last = table.size * table.itemsize > NEAR, len(values) - 1

    for k in range(out.shape[0]):
        start, stop, target = offsets[k], offsets[k + 1], out[k]  # (W,)
        for w in range(0, vector_end, LANES):
            vector_sum = zeros(target)
            for i in range(start, stop):
                if is_far:
                    prefetch(table[values[min(i + AHEAD, last)]], w)
                row = table[values[i]]
                vector_sum = add(vector_sum, scale(weights[i], load(row, w)))
            store(target, w, vector_sum)

        # half a vector and single numbers that are left
        for w in range(vector_end, half_end, HALF_LANES):
            half_sum = zeros_half(target)
            for i in range(start, stop):
                if is_far:
                    prefetch(table[values[min(i + AHEAD, last)]], w)
                row = table[values[i]]
                half_sum = add(half_sum, scale(weights[i], load_half(row, w)))
            store(target, w, half_sum)
        for w in range(half_end, width):
            rest_sum = zero(target)
            for i in range(start, stop):
                rest_sum += weights[i] * table[values[i], w]
            target[w] = rest_sum


@bag_kernel
def _scatter_bags(
    offsets: np.ndarray, values: np.ndarray, weights: np.ndarray, grad: np.ndarray, out: np.ndarray
) -> None:
    """``out[values[i]] += weights[i] * grad[k]`` for every id i of bag k; shapes as before."""
    width = out.shape[1]
    vector_end = width - width % LANES
    half_end = width - width % HALF_LANES
    is_far, last = out.size * out.itemsize > NEAR, len(values) - 1

    for k in range(grad.shape[0]):
        start, stop, bag_grad = offsets[k], offsets[k + 1], grad[k]  # (W,)
        for w in range(0, vector_end, LANES):
            vector = load(bag_grad, w)
            for i in range(start, stop):
                if is_far:
                    prefetch(out[values[min(i + AHEAD, last)]], w)
                target = out[values[i]]
                store(target, w, add(load(target, w), scale(weights[i], vector)))

        # half a vector and single numbers that are left
        for w in range(vector_end, half_end, HALF_LANES):
            half = load_half(bag_grad, w)
            for i in range(start, stop):
                if is_far:
                    prefetch(out[values[min(i + AHEAD, last)]], w)
                target = out[values[i]]
                store(target, w, add(load_half(target, w), scale(weights[i], half)))
        for w in range(half_end, width):
            for i in range(start, stop):
                out[values[i], w] += weights[i] * bag_grad[w]


def _groups(ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows that ids (M,) name, sorted (U,) int64, and which of them each id is (M,) uint32."""
    if size > len(ids):  # the table is too large to go through
        groups = CompiledGroups(torch.from_numpy(ids.view(np.int32)), size)
        return groups.rows.numpy(), groups.group.numpy().view(np.uint32)
    occurs = np.zeros(size, np.bool_)
    occurs[ids] = True
    numbers = np.cumsum(occurs, dtype=np.uint32) - np.uint32(1)
    return np.flatnonzero(occurs), numbers[ids]


class _SumBags(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, bags: Bags, sparse: bool) -> Tensor:
        # unsigned: no index counts from the end, and kernels do not look again
        ids = bags.values.int().contiguous().numpy().view(np.uint32)
        if ids.max(initial=0) >= max(len(table), 1):
            raise IndexError(f"an id beyond the {len(table)} rows of its table")
        ctx.shape, ctx.sparse, ctx.bags, ctx.ids = table.shape, sparse, bags, ids
        ctx.groups = None
        offsets, weights = bags.offsets.numpy(), bags.weights.numpy()
        out = table.new_empty(len(offsets) - 1, *table.shape[1:])
        rows = table.flatten(1).contiguous().numpy()
        _sum_bags(offsets, ids, weights, rows, out.flatten(1).numpy())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ids, size = ctx.ids, ctx.shape[0]
        if ctx.sparse:
            # groups are kept: several backward passes may come
            if ctx.groups is None:
                ctx.groups = _groups(ids, size)
            rows, ids = ctx.groups
            size = len(rows)
        out = grad.new_zeros(size, *ctx.shape[1:])
        _scatter_bags(
            ctx.bags.offsets.numpy(),
            ids,
            ctx.bags.weights.numpy(),
            grad.flatten(1).contiguous().numpy(),
            out.flatten(1).numpy(),
        )
        d_table = row_sparse(torch.from_numpy(rows), out, ctx.shape) if ctx.sparse else out
        return d_table, None, None


def sum_bags(table: Tensor, bags: Bags, sparse: bool = False) -> Tensor:
    """The weighted sums of a table's rows in the bags of a batch, (B, ...).

    Args:
        table: (V, ...).
        bags: The bags of B rows; weights get no gradient.
        sparse: Whether the gradient by the table is a sparse tensor of the rows that occur.

    Raises:
        IndexError: An id is beyond the table.
    """
    if not use_kernel(table, bags.weights):
        return plain_sum_bags(table, bags, sparse)
    sums = _SumBags.apply(table, bags, sparse)  # (K, ...)
    if bags.row is None:
        return sums
    return take_few_rows(sums, bags.row)


def take_few_rows(table: Tensor, rows: Tensor) -> Tensor:
    """``table.index_select(0, rows)``, (M, ...), whose gradient by the table is found faster.

    Args:
        table: (V, ...).
        rows: (M,) int32 or int64.
    """
    if not use_kernel(table):
        return table.index_select(0, rows)
    # a bag a row, of one id with weight 1
    offsets = torch.arange(len(rows) + 1)
    return _SumBags.apply(table, Bags(offsets, rows, table.new_ones(len(rows))), False)
