"""Mixtures of experts: ``out[b, n] = sum over k of weights[b, n, k] * experts[b, index[n, k]]``.

The plain form makes a (B, n, k, d) product in between, the kernel does not.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtlkit.ops._dispatch import launches, use_kernel
from mtlkit.ops._numba import kernel
from mtlkit.ops._simd import LANES, fma, load, store, total, zero, zeros


def plain_combine_experts(
    weights: Tensor, experts: Tensor, expert_index: Tensor | None = None
) -> Tensor:
    """:func:`combine_experts` in PyTorch's own operations."""
    if expert_index is None and launches(experts):
        return torch.bmm(weights.to(experts.dtype), experts)
    mixed = _mixed_experts(experts, expert_index)  # (B, n or 1, k, d)
    return (weights[..., None].to(experts.dtype) * mixed).sum(-2)


def plain_combine_experts_vjp(
    weights: Tensor, experts: Tensor, expert_index: Tensor | None, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`combine_experts_vjp` in PyTorch's own operations."""
    mixed = _mixed_experts(experts, expert_index)  # (B, n or 1, k, d)
    d_weights = (grad[:, :, None] * mixed).sum(-1).to(weights.dtype)

    d_mixed = weights[..., None].to(grad.dtype) * grad[:, :, None]  # (B, n, k, d)
    d_mixed = d_mixed.transpose(0, 1).to(experts.dtype)  # (n, B, k, d)
    if expert_index is None:
        return d_mixed, d_weights

    # experts that a mixture does not see get 0
    d_experts = experts.new_zeros(grad.shape[1], *experts.shape)
    columns = expert_index[:, None, :, None].expand_as(d_mixed)
    return d_experts.scatter_(2, columns, d_mixed), d_weights


def _mixed_experts(experts: Tensor, expert_index: Tensor | None) -> Tensor:
    """The experts that each mixture sees, (B, n, k, d); (B, 1, E, d) where every one sees all."""
    if expert_index is None:
        return experts[:, None]
    return experts.index_select(1, expert_index.flatten()).unflatten(1, expert_index.shape)


@kernel
def _combine(
    weights: np.ndarray, experts: np.ndarray, expert_index: np.ndarray, out: np.ndarray
) -> None:
    """Write the mixtures.

    Args:
        weights: (B, n, k).
        experts: (B, E, d).
        expert_index: (n, k).
        out: (B, n, d).
    """
    width = out.shape[2]
    vector_end = width - width % LANES

    for b in range(out.shape[0]):
        for n in range(out.shape[1]):
            mixture = out[b, n]  # (d,)

            # the full vectors
            for i in range(0, vector_end, LANES):
                weighted_sum = zeros(mixture)
                for k in range(expert_index.shape[1]):
                    expert = load(experts[b, expert_index[n, k]], i)
                    weighted_sum = fma(weights[b, n, k], expert, weighted_sum)
                store(mixture, i, weighted_sum)

            # the rest
            for i in range(vector_end, width):
                rest_sum = zero(mixture)
                for k in range(expert_index.shape[1]):
                    rest_sum += weights[b, n, k] * experts[b, expert_index[n, k], i]
                mixture[i] = rest_sum


@kernel
def _combine_backward(
    weights: np.ndarray,
    experts: np.ndarray,
    expert_index: np.ndarray,
    grad: np.ndarray,
    d_weights: np.ndarray,
    d_experts: np.ndarray,
) -> None:
    """Write the gradients of ``_combine``.

    Args:
        weights: (B, n, k).
        experts: (B, E, d).
        expert_index: (n, k).
        grad: (B, n, d) of the mixtures.
        d_weights: (B, n, k).
        d_experts: (n, B, E, d) for each mixture, or (1, B, E, d) for their sum.
    """
    width = grad.shape[2]
    vector_end = width - width % LANES
    apart = d_experts.shape[0] > 1

    for b in range(grad.shape[0]):
        d_experts[:, b] = 0
        for n in range(grad.shape[1]):
            d_mixture = grad[b, n]  # (d,)
            d_row_experts = d_experts[n if apart else 0, b]  # (E, d)
            for k in range(expert_index.shape[1]):
                weight = weights[b, n, k]
                expert = experts[b, expert_index[n, k]]  # (d,)
                d_expert = d_row_experts[expert_index[n, k]]  # (d,)

                # the full vectors
                products = zeros(d_mixture)
                for i in range(0, vector_end, LANES):
                    d_out = load(d_mixture, i)
                    products = fma(d_out, load(expert, i), products)
                    store(d_expert, i, fma(weight, d_out, load(d_expert, i)))

                # the rest
                d_weight = total(products)
                for i in range(vector_end, width):
                    d_weight += d_mixture[i] * expert[i]
                    d_expert[i] += weight * d_mixture[i]
                d_weights[b, n, k] = d_weight


def _compiled_vjp(
    weights: Tensor, experts: Tensor, expert_index: np.ndarray, grad: Tensor, apart: bool
) -> tuple[Tensor, Tensor]:
    """The gradients by the experts, (n, B, E, d) by mixture or (1, B, E, d), and by the weights."""
    d_weights = torch.empty_like(weights)
    d_experts = experts.new_empty(grad.shape[1] if apart else 1, *experts.shape)
    _combine_backward(
        weights.numpy(),
        experts.numpy(),
        expert_index,
        grad.contiguous().numpy(),
        d_weights.numpy(),
        d_experts.numpy(),
    )
    return d_experts, d_weights


class _CombineExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, experts: Tensor, expert_index: np.ndarray) -> Tensor:
        weights, experts = weights.contiguous(), experts.contiguous()
        ctx.save_for_backward(weights, experts)
        ctx.expert_index = expert_index
        out = experts.new_empty(*weights.shape[:2], experts.shape[2])
        _combine(weights.numpy(), experts.numpy(), expert_index, out.numpy())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, experts = ctx.saved_tensors
        d_experts, d_weights = _compiled_vjp(weights, experts, ctx.expert_index, grad, apart=False)
        return d_weights, d_experts[0], None


def expert_index_array(mixtures: int, experts: int, expert_index: Tensor | None) -> np.ndarray:
    """The experts (n, k) that each mixture sees, for kernels."""
    if expert_index is None:
        return _all_experts(mixtures, experts)
    return expert_index.contiguous().numpy()


@lru_cache
def _all_experts(mixtures: int, experts: int) -> np.ndarray:
    return np.tile(np.arange(experts, dtype=np.int64), (mixtures, 1))


def combine_experts(weights: Tensor, experts: Tensor, expert_index: Tensor | None = None) -> Tensor:
    """Mixtures of experts.

    Args:
        weights: (B, n, k).
        experts: (B, E, d).
        expert_index: (n, k) int64, the experts that each mixture sees, none of them twice; None
            where every mixture sees all, k = E.

    Returns:
        (B, n, d).
    """
    if use_kernel(weights, experts):
        index = expert_index_array(weights.shape[1], experts.shape[1], expert_index)
        return _CombineExperts.apply(weights, experts, index)
    return plain_combine_experts(weights, experts, expert_index)


def combine_experts_vjp(
    weights: Tensor, experts: Tensor, expert_index: Tensor | None, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of the experts for each mixture, and that of the weights.

    Args:
        weights: (B, n, k).
        experts: (B, E, d).
        expert_index: (n, k) int64, or None.
        grad: (B, n, d) of the mixtures.

    Returns:
        (n, B, E, d) and (B, n, k).
    """
    weights, experts, grad = weights.detach(), experts.detach(), grad.detach()
    if use_kernel(weights, experts, grad):
        index = expert_index_array(weights.shape[1], experts.shape[1], expert_index)
        return _compiled_vjp(weights.contiguous(), experts.contiguous(), index, grad, apart=True)
    return plain_combine_experts_vjp(weights, experts, expert_index, grad)
