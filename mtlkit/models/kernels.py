"""Compiled CPU kernels, and the autograd functions around them. Each one has a plain PyTorch form in the tests."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

kernel = numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})


# Rows are taken out of the inner loops: only then does the compiler see that they do not overlap, and vectorise.


@kernel
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


@kernel
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
        reach = _all(weights.shape[1], experts.shape[1])
    return _Mix.apply(weights, experts, reach)


@kernel
def _mix_gradients(
    weights: np.ndarray,
    experts: np.ndarray,
    reach: np.ndarray,
    grad: np.ndarray,
    d_weights: np.ndarray,
    d_experts: np.ndarray,
) -> None:
    """As ``_mix_backward``, with d_experts (n, B, E, d) of each mixture apart."""
    for b in range(grad.shape[0]):
        for n in range(grad.shape[1]):
            g = grad[b, n]
            for k in range(reach.shape[1]):
                value, row, d_row = weights[b, n, k], experts[b, reach[n, k]], d_experts[n, b, reach[n, k]]
                total = value * 0
                for i in range(g.shape[0]):
                    total += g[i] * row[i]
                for i in range(g.shape[0]):
                    d_row[i] = value * g[i]
                d_weights[b, n, k] = total


def mix_gradients(weights: Tensor, experts: Tensor, reach: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor]:
    """What a gradient (B, n, d) of mixtures means for the experts, by mixture, and for the weights.

    Args:
        weights: (B, n, k).
        experts: (B, E, d).
        reach: (n, k) int64, or None.
        grad: (B, n, d).

    Returns:
        (n, B, E, d) and (B, n, k).
    """
    weights, experts, grad = weights.detach(), experts.detach(), grad.detach()
    by_mixture = experts.new_zeros if reach is not None else experts.new_empty
    d_experts = by_mixture(grad.shape[1], *experts.shape)
    if experts.device.type == "cpu" and weights.dtype == experts.dtype == grad.dtype:
        if reach is None:
            reach = _all(weights.shape[1], experts.shape[1])
        d_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
        weights, experts, grad = weights.contiguous(), experts.contiguous(), grad.contiguous()
        _mix_gradients(
            weights.numpy(), experts.numpy(), reach.numpy(), grad.numpy(), d_weights.numpy(), d_experts.numpy()
        )
        return d_experts, d_weights
    own = experts[:, None] if reach is None else experts.index_select(1, reach.flatten()).unflatten(1, reach.shape)
    found = (weights[..., None].to(grad.dtype) * grad[:, :, None]).transpose(0, 1).to(experts.dtype)  # (n, B, k, d)
    if reach is None:
        d_experts.copy_(found)
    else:
        d_experts.scatter_(2, reach[:, None, :, None].expand_as(found), found)
    return d_experts, (grad[:, :, None] * own).sum(-1).to(weights.dtype)


def _all(mixtures: int, experts: int) -> Tensor:
    return torch.arange(experts).expand(mixtures, -1).contiguous()


@kernel
def _inner_product(one: np.ndarray, other: np.ndarray) -> float:
    """Of two vectors, summed in double precision."""
    total = 0.0
    for i in range(one.shape[0]):
        total += np.float64(one[i]) * np.float64(other[i])
    return total


def inner_product(one: Tensor, other: Tensor) -> Tensor | float:
    """The inner product of two tensors of one shape, summed in double precision."""
    if one.device.type == "cpu" and one.dtype == other.dtype and one.dtype in {torch.float32, torch.float64}:
        return _inner_product(one.detach().flatten().numpy(), other.detach().flatten().numpy())
    return one.flatten().double() @ other.flatten().double()


@kernel
def _mixture_gram(weights: np.ndarray, grad: np.ndarray, out: np.ndarray) -> None:
    """``out[s, t] = sum over b of (weights[b, s] @ weights[b, t]) * (grad[b, s] @ grad[b, t])`` for t <= s."""
    for b in range(grad.shape[0]):
        for s in range(grad.shape[1]):
            for t in range(s + 1):
                left, right = 0.0, 0.0
                w, v, g, h = weights[b, s], weights[b, t], grad[b, s], grad[b, t]
                for k in range(w.shape[0]):
                    left += w[k] * v[k]
                for i in range(g.shape[0]):
                    right += g[i] * h[i]
                out[s, t] += left * right


def mixture_gram(weights: Tensor, grad: Tensor) -> Tensor:
    """(n, n) float64 inner products of the gradients that each of n mixtures has for the experts it mixes.

    They are outer products ``weights[b, s, e] * grad[b, s]``, whose inner products need not have them formed.

    Args:
        weights: (B, n, E).
        grad: (B, n, d), of the mixtures.
    """
    if grad.device.type == "cpu" and weights.dtype == grad.dtype and grad.dtype in {torch.float32, torch.float64}:
        out = np.zeros((grad.shape[1], grad.shape[1]))
        _mixture_gram(weights.detach().contiguous().numpy(), grad.detach().contiguous().numpy(), out)
        found = torch.from_numpy(out)
        return found + found.tril(-1).T
    weights, grad = weights.double(), grad.double()
    return ((weights @ weights.mT) * (grad @ grad.mT)).sum(0)
