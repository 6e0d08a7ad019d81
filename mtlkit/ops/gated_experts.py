"""Softmax gates, rectified experts and their mixture in one kernel, where gates and experts are one
layer each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtlkit.ops._numba import kernel
from mtlkit.ops._simd import LANES, fma, load, positive, store, total, where_positive, zeros
from mtlkit.ops.softmax import softmax_backward, softmax_forward


@kernel
def _mix_relu(
    weights: np.ndarray, outputs: np.ndarray, start: int, expert_index: np.ndarray, out: np.ndarray
) -> None:
    """``out[b, n] = weights[b, n] @ relu(experts[b, expert_index[n]])``.

    Args:
        weights: (B, n, k).
        outputs: (B, C), of which (E, d) numbers are the experts'.
        start: The first of them.
        expert_index: (n, k).
        out: (B, n, d).
    """
    width = out.shape[2]
    whole = width - width % LANES
    for b in range(out.shape[0]):
        row = outputs[b]
        for n in range(out.shape[1]):
            target, own = out[b, n], weights[b, n]
            for i in range(0, whole, LANES):
                mixed = zeros(target)
                for k in range(expert_index.shape[1]):
                    mixed = fma(
                        own[k], positive(load(row, start + expert_index[n, k] * width + i)), mixed
                    )
                store(target, i, mixed)
            for i in range(whole, width):
                target[i] = 0
                for k in range(expert_index.shape[1]):
                    value = row[start + expert_index[n, k] * width + i]
                    if not value <= 0:
                        target[i] += own[k] * value


@kernel
def _mix_relu_backward(
    weights: np.ndarray,
    outputs: np.ndarray,
    start: int,
    expert_index: np.ndarray,
    grad: np.ndarray,
    d_weights: np.ndarray,
    d_outputs: np.ndarray,
    to: int,
    step: int,
    fresh: bool,
) -> None:
    """The gradients of ``_mix_relu``.

    Args:
        weights: As there, like the next three.
        outputs: Likewise.
        start: Likewise.
        expert_index: Likewise.
        grad: (B, n, d) of its result.
        d_weights: (B, n, k).
        d_outputs: (B, C').
        to: The first number of the experts there.
        step: How many numbers further those of the next mixture are; 0 for the sum of all.
        fresh: Whether the first mixture there need not add to what stands there.
    """
    width = grad.shape[2]
    whole = width - width % LANES
    for b in range(grad.shape[0]):
        row, d_row = outputs[b], d_outputs[b]
        for n in range(grad.shape[1]):
            g, own = grad[b, n], weights[b, n]
            for k in range(expert_index.shape[1]):
                first, place = (
                    start + expert_index[n, k] * width,
                    to + n * step + expert_index[n, k] * width,
                )
                products, empty = zeros(g), fresh and (n == 0 or step > 0)
                for i in range(0, whole, LANES):
                    value, part = load(row, first + i), load(g, i)
                    products = fma(part, positive(value), products)
                    before = zeros(g) if empty else load(d_row, place + i)
                    store(d_row, place + i, fma(own[k], where_positive(value, part), before))
                d_value = total(products)
                for i in range(whole, width):
                    before = total(zeros(g)) if empty else d_row[place + i]
                    if row[first + i] <= 0:
                        d_row[place + i] = before
                    else:
                        d_value += g[i] * row[first + i]
                        d_row[place + i] = before + own[k] * g[i]
                d_weights[b, n, k] = d_value


def _gates(outputs: np.ndarray, expert_index: np.ndarray) -> np.ndarray:
    """The gates' part (B, n, k) of the outputs (B, C), which comes first."""
    return outputs[:, : expert_index.size].reshape(len(outputs), *expert_index.shape)


def gated_experts_vjp(
    outputs: Tensor, weights: Tensor, expert_index: np.ndarray, grad: Tensor, apart: bool
) -> Tensor:
    """The gradient of the outputs (B, C) of gates and experts, in that order.

    With ``apart`` (B, n * E * d + n * k): the experts' by each mixture, one after the other, and
    then the gates'.
    """
    known, gates = outputs.detach().numpy(), expert_index.size
    size = known.shape[1] - gates
    fresh = expert_index.shape[1] == size // grad.shape[2]  # every mixture has all experts
    shape = len(outputs), grad.shape[1] * size + gates if apart else size + gates
    found = outputs.new_empty(shape) if fresh else outputs.new_zeros(shape)
    d_weights, d_outputs = torch.empty_like(weights), found.numpy()
    to, step = (0, size) if apart else (gates, 0)
    _mix_relu_backward(
        weights.numpy(),
        known,
        gates,
        expert_index,
        grad.contiguous().numpy(),
        d_weights.numpy(),
        d_outputs,
        to,
        step,
        fresh,
    )
    d_gates = found[:, -gates:] if apart else found[:, :gates]
    softmax_backward(weights, d_weights, d_gates.unflatten(1, expert_index.shape))
    return found


class _GatedMixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, width: int, expert_index: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        weights = softmax_forward(outputs[:, : expert_index.size].unflatten(1, expert_index.shape))
        own = outputs.new_empty(len(outputs), len(expert_index), width)
        _mix_relu(weights.numpy(), outputs.numpy(), expert_index.size, expert_index, own.numpy())
        ctx.save_for_backward(outputs, weights)
        ctx.expert_index = expert_index
        ctx.mark_non_differentiable(weights)
        return own, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        outputs, weights = ctx.saved_tensors
        return gated_experts_vjp(outputs, weights, ctx.expert_index, grad, apart=False), None, None


def gated_experts(outputs: Tensor, width: int, expert_index: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mixtures of rectified experts by softmax gates.

    Args:
        outputs: (B, n * k + E * d), what the gates' layers make of the input and, after them, the
            experts'.
        width: d.
        expert_index: (n, k) int64, the experts that each gate mixes.

    Returns:
        The mixtures (B, n, d), and the gates' weights (B, n, k), which get no gradient.
    """
    return _GatedMixture.apply(outputs, width, expert_index)
