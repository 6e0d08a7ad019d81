"""A linear layer on concatenated embeddings of small vocabularies, folded into their table.

The layer is applied to the V rows of the table instead of to the B * F looked-up ones, and each
sample sums its rows' results (:func:`mtlkit.ops.sum_rows.sum_rows`). Without a bias, that is
``F.linear(table[ids].flatten(1), weight)`` in another order of the sum.
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
from mtlkit.ops._simd import LANES, add, fma, load, store, total, zero, zeros


def plain_fold(table: Tensor, weight: Tensor, bias: Tensor | None, field: Tensor) -> Tensor:
    """The first result of :func:`fold` in PyTorch's own operations."""
    by_field = weight.unflatten(1, (-1, table.shape[1]))  # (O, F, d)
    by_row = by_field.index_select(1, field)  # (O, V, d)
    folded = torch.einsum("vd,ovd->vo", table, by_row)
    if bias is None:
        return folded
    # Fields without a bias get the one of 0 that stands last.
    biases = F.pad(bias, (0, 0, 0, 1))
    return folded + biases.index_select(0, field.clamp(max=len(bias)))


def plain_fold_weight_gradients(
    table: Tensor, field: Tensor, grad: Tensor, fields: int, biases: int = 1
) -> tuple[Tensor, Tensor]:
    """The gradients of ``plain_fold`` by weight, transposed (F * d, O), and by bias (K, O)."""
    outer = table[:, :, None] * grad[:, None]  # (V, d, O)
    by_field = outer.new_zeros(fields, *outer.shape[1:]).index_add(0, field, outer)  # (F, d, O)
    sums = grad.new_zeros(fields, grad.shape[1]).index_add(0, field, grad)
    return by_field.flatten(0, 1), sums[:biases]


@kernel
def _fold(
    table: np.ndarray, field: np.ndarray, weight: np.ndarray, bias: np.ndarray, out: np.ndarray
) -> None:
    """``out[v] = table[v] @ weight[field[v]]``, and the biases in the first fields' rows.

    Args:
        table: (V, d).
        field: (V,).
        weight: (F, d, O).
        bias: (K, O) of the first K fields.
        out: (V, O).
    """
    width = out.shape[1]
    vector_end = width - width % LANES

    for v in range(table.shape[0]):
        field_weight, target = weight[field[v]], out[v]  # (d, O), (O,)
        with_bias = field[v] < bias.shape[0]
        field_bias = bias[field[v] if with_bias else 0]  # (O,)

        # the full vectors
        for o in range(0, vector_end, LANES):
            vector_sum = load(field_bias, o) if with_bias else zeros(target)
            for k in range(table.shape[1]):
                vector_sum = fma(table[v, k], load(field_weight[k], o), vector_sum)
            store(target, o, vector_sum)

        # the rest
        for o in range(vector_end, width):
            rest_sum = field_bias[o] if with_bias else zero(target)
            for k in range(table.shape[1]):
                rest_sum += table[v, k] * field_weight[k, o]
            target[o] = rest_sum


@kernel
def _fold_table_gradient(
    field: np.ndarray, weight: np.ndarray, grad: np.ndarray, d_table: np.ndarray
) -> None:
    """Write the gradient of ``_fold`` by the table.

    Args:
        field: (V,).
        weight: (F, d, O).
        grad: (V, O).
        d_table: (V, d).
    """
    width = grad.shape[1]
    vector_end = width - width % LANES

    for v in range(d_table.shape[0]):
        field_weight, d_out = weight[field[v]], grad[v]  # (d, O), (O,)
        for k in range(d_table.shape[1]):
            weight_row = field_weight[k]  # (O,)

            # the inner product of two rows: the full vectors, then the rest
            products = zeros(d_out)
            for o in range(0, vector_end, LANES):
                products = fma(load(d_out, o), load(weight_row, o), products)
            product = total(products)
            for o in range(vector_end, width):
                product += d_out[o] * weight_row[o]
            d_table[v, k] = product


@kernel
def _add_fold_weight_gradients(
    table: np.ndarray, field: np.ndarray, grad: np.ndarray, d_weight: np.ndarray, d_bias: np.ndarray
) -> None:
    """Add the gradients of ``_fold`` by weight and bias.

    Args:
        table: (V, d).
        field: (V,).
        grad: (V, O).
        d_weight: (F, d, O).
        d_bias: (K, O).
    """
    width = grad.shape[1]
    vector_end = width - width % LANES

    for v in range(table.shape[0]):
        d_out, d_field_weight = grad[v], d_weight[field[v]]  # (O,), (d, O)
        with_bias = field[v] < d_bias.shape[0]
        d_field_bias = d_bias[field[v] if with_bias else 0]  # (O,)

        # the full vectors
        for o in range(0, vector_end, LANES):
            added = load(d_out, o)
            for k in range(table.shape[1]):
                d_row = d_field_weight[k]
                store(d_row, o, fma(table[v, k], added, load(d_row, o)))
            if with_bias:
                store(d_field_bias, o, add(load(d_field_bias, o), added))

        # the rest
        for o in range(vector_end, width):
            for k in range(table.shape[1]):
                d_field_weight[k, o] += table[v, k] * d_out[o]
            if with_bias:
                d_field_bias[o] += d_out[o]


class _FoldTable(torch.autograd.Function):
    """The fold as a function of the table alone."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, by_field: Tensor, bias: Tensor, field: Tensor) -> Tensor:
        ctx.save_for_backward(by_field, field)
        ctx.shape = table.shape
        out = table.new_empty(len(table), bias.shape[1])
        _fold(table.numpy(), field.numpy(), by_field.numpy(), bias.numpy(), out.numpy())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        by_field, field = ctx.saved_tensors
        d_table = grad.new_empty(ctx.shape)
        grad = grad.contiguous()
        _fold_table_gradient(field.numpy(), by_field.numpy(), grad.numpy(), d_table.numpy())
        return d_table, None, None, None


class _FoldWeight(torch.autograd.Function):
    """The fold's result as it is, as a function of the layer, too."""

    @staticmethod
    def forward(
        ctx: Any, folded: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor, field: Tensor
    ) -> Tensor:
        ctx.save_for_backward(table, field)
        ctx.biases, ctx.inputs = 0 if bias is None else len(bias), weight.shape[1]
        return folded.view_as(folded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        table, field = ctx.saved_tensors
        d_weight = grad.new_zeros(ctx.inputs, grad.shape[1])  # transposed
        d_bias = add_fold_weight_gradients(table, field, grad, d_weight, max(1, ctx.biases))
        return grad, d_weight.t(), d_bias if ctx.biases else None, None, None


def fold(
    table: Tensor, weight: Tensor, bias: Tensor | None, field: Tensor
) -> tuple[Tensor, Tensor]:
    """A linear layer's results for every row of a table.

    Row v gets ``weight[:, the columns of v's field] @ table[v]``.

    Args:
        table: (V, d) contiguous.
        weight: (O, F * d).
        bias: (K, O), added to the rows of the first K fields, one each; or None.
        field: (V,) int32 the field that each row belongs to.

    Returns:
        (V, O), and the same as a function of the table alone, which the first is made of: the
        gradients of the table and of the layer can be had one without the other.
    """
    # views that no gradient goes through (not detach, which says that a model cuts a path)
    with torch.no_grad():
        rows, layer = table.view_as(table), weight.view_as(weight)
        layer_bias = None if bias is None else bias.view_as(bias)

    # as a function of the table alone
    if use_kernel(table, weight):
        by_field = layer.t().contiguous().unflatten(0, (-1, table.shape[1]))  # (F, d, O)
        if layer_bias is None:
            layer_bias = layer.new_zeros(1, len(layer))
        of_table = _FoldTable.apply(table, by_field, layer_bias.contiguous(), field)
    else:
        of_table = plain_fold(table, layer, layer_bias, field)

    # and of the layer, too
    return _FoldWeight.apply(of_table, weight, bias, rows, field), of_table


def add_fold_weight_gradients(
    table: Tensor, field: Tensor, grad: Tensor, out: Tensor, biases: int = 1
) -> Tensor:
    """Add the gradient of the weights, of a gradient of (columns of) the result of :func:`fold`.

    Args:
        table: (V, d) contiguous.
        field: (V,) int32 the field that each row belongs to.
        grad: (V, O).
        out: (F * d, O) contiguous, the gradient of the transposed weights.
        biases: The number of fields with a bias, K.

    Returns:
        The gradient of the biases (K, O).
    """
    table, grad = table.detach(), grad.detach().contiguous()
    d_weight = out.unflatten(0, (-1, table.shape[1]))  # (F, d, O)
    if not use_kernel(table, grad, out):
        added, d_bias = plain_fold_weight_gradients(table, field, grad, len(d_weight), biases)
        out.add_(added)
        return d_bias

    d_bias = grad.new_zeros(biases, grad.shape[1])
    _add_fold_weight_gradients(
        table.numpy(), field.numpy(), grad.numpy(), d_weight.numpy(), d_bias.numpy()
    )
    return d_bias
