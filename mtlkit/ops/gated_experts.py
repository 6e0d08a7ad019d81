"""Softmax gates, rectified experts and their mixtures, where gates and experts are one layer each.

``out[b, n] = sum over k of softmax(gates[b, n])[k] * relu(experts[b, index[n, k]])``, in one pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtlkit.ops._dispatch import use_kernel
from mtlkit.ops._numba import kernel
from mtlkit.ops._simd import LANES, fma, load, positive, store, total, where_positive, zero, zeros
from mtlkit.ops.combine_experts import plain_combine_experts, plain_combine_experts_vjp
from mtlkit.ops.softmax import (
    plain_softmax,
    plain_softmax_backward,
    softmax_backward,
    softmax_forward,
)


def plain_gated_experts(
    outputs: Tensor, width: int, expert_index: np.ndarray
) -> tuple[Tensor, Tensor]:
    """:func:`gated_experts` in PyTorch's own operations."""
    logits, experts = _split(outputs, width, expert_index)
    weights = plain_softmax(logits)
    index = torch.from_numpy(expert_index).to(outputs.device)
    return plain_combine_experts(weights, experts.relu(), index), weights.detach()


def plain_gated_experts_vjp(
    outputs: Tensor, weights: Tensor, expert_index: np.ndarray, grad: Tensor, apart: bool
) -> Tensor:
    """:func:`gated_experts_vjp` in PyTorch's own operations."""
    _, experts = _split(outputs, grad.shape[2], expert_index)
    index = torch.from_numpy(expert_index).to(outputs.device)
    d_rectified, d_weights = plain_combine_experts_vjp(weights, experts.relu(), index, grad)
    d_experts = d_rectified * (experts > 0)  # (n, B, E, d)
    d_logits = plain_softmax_backward(weights, d_weights)
    if apart:
        return torch.cat([d_experts.transpose(0, 1).flatten(1), d_logits.flatten(1)], 1)
    return torch.cat([d_logits.flatten(1), d_experts.sum(0).flatten(1)], 1)


def _split(outputs: Tensor, width: int, expert_index: np.ndarray) -> tuple[Tensor, Tensor]:
    """The gates' logits (B, n, k) and, after them, the experts (B, E, d)."""
    gates = expert_index.size
    logits = outputs[:, :gates].unflatten(1, expert_index.shape)
    return logits, outputs[:, gates:].unflatten(1, (-1, width))


@kernel
def _combine_rectified(
    weights: np.ndarray, experts: np.ndarray, expert_index: np.ndarray, out: np.ndarray
) -> None:
    """``out[b, n] = weights[b, n] @ relu(experts[b, expert_index[n]])``.

    Args:
        weights: (B, n, k).
        experts: (B, E * d), contiguous rows.
        expert_index: (n, k).
        out: (B, n, d).
    """
    width = out.shape[2]
    vector_end = width - width % LANES

    for b in range(out.shape[0]):
        row_experts = experts[b]  # (E * d,)
        for n in range(out.shape[1]):
            gate_weights, mixture = weights[b, n], out[b, n]  # (k,), (d,)

            # the full vectors
            for i in range(0, vector_end, LANES):
                weighted_sum = zeros(mixture)
                for k in range(expert_index.shape[1]):
                    value = load(row_experts, expert_index[n, k] * width + i)
                    weighted_sum = fma(gate_weights[k], positive(value), weighted_sum)
                store(mixture, i, weighted_sum)

            # the rest; what is no number stays so
            for i in range(vector_end, width):
                mixture[i] = 0
                for k in range(expert_index.shape[1]):
                    value = row_experts[expert_index[n, k] * width + i]
                    if not value <= 0:
                        mixture[i] += gate_weights[k] * value


@kernel
def _combine_rectified_backward(
    weights: np.ndarray,
    experts: np.ndarray,
    expert_index: np.ndarray,
    grad: np.ndarray,
    d_weights: np.ndarray,
    d_experts: np.ndarray,
    sees_all: bool,
) -> None:
    """Write the gradients of ``_combine_rectified``.

    Args:
        weights: (B, n, k).
        experts: (B, E * d), contiguous rows.
        expert_index: (n, k).
        grad: (B, n, d) of the mixtures.
        d_weights: (B, n, k).
        d_experts: (n, B, E * d) for each mixture apart, or (1, B, E * d) for their sum; contiguous
            rows. Zeros, unless ``sees_all``: then all is written.
        sees_all: Whether every mixture is made of all experts.
    """
    width = grad.shape[2]
    vector_end = width - width % LANES
    apart = d_experts.shape[0] > 1

    for b in range(grad.shape[0]):
        row_experts = experts[b]  # (E * d,)
        for n in range(grad.shape[1]):
            d_mixture, gate_weights = grad[b, n], weights[b, n]  # (d,), (k,)
            d_row_experts = d_experts[n if apart else 0, b]  # (E * d,)
            # what is written first need not be added to what stands there
            fresh = sees_all and (n == 0 or apart)
            for k in range(expert_index.shape[1]):
                start = expert_index[n, k] * width
                products = zeros(d_mixture)

                # the full vectors
                for i in range(0, vector_end, LANES):
                    value, d_out = load(row_experts, start + i), load(d_mixture, i)
                    products = fma(d_out, positive(value), products)
                    before = zeros(d_mixture) if fresh else load(d_row_experts, start + i)
                    d_value = where_positive(value, d_out)
                    store(d_row_experts, start + i, fma(gate_weights[k], d_value, before))

                # the rest
                d_weight = total(products)
                for i in range(vector_end, width):
                    value = row_experts[start + i]
                    before = zero(d_mixture) if fresh else d_row_experts[start + i]
                    if value <= 0:
                        d_row_experts[start + i] = before
                    else:
                        d_weight += d_mixture[i] * value
                        d_row_experts[start + i] = before + gate_weights[k] * d_mixture[i]
                d_weights[b, n, k] = d_weight


def _compiled_vjp(
    outputs: Tensor, weights: Tensor, expert_index: np.ndarray, grad: Tensor, apart: bool
) -> Tensor:
    """:func:`gated_experts_vjp` by kernels."""
    gates = expert_index.size
    experts = outputs.detach().numpy()[:, gates:]  # (B, E * d)
    rows, size = experts.shape
    parts = len(expert_index) if apart else 1

    # the kernel fills the experts' gradient where every mixture sees all, and else adds to it
    sees_all = expert_index.shape[1] * grad.shape[2] == size
    make = outputs.new_empty if sees_all else outputs.new_zeros
    d_outputs = make(rows, parts * size + gates)
    if apart:
        d_experts, d_logits = d_outputs[:, : parts * size], d_outputs[:, parts * size :]
    else:
        d_logits, d_experts = d_outputs[:, :gates], d_outputs[:, gates:]

    d_weights = torch.empty_like(weights)
    _combine_rectified_backward(
        weights.numpy(),
        experts,
        expert_index,
        grad.contiguous().numpy(),
        d_weights.numpy(),
        d_experts.numpy().reshape(rows, parts, size).swapaxes(0, 1),
        sees_all,
    )
    softmax_backward(weights, d_weights, d_logits.unflatten(1, expert_index.shape))
    return d_outputs


class _GatedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, width: int, expert_index: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        logits = outputs[:, : expert_index.size].unflatten(1, expert_index.shape)
        weights = softmax_forward(logits)
        experts = outputs.numpy()[:, expert_index.size :]  # (B, E * d)
        mixtures = outputs.new_empty(len(outputs), len(expert_index), width)
        _combine_rectified(weights.numpy(), experts, expert_index, mixtures.numpy())
        ctx.save_for_backward(outputs, weights)
        ctx.expert_index = expert_index
        ctx.mark_non_differentiable(weights)
        return mixtures, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        outputs, weights = ctx.saved_tensors
        return _compiled_vjp(outputs, weights, ctx.expert_index, grad, apart=False), None, None


def gated_experts(outputs: Tensor, width: int, expert_index: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mixtures of rectified experts by softmax gates.

    Args:
        outputs: (B, n * k + E * d), the outputs of the gates' layer and, after them, of the
            experts'.
        width: Width of an expert, d.
        expert_index: (n, k) int64, the experts that each gate mixes, none of them twice.

    Returns:
        The mixtures (B, n, d), and the gates' weights (B, n, k), which get no gradient.
    """
    if use_kernel(outputs):
        return _GatedExperts.apply(outputs, width, expert_index)
    return plain_gated_experts(outputs, width, expert_index)


def gated_experts_vjp(
    outputs: Tensor, weights: Tensor, expert_index: np.ndarray, grad: Tensor, apart: bool
) -> Tensor:
    """The gradient of the outputs of gates and experts.

    Args:
        outputs: (B, n * k + E * d), as in :func:`gated_experts`.
        weights: (B, n, k) the gates' weights.
        expert_index: (n, k) int64.
        grad: (B, n, d) of the mixtures.
        apart: Whether the experts' gradient is wanted for each mixture.

    Returns:
        (B, n * k + E * d) in the order of the outputs. With ``apart`` (B, n * E * d + n * k) in the
        other order, that of ``FirstLayerBoundary.vjp`` in the models: the experts' by each mixture,
        one after the other, and then the gates'.
    """
    outputs, grad = outputs.detach(), grad.detach()
    form = _compiled_vjp if use_kernel(outputs, weights, grad) else plain_gated_experts_vjp
    return form(outputs, weights, expert_index, grad, apart)
