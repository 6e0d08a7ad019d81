"""A linear layer on concatenated embeddings of small vocabularies, on the CPU, folded into the tables.

The layer is applied to the V rows of a table instead of to the B * F looked-up ones, and each sample sums its rows'
results: ``F.linear(table[ids].flatten(1), weight)`` in another order of the sum. Each function has a plain PyTorch form
in the tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtlkit.models.kernels import kernel

BLOCK = 1024  # rows of a batch that stay in the cache while they are summed by id


# Rows are taken out of the inner loops: only then does the compiler see that they do not overlap, and vectorise.


@kernel
def _fold(table: np.ndarray, field: np.ndarray, weight: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
    """``out[v] = table[v] @ weight[field[v]]``, and the bias in the first field's rows.

    Args:
        table: (V, d).
        field: (V,).
        weight: (F, d, O).
        bias: (O,).
        out: (V, O).
    """
    for v in range(table.shape[0]):
        own, target = weight[field[v]], out[v]
        if field[v] == 0:
            target[:] = bias
        else:
            target[:] = 0
        for k in range(table.shape[1]):
            value, row = table[v, k], own[k]
            for o in range(target.shape[0]):
                target[o] += value * row[o]


@kernel
def _fold_by_table(field: np.ndarray, weight: np.ndarray, grad: np.ndarray, d_table: np.ndarray) -> None:
    """The gradient of ``_fold`` by the table."""
    for v in range(d_table.shape[0]):
        own, g = weight[field[v]], grad[v]
        for k in range(d_table.shape[1]):
            row = own[k]
            total = g[0] * 0
            for o in range(g.shape[0]):
                total += g[o] * row[o]
            d_table[v, k] = total


@kernel
def _fold_by_weight(
    table: np.ndarray, field: np.ndarray, grad: np.ndarray, d_weight: np.ndarray, d_bias: np.ndarray
) -> None:
    """The gradients of ``_fold`` by weight and bias, which are added to."""
    for v in range(table.shape[0]):
        d_own, g = d_weight[field[v]], grad[v]
        if field[v] == 0:
            for o in range(g.shape[0]):
                d_bias[o] += g[o]
        for k in range(table.shape[1]):
            value, d_row = table[v, k], d_own[k]
            for o in range(g.shape[0]):
                d_row[o] += value * g[o]


@kernel
def _sort_places(ids: np.ndarray, block: int, ends: np.ndarray, rows: np.ndarray) -> None:
    """Where each id stands, by block of the batch and by id: a counting sort.

    Args:
        ids: (B, F), unsigned so that no index can count from the end.
        block: Rows of a block.
        ends: (blocks * V + 2,) zeros; then ``ends[k]`` is where the places of the k-th (block, id) begin.
        rows: (B * F,) the rows of the batch in that order.
    """
    size = (ends.shape[0] - 2) // ((ids.shape[0] + block - 1) // block)
    for b in range(ids.shape[0]):
        first = b // block * size + 2
        for f in range(ids.shape[1]):
            ends[first + ids[b, f]] += 1
    for k in range(1, ends.shape[0]):
        ends[k] += ends[k - 1]
    for b in range(ids.shape[0]):
        first = b // block * size + 1
        for f in range(ids.shape[1]):
            k = first + ids[b, f]
            rows[ends[k]] = b
            ends[k] += 1


class Places:
    """Row numbers (B, F) of a table, and where in the batch each table row stands.

    Args:
        ids: (B, F) int32, none below 0.
        size: Rows of the table.
    """

    def __init__(self, ids: Tensor, size: int) -> None:
        self.ids = ids
        self.size = size
        self._by_id: tuple[Tensor, Tensor] | None = None

    def sum_by_id(self, rows: Tensor) -> Tensor:
        """``out[ids[b, f]] += rows[b]`` for all b and f; rows (B, O), out (V, O)."""
        if self._by_id is None:
            blocks = -(-len(self.ids) // BLOCK)
            ends = np.zeros(blocks * self.size + 2, np.int32)
            order = np.empty(self.ids.numel(), np.int32)
            _sort_places(self.ids.numpy().view(np.uint32), BLOCK, ends, order)
            self._by_id = torch.from_numpy(order), torch.from_numpy(ends[:-1])
        places, starts = self._by_id
        sums = F.embedding_bag(places, rows, starts, mode="sum", include_last_offset=True)
        return sums if len(sums) == self.size else sums.view(-1, self.size, rows.shape[1]).sum(0)


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
    def forward(ctx: Any, out: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor, field: Tensor) -> Tensor:
        ctx.save_for_backward(table, field)
        ctx.fields, ctx.bias = weight.shape[1] // table.shape[1], bias is not None
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        table, field = ctx.saved_tensors
        d_weight = table.new_zeros(ctx.fields, table.shape[1], grad.shape[1])
        d_bias = table.new_zeros(grad.shape[1])
        _fold_by_weight(table.numpy(), field.numpy(), grad.contiguous().numpy(), d_weight.numpy(), d_bias.numpy())
        whole = d_weight.permute(2, 0, 1).reshape(grad.shape[1], -1)
        return grad, whole, d_bias if ctx.bias else None, None, None


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, folded: Tensor, places: Places) -> Tensor:
        ctx.places = places
        return F.embedding_bag(places.ids, folded, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.places.sum_by_id(grad.contiguous()), None


def fold(table: Tensor, weight: Tensor, bias: Tensor | None, field: Tensor) -> tuple[Tensor, Tensor]:
    """A linear layer's results for every row of a table: ``out[v] = weight[:, the columns of v's field] @ table[v]``.

    Args:
        table: (V, d) contiguous.
        weight: (O, F * d).
        bias: (O,), added to the rows of the first field, or None.
        field: (V,) int32 the field that each row belongs to.

    Returns:
        (V, O), and the same as a function of the table alone, on the way from the table to the first.
    """
    outputs, fields = len(weight), weight.shape[1] // table.shape[1]
    with torch.no_grad():
        by_field = weight.view(outputs, fields, -1).permute(1, 2, 0).contiguous()  # (F, d, O)
        added = weight.new_zeros(outputs) if bias is None else bias.view_as(bias)
        rows = table.view_as(table)
    of_table = _FoldTable.apply(table, by_field, added, field)
    return _FoldWeight.apply(of_table, weight, bias, rows, field), of_table


def weight_gradients(table: Tensor, field: Tensor, sums: Tensor) -> Tensor:
    """What gradients (V, C) of columns of ``fold``'s results mean for the weights that made them: (C, F * d)."""
    fields = int(field[-1]) + 1
    out = table.new_zeros(fields, table.shape[1], sums.shape[1])
    _fold_by_weight(
        table.detach().numpy(), field.numpy(), sums.numpy(), out.numpy(), sums.new_zeros(sums.shape[1]).numpy()
    )
    return out.permute(2, 0, 1).reshape(sums.shape[1], -1)


def sum_rows(folded: Tensor, places: Places) -> Tensor:
    """``folded[ids].sum(1)``, (B, O); the backward pass sums the (B, O) gradients by id."""
    return _SumRows.apply(folded, places)
