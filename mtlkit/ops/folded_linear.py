"""A linear layer on concatenated embeddings of small vocabularies, on the CPU, folded into the
tables.

The layer is applied to the V rows of a table instead of to the B * F looked-up ones, and each
sample sums its rows'
results: ``F.linear(table[ids].flatten(1), weight)`` in another order of the sum. Each function has
a plain PyTorch form in the tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtlkit.ops._numba import kernel
from mtlkit.ops._simd import LANES, add, fma, load, prefetch, store, total, zeros

WIDE = 4 * LANES
AHEAD = 4  # rows
PANEL = 2 * WIDE  # columns that are summed at a time, so that their sums stay in the cache


# The first numbers of a row are taken 16 at a time, the rest of it one by one. Rows are taken out
# of the inner loops: only then does the compiler see that they do not overlap, and vectorise.


@kernel
def _fold(
    table: np.ndarray, field: np.ndarray, weight: np.ndarray, bias: np.ndarray, out: np.ndarray
) -> None:
    """``out[v] = table[v] @ weight[field[v]]``, and the bias in the first field's rows.

    Args:
        table: (V, d).
        field: (V,).
        weight: (F, d, O).
        bias: (O,).
        out: (V, O).
    """
    width = out.shape[1]
    whole = width - width % LANES
    for v in range(table.shape[0]):
        own, target, first = weight[field[v]], out[v], field[v] == 0
        for o in range(0, whole, LANES):
            found = load(bias, o) if first else zeros(bias)
            for k in range(table.shape[1]):
                found = fma(table[v, k], load(own[k], o), found)
            store(target, o, found)
        for o in range(whole, width):
            rest = bias[o] if first else total(zeros(bias))
            for k in range(table.shape[1]):
                rest += table[v, k] * own[k, o]
            target[o] = rest


@kernel
def _fold_by_table(
    field: np.ndarray, weight: np.ndarray, grad: np.ndarray, d_table: np.ndarray
) -> None:
    """The gradient of ``_fold`` by the table."""
    width = grad.shape[1]
    whole = width - width % LANES
    for v in range(d_table.shape[0]):
        own, g = weight[field[v]], grad[v]
        for k in range(d_table.shape[1]):
            row = own[k]
            products = zeros(g)
            for o in range(0, whole, LANES):
                products = fma(load(g, o), load(row, o), products)
            product = total(products)
            for o in range(whole, width):
                product += g[o] * row[o]
            d_table[v, k] = product


@kernel
def _fold_by_weight(
    table: np.ndarray, field: np.ndarray, grad: np.ndarray, d_weight: np.ndarray, d_bias: np.ndarray
) -> None:
    """The gradients of ``_fold`` by weight and bias, which are added to.

    Args:
        table: (V, d).
        field: (V,).
        grad: (V, O).
        d_weight: (F, d, O).
        d_bias: (O,).
    """
    width = grad.shape[1]
    whole = width - width % LANES
    for v in range(table.shape[0]):
        g, d_own = grad[v], d_weight[field[v]]
        for o in range(0, whole, LANES):
            part = load(g, o)
            for k in range(table.shape[1]):
                d_row = d_own[k]
                store(d_row, o, fma(table[v, k], part, load(d_row, o)))
            if field[v] == 0:
                store(d_bias, o, add(load(d_bias, o), part))
        for o in range(whole, width):
            for k in range(table.shape[1]):
                d_own[k, o] += table[v, k] * g[o]
            if field[v] == 0:
                d_bias[o] += g[o]


@kernel
def _sum_rows(
    ids: np.ndarray, folded: np.ndarray, numbers: np.ndarray, by_number: np.ndarray, out: np.ndarray
) -> None:
    """``out[b] = folded[ids[b]].sum(0) + numbers[b] @ by_number``.

    Args:
        ids: (B, F) uint32.
        folded: (V, O).
        numbers: (B, D).
        by_number: (D, O).
        out: (B, O).
    """
    width = out.shape[1]
    wide, whole = width - width % WIDE, width - width % LANES
    for b in range(out.shape[0]):
        own, target, factors = ids[b], out[b], numbers[b]
        for o in range(0, wide, WIDE):  # a look at an id for four vectors
            first = second = third = fourth = zeros(target)
            for f in range(own.shape[0]):
                row = folded[own[f]]
                first = add(first, load(row, o))
                second = add(second, load(row, o + LANES))
                third = add(third, load(row, o + 2 * LANES))
                fourth = add(fourth, load(row, o + 3 * LANES))
            for d in range(factors.shape[0]):
                row, factor = by_number[d], factors[d]
                first = fma(factor, load(row, o), first)
                second = fma(factor, load(row, o + LANES), second)
                third = fma(factor, load(row, o + 2 * LANES), third)
                fourth = fma(factor, load(row, o + 3 * LANES), fourth)
            store(target, o, first)
            store(target, o + LANES, second)
            store(target, o + 2 * LANES, third)
            store(target, o + 3 * LANES, fourth)
        for o in range(wide, whole, LANES):
            first = zeros(target)
            for f in range(own.shape[0]):
                first = add(first, load(folded[own[f]], o))
            for d in range(factors.shape[0]):
                first = fma(factors[d], load(by_number[d], o), first)
            store(target, o, first)
        for o in range(whole, width):
            rest = total(zeros(target))
            for f in range(own.shape[0]):
                rest += folded[own[f], o]
            for d in range(factors.shape[0]):
                rest += factors[d] * by_number[d, o]
            target[o] = rest


@kernel
def _sum_by_id(
    ids: np.ndarray,
    numbers: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
    out_by_number: np.ndarray,
) -> None:
    """``out[ids[b, f]] += rows[b]`` and ``out_by_number[d] += numbers[b, d] * rows[b]``.

    In this order and not by id: the sums of ids that occur often stay in the cache, and nothing
    need be sorted.

    Args:
        ids: (B, F) uint32.
        numbers: (B, D).
        rows: (B, O).
        out: (V, O).
        out_by_number: (D, O).
    """
    width = rows.shape[1]
    wide, whole = width - width % WIDE, width - width % LANES
    for start in range(0, wide, PANEL):
        end = min(start + PANEL, wide)
        for b in range(ids.shape[0]):
            own, row, factors = ids[b], rows[b], numbers[b]
            ahead = rows[min(b + AHEAD, ids.shape[0] - 1)]
            for o in range(start, end, WIDE):
                for line in range(o, o + WIDE, LANES):
                    prefetch(ahead, line)
                first, second = load(row, o), load(row, o + LANES)
                third, fourth = load(row, o + 2 * LANES), load(row, o + 3 * LANES)
                for f in range(own.shape[0]):
                    target = out[own[f]]
                    store(target, o, add(load(target, o), first))
                    store(target, o + LANES, add(load(target, o + LANES), second))
                    store(target, o + 2 * LANES, add(load(target, o + 2 * LANES), third))
                    store(target, o + 3 * LANES, add(load(target, o + 3 * LANES), fourth))
                for d in range(factors.shape[0]):
                    target, factor = out_by_number[d], factors[d]
                    store(target, o, fma(factor, first, load(target, o)))
                    store(target, o + LANES, fma(factor, second, load(target, o + LANES)))
                    store(target, o + 2 * LANES, fma(factor, third, load(target, o + 2 * LANES)))
                    store(target, o + 3 * LANES, fma(factor, fourth, load(target, o + 3 * LANES)))
    for b in range(ids.shape[0] if wide < width else 0):
        own, row, factors = ids[b], rows[b], numbers[b]
        for o in range(wide, whole, LANES):
            first = load(row, o)
            for f in range(own.shape[0]):
                target = out[own[f]]
                store(target, o, add(load(target, o), first))
            for d in range(factors.shape[0]):
                target = out_by_number[d]
                store(target, o, fma(factors[d], first, load(target, o)))
        for o in range(whole, width):
            for f in range(own.shape[0]):
                out[own[f], o] += row[o]
            for d in range(factors.shape[0]):
                out_by_number[d, o] += factors[d] * row[o]


class RowIndex:
    """Row numbers (B, F) of a table.

    Args:
        ids: (B, F) int32, none below 0.
        size: Rows of the table.
    """

    def __init__(self, ids: Tensor, size: int) -> None:
        self.ids = ids
        self.size = size
        self._numbers: np.ndarray | None = None

    def numbers(self) -> np.ndarray:
        """The ids, each of which is a row of the table: kernels do not look again.

        Raises:
            IndexError: One is not.
        """
        if self._numbers is None:
            numbers = (
                self.ids.int().contiguous().numpy().view(np.uint32)
            )  # unsigned: no index counts from the end
            if numbers.max(initial=0) >= max(self.size, 1):
                raise IndexError(f"an id beyond the {self.size} rows of its table")
            self._numbers = numbers
        return self._numbers

    def sum_by_id(
        self, rows: Tensor, numbers: Tensor | None = None, by_number: Tensor | None = None
    ) -> Tensor:
        """Sum rows by id: (V, O) with ``out[ids[b, f]] += rows[b]`` for all b and f.

        Args:
            rows: (B, O).
            numbers: (B, D), if any.
            by_number: (D, O) to which ``numbers.T @ rows`` is added.
        """
        rows = rows.detach().contiguous()
        if numbers is None or by_number is None:
            numbers, by_number = rows.new_empty(len(rows), 0), rows.new_empty(0, rows.shape[1])
        out = rows.new_zeros(self.size, rows.shape[1])
        numbers = numbers.detach().contiguous()
        _sum_by_id(self.numbers(), numbers.numpy(), rows.numpy(), out.numpy(), by_number.numpy())
        return out


class _FoldTable(torch.autograd.Function):
    """The fold as a function of the table alone."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, by_field: Tensor, bias: Tensor, field: Tensor) -> Tensor:
        ctx.save_for_backward(by_field, field)
        ctx.shape = table.shape
        out = table.new_empty(len(table), len(bias))
        _fold(table.numpy(), field.numpy(), by_field.numpy(), bias.numpy(), out.numpy())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        by_field, field = ctx.saved_tensors
        d_table = grad.new_empty(ctx.shape)
        _fold_by_table(field.numpy(), by_field.numpy(), grad.contiguous().numpy(), d_table.numpy())
        return d_table, None, None, None


class _FoldWeight(torch.autograd.Function):
    """Its result as it is, as a function of the layer too."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor, field: Tensor
    ) -> Tensor:
        ctx.save_for_backward(table, field)
        ctx.bias, ctx.width = bias is not None, weight.shape[1]
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        table, field = ctx.saved_tensors
        d_weight = grad.new_zeros(ctx.width, grad.shape[1])
        d_bias = add_fold_weight_gradients(table, field, grad, d_weight)
        return grad, d_weight.t(), d_bias if ctx.bias else None, None, None


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, folded: Tensor, places: RowIndex, numbers: Tensor, weight: Tensor
    ) -> Tensor:
        ctx.places, ctx.numbers = places, numbers
        out = folded.new_empty(len(places.ids), folded.shape[1])
        by_number = weight.t().contiguous()
        _sum_rows(
            places.numbers(),
            folded.contiguous().numpy(),
            numbers.numpy(),
            by_number.numpy(),
            out.numpy(),
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, Tensor]:
        by_number = grad.new_zeros(ctx.numbers.shape[1], grad.shape[1])
        return ctx.places.sum_by_id(grad, ctx.numbers, by_number), None, None, by_number.t()


def fold(
    table: Tensor, weight: Tensor, bias: Tensor | None, field: Tensor
) -> tuple[Tensor, Tensor]:
    """A linear layer's results for every row of a table: ``out[v] = weight[:, the columns of v's
    field] @ table[v]``.

    Args:
        table: (V, d) contiguous.
        weight: (O, F * d).
        bias: (O,), added to the rows of the first field, or None.
        field: (V,) int32 the field that each row belongs to.

    Returns:
        (V, O), and the same as a function of the table alone, on the way from the table to the
        first.
    """
    outputs, fields = len(weight), weight.shape[1] // table.shape[1]
    with torch.no_grad():
        by_field = weight.t().contiguous().view(fields, -1, outputs)  # (F, d, O)
        added = weight.new_zeros(outputs) if bias is None else bias.detach().contiguous()
        rows = table.view_as(table)
    of_table = _FoldTable.apply(table, by_field, added, field)
    return _FoldWeight.apply(of_table, weight, bias, rows, field), of_table


def add_fold_weight_gradients(table: Tensor, field: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    """Add what a gradient of columns of :func:`fold`'s result means for the weights that made them.

    Args:
        table: (V, d) contiguous.
        field: (V,) int32 the field that each row belongs to.
        grad: (V, O).
        out: (F * d, O) contiguous, the transposed weights' gradient.

    Returns:
        The biases' gradient (O,).
    """
    grad, by_field = grad.detach().contiguous(), out.unflatten(0, (-1, table.shape[1]))
    d_bias = grad.new_zeros(grad.shape[1])
    _fold_by_weight(
        table.detach().numpy(), field.numpy(), grad.numpy(), by_field.numpy(), d_bias.numpy()
    )
    return d_bias


def sum_rows(
    folded: Tensor, places: RowIndex, numbers: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """``folded[ids].sum(1) + F.linear(numbers, weight)``, (B, O); the backward pass sums the (B, O)
    gradients by id.

    Args:
        folded: (V, O).
        places: The ids.
        numbers: (B, D), which get no gradient; or None.
        weight: (O, D).
    """
    if numbers is None or weight is None:
        numbers, weight = folded.new_empty(len(places.ids), 0), folded.new_empty(folded.shape[1], 0)
    return _SumRows.apply(folded, places, numbers.contiguous(), weight)
