"""Compiled CPU kernels, and the autograd functions around them. Each one has a plain PyTorch form in the tests."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_kernel = numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})


# Rows are taken out of the inner loops: only then does the compiler see that they do not overlap, and vectorise.


@_kernel
def _fold(table: np.ndarray, field: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """``out[v] = table[v] @ weight[field[v]]``; table (V, d), weight (F, d, O), out (V, O)."""
    for v in range(table.shape[0]):
        own, target = weight[field[v]], out[v]
        target[:] = 0
        for k in range(table.shape[1]):
            value, row = table[v, k], own[k]
            for o in range(target.shape[0]):
                target[o] += value * row[o]


@_kernel
def _fold_backward(
    table: np.ndarray,
    field: np.ndarray,
    weight: np.ndarray,
    grad: np.ndarray,
    d_table: np.ndarray,
    d_weight: np.ndarray,
) -> None:
    """The gradients of ``_fold``; d_weight is added to."""
    for v in range(table.shape[0]):
        own, d_own, g = weight[field[v]], d_weight[field[v]], grad[v]
        for k in range(table.shape[1]):
            value, row, d_row = table[v, k], own[k], d_own[k]
            total = value * 0
            for o in range(g.shape[0]):
                total += g[o] * row[o]
            for o in range(g.shape[0]):
                d_row[o] += value * g[o]
            d_table[v, k] = total


@_kernel
def _add_rows(ids: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """``out[ids[b, f]] += rows[b]`` for all b and f; ids (B, F), rows (B, O), out (V, O)."""
    for b in range(ids.shape[0]):
        row = rows[b]
        for f in range(ids.shape[1]):
            target = out[ids[b, f]]
            for o in range(row.shape[0]):
                target[o] += row[o]


class _EmbedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, weight: Tensor, ids: Tensor, field: Tensor) -> Tensor:
        fields, outputs = weight.shape[1] // table.shape[1], weight.shape[0]
        by_field = weight.view(outputs, fields, -1).permute(1, 2, 0).contiguous()  # (F, d, O)
        folded = table.new_empty(len(table), outputs)
        _fold(table.numpy(), field.numpy(), by_field.numpy(), folded.numpy())
        ctx.save_for_backward(table, by_field, ids, field)
        return F.embedding_bag(ids, folded, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        table, by_field, ids, field = ctx.saved_tensors
        folded_grad = grad.new_zeros(len(table), grad.shape[1])
        _add_rows(ids.numpy(), grad.contiguous().numpy(), folded_grad.numpy())
        d_table, d_weight = torch.empty_like(table), torch.zeros_like(by_field)
        _fold_backward(
            table.numpy(), field.numpy(), by_field.numpy(), folded_grad.numpy(), d_table.numpy(), d_weight.numpy()
        )
        return d_table, d_weight.permute(2, 0, 1).reshape(grad.shape[1], -1), None, None


def embed_linear(table: Tensor, weight: Tensor, ids: Tensor, field: Tensor) -> Tensor:
    """A linear layer on concatenated embeddings, on the CPU, for small vocabularies.

    Equal to ``F.linear(table[ids].flatten(1), weight)``, in another order of the sum: the layer is applied to the V
    table rows instead of to the B * F looked-up ones, and each sample sums its rows' results. The backward pass is a
    scatter-add of (B, O) gradients into the V rows, and the same small products again.

    Args:
        table: (V, d) contiguous.
        weight: (O, F * d).
        ids: (B, F) int32 row numbers; column f holds rows of field f only.
        field: (V,) int32 the field that each row belongs to.

    Returns:
        (B, O).
    """
    return _EmbedLinear.apply(table, weight, ids, field)


@_kernel
def _mix(weights: np.ndarray, experts: np.ndarray, reach: np.ndarray, out: np.ndarray) -> None:
    """``out[b, n] = weights[b, n] @ experts[b, reach[n]]``; weights (B, n, k), experts (B, E, d), out (B, n, d)."""
    for b in range(out.shape[0]):
        for n in range(out.shape[1]):
            target = out[b, n]
            target[:] = 0
            for k in range(reach.shape[1]):
                value, row = weights[b, n, k], experts[b, reach[n, k]]
                for i in range(target.shape[0]):
                    target[i] += value * row[i]


@_kernel
def _mix_backward(
    weights: np.ndarray,
    experts: np.ndarray,
    reach: np.ndarray,
    grad: np.ndarray,
    d_weights: np.ndarray,
    d_experts: np.ndarray,
) -> None:
    """The gradients of ``_mix``; d_experts is added to."""
    for b in range(grad.shape[0]):
        for n in range(grad.shape[1]):
            g = grad[b, n]
            for k in range(reach.shape[1]):
                value, row, d_row = weights[b, n, k], experts[b, reach[n, k]], d_experts[b, reach[n, k]]
                total = value * 0
                for i in range(g.shape[0]):
                    total += g[i] * row[i]
                for i in range(g.shape[0]):
                    d_row[i] += value * g[i]
                d_weights[b, n, k] = total


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, experts: Tensor, reach: Tensor) -> Tensor:
        weights, experts = weights.contiguous(), experts.contiguous()
        ctx.save_for_backward(weights, experts, reach)
        out = experts.new_empty(*weights.shape[:2], experts.shape[2])
        _mix(weights.numpy(), experts.numpy(), reach.numpy(), out.numpy())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, experts, reach = ctx.saved_tensors
        d_weights, d_experts = torch.empty_like(weights), torch.zeros_like(experts)
        _mix_backward(
            weights.numpy(),
            experts.numpy(),
            reach.numpy(),
            grad.contiguous().numpy(),
            d_weights.numpy(),
            d_experts.numpy(),
        )
        return d_weights, d_experts, None


def mix_shared(weights: Tensor, experts: Tensor, reach: Tensor | None = None) -> Tensor:
    """Mixtures of experts, on the CPU, without a (B, n, k, d) product in between.

    Args:
        weights: (B, n, k).
        experts: (B, E, d).
        reach: (n, k) int64, the experts that each mixture sees; None where every one sees all, k = E.

    Returns:
        (B, n, d), equal to ``weights @ experts`` where every mixture sees all.
    """
    if reach is None:
        reach = torch.arange(experts.shape[1]).expand(weights.shape[1], -1).contiguous()
    return _Mix.apply(weights, experts, reach)
