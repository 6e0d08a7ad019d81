"""Compiled CPU kernels, and the autograd functions around them. Each one has a plain PyTorch form
in the tests.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtlkit.ops._numba import kernel
from mtlkit.ops._simd import LANES, fma, load, store, total, zeros

# Rows are taken out of the inner loops: only then does the compiler see that they do not overlap,
# and vectorise. The first numbers of a row are taken 16 at a time, the rest of it one by one.


@kernel
def _mix(
    weights: np.ndarray, experts: np.ndarray, expert_index: np.ndarray, out: np.ndarray
) -> None:
    """``out[b, n] = weights[b, n] @ experts[b, expert_index[n]]``; weights (B, n, k), experts (B,
    E, d), out (B, n, d).
    """
    width = out.shape[2]
    whole = width - width % LANES
    for b in range(out.shape[0]):
        for n in range(out.shape[1]):
            target = out[b, n]
            for i in range(0, whole, LANES):
                mixed = zeros(target)
                for k in range(expert_index.shape[1]):
                    mixed = fma(weights[b, n, k], load(experts[b, expert_index[n, k]], i), mixed)
                store(target, i, mixed)
            for i in range(whole, width):
                rest = total(zeros(target))
                for k in range(expert_index.shape[1]):
                    rest += weights[b, n, k] * experts[b, expert_index[n, k], i]
                target[i] = rest


@kernel
def _mix_gradients(
    weights: np.ndarray,
    experts: np.ndarray,
    expert_index: np.ndarray,
    grad: np.ndarray,
    d_weights: np.ndarray,
    d_experts: np.ndarray,
) -> None:
    """The gradients of ``_mix``; d_experts is (n, B, E, d) of each mixture apart, or (1, B, E, d)
    of all.
    """
    width = grad.shape[2]
    whole = width - width % LANES
    apart = d_experts.shape[0] > 1
    for b in range(grad.shape[0]):
        d_experts[:, b] = 0
        for n in range(grad.shape[1]):
            g, d_own = grad[b, n], d_experts[n if apart else 0, b]
            for k in range(expert_index.shape[1]):
                value, row, d_row = (
                    weights[b, n, k],
                    experts[b, expert_index[n, k]],
                    d_own[expert_index[n, k]],
                )
                products = zeros(g)
                for i in range(0, whole, LANES):
                    part = load(g, i)
                    products = fma(part, load(row, i), products)
                    store(d_row, i, fma(value, part, load(d_row, i)))
                d_value = total(products)
                for i in range(whole, width):
                    d_value += g[i] * row[i]
                    d_row[i] += value * g[i]
                d_weights[b, n, k] = d_value


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, experts: Tensor, expert_index: np.ndarray) -> Tensor:
        weights, experts = weights.contiguous(), experts.contiguous()
        ctx.save_for_backward(weights, experts)
        ctx.expert_index = expert_index
        out = experts.new_empty(*weights.shape[:2], experts.shape[2])
        _mix(weights.numpy(), experts.numpy(), expert_index, out.numpy())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, experts = ctx.saved_tensors
        d_weights, d_experts = _compiled_gradients(weights, experts, ctx.expert_index, grad, 1)
        return d_weights, d_experts[0], None


def _compiled_gradients(
    weights: Tensor, experts: Tensor, expert_index: np.ndarray, grad: Tensor, parts: int
) -> tuple[Tensor, Tensor]:
    """By weights and experts, the latter (parts, B, E, d)."""
    d_weights, d_experts = torch.empty_like(weights), experts.new_empty(parts, *experts.shape)
    grad = grad.contiguous()
    _mix_gradients(
        weights.numpy(),
        experts.numpy(),
        expert_index,
        grad.numpy(),
        d_weights.numpy(),
        d_experts.numpy(),
    )
    return d_weights, d_experts


def mix_shared(weights: Tensor, experts: Tensor, expert_index: Tensor | None = None) -> Tensor:
    """Mixtures of experts, on the CPU, without a (B, n, k, d) product in between.

    Args:
        weights: (B, n, k).
        experts: (B, E, d).
        expert_index: (n, k) int64, the experts that each mixture sees; None where every one sees
            all, k = E.

    Returns:
        (B, n, d), equal to ``weights @ experts`` where every mixture sees all.
    """
    return _Mix.apply(
        weights, experts, expert_index_array(weights.shape[1], experts.shape[1], expert_index)
    )


def combine_experts_vjp(
    weights: Tensor, experts: Tensor, expert_index: Tensor | None, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """What a gradient (B, n, d) of mixtures means for the experts, by mixture, and for the weights.

    Args:
        weights: (B, n, k).
        experts: (B, E, d).
        expert_index: (n, k) int64, or None.
        grad: (B, n, d).

    Returns:
        (n, B, E, d) and (B, n, k).
    """
    weights, experts, grad = weights.detach(), experts.detach(), grad.detach()
    if experts.device.type == "cpu" and weights.dtype == experts.dtype == grad.dtype:
        known = expert_index_array(weights.shape[1], experts.shape[1], expert_index)
        d_weights, d_experts = _compiled_gradients(
            weights.contiguous(), experts.contiguous(), known, grad, grad.shape[1]
        )
        return d_experts, d_weights
    own = (
        experts[:, None]
        if expert_index is None
        else experts.index_select(1, expert_index.flatten()).unflatten(1, expert_index.shape)
    )
    found = (
        (weights[..., None].to(grad.dtype) * grad[:, :, None]).transpose(0, 1).to(experts.dtype)
    )  # (n, B, k, d)
    if expert_index is not None:
        spread = experts.new_zeros(grad.shape[1], *experts.shape)
        found = spread.scatter_(2, expert_index[:, None, :, None].expand_as(found), found)
    return found, (grad[:, :, None] * own).sum(-1).to(weights.dtype)


def expert_index_array(mixtures: int, experts: int, expert_index: Tensor | None) -> np.ndarray:
    """The experts (n, k) that each mixture sees, for kernels."""
    return _all(mixtures, experts) if expert_index is None else expert_index.contiguous().numpy()


@lru_cache
def _all(mixtures: int, experts: int) -> np.ndarray:
    return np.tile(np.arange(experts, dtype=np.int64), (mixtures, 1))


def combine_experts(weights: Tensor, experts: Tensor, expert_index: Tensor | None = None) -> Tensor:
    """Mixtures of experts.

    Args:
        weights: (B, n, k).
        experts: (B, E, d).
        expert_index: (n, k) int64, the experts that each mixture sees; None where every one sees
            all, k = E.

    Returns:
        (B, n, d).
    """
    if (
        experts.device.type == "cpu"
        and weights.dtype == experts.dtype
        and not torch.compiler.is_compiling()
    ):
        return mix_shared(weights, experts, expert_index)
    own = (
        experts[:, None]
        if expert_index is None
        else experts.index_select(1, expert_index.flatten()).unflatten(1, expert_index.shape)
    )
    return (weights[..., None].to(experts.dtype) * own).sum(-2)
