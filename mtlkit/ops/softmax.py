"""The softmax of gates: many rows of few numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtlkit.ops._dispatch import use_kernel
from mtlkit.ops._numba import exact_kernel

FEW_EXPERTS = 16  # from this number of experts on, PyTorch's softmax is faster

# log 2 = LOG2_SHORT - LOG2_EXCESS, where the first has so few digits that n times it is exact
LOG2_SHORT = np.float32(0.693359375)
LOG2_EXCESS = np.float32(2.12194440e-4)
ONE_BY_LOG2 = np.float32(1.44269504)
ROUNDER = np.float32(1.5 * 2**23)  # so large that adding it rounds to whole numbers
LOWEST = np.float32(-87)  # the exponential of less is taken for 0
EXPONENT_BIAS = 127
MANTISSA_BITS = 23


def plain_softmax(logits: Tensor) -> Tensor:
    """:func:`softmax` in PyTorch's own operations."""
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def plain_softmax_backward(weights: Tensor, grad: Tensor) -> Tensor:
    """The gradient by the logits of a softmax, whose result is weights; all (B, n, k)."""
    mean = (weights * grad).sum(-1, keepdim=True)
    return weights * (grad - mean)


@exact_kernel
def _softmax(logits: np.ndarray, out: np.ndarray) -> None:
    """The softmax of float32 logits (B, n, k) over k."""
    # logits less the largest of their gate: at most 0
    for b in range(out.shape[0]):
        for n in range(out.shape[1]):
            gate_logits, target = logits[b, n], out[b, n]  # (k,)
            largest = gate_logits[0]
            for k in range(1, gate_logits.shape[0]):
                largest = max(largest, gate_logits[k])
            for k in range(gate_logits.shape[0]):
                target[k] = gate_logits[k] - largest

    # all exponentials in one loop, of which the compiler makes vectors
    _exp(out.reshape(out.size))

    # divided by their sum
    for b in range(out.shape[0]):
        for n in range(out.shape[1]):
            target = out[b, n]  # (k,)
            total = target[0]
            for k in range(1, target.shape[0]):
                total += target[k]
            for k in range(target.shape[0]):
                target[k] /= total


@exact_kernel
def _exp(values: np.ndarray) -> None:
    """The exponentials of float32 numbers (M,) of at most 0, in place.

    They are right to 2 units in the last place, and 0 below exp(-87). ``np.exp`` would be a call
    for each number. With x = n log 2 + r, exp(x) is 2^n exp(r), and the polynomial for exp(r) is
    that of Cephes' expf.
    """
    for i in range(values.shape[0]):
        x = values[i]

        # the whole number n, which also stands in the last bits of rounded
        rounded = np.float32(x * ONE_BY_LOG2 + ROUNDER)
        n = rounded - ROUNDER
        r = x - n * LOG2_SHORT + n * LOG2_EXCESS

        # exp(r)
        y = np.float32(1.9875691500e-4)
        y = y * r + np.float32(1.3981999507e-3)
        y = y * r + np.float32(8.3334519073e-3)
        y = y * r + np.float32(4.1665795894e-2)
        y = y * r + np.float32(1.6666665459e-1)
        y = y * r + np.float32(5.0000001201e-1)
        y = y * (r * r) + r + np.float32(1)

        # 2^n: n goes from the last bits to the exponent's
        exponent = np.int64(rounded.view(np.int32)) + EXPONENT_BIAS
        power = np.int32(exponent << MANTISSA_BITS).view(np.float32)
        values[i] = np.float32(0) if x < LOWEST else y * power


@exact_kernel
def _softmax_backward(weights: np.ndarray, grad: np.ndarray, d_logits: np.ndarray) -> None:
    """Write the gradient of a softmax, whose result is weights; all (B, n, k)."""
    for b in range(weights.shape[0]):
        for n in range(weights.shape[1]):
            gate_weights, d_weights = weights[b, n], grad[b, n]  # (k,)
            target = d_logits[b, n]  # (k,)
            mean = gate_weights[0] * d_weights[0]
            for k in range(1, gate_weights.shape[0]):
                mean += gate_weights[k] * d_weights[k]
            for k in range(gate_weights.shape[0]):
                target[k] = gate_weights[k] * (d_weights[k] - mean)


def softmax_forward(logits: Tensor) -> Tensor:
    """The softmax of logits (B, n, k) that a kernel may serve, in the faster way; no gradient."""
    if not _is_small(logits):
        return plain_softmax(logits)
    weights = torch.empty_like(logits, memory_format=torch.contiguous_format)
    _softmax(logits.numpy(), weights.numpy())
    return weights


def softmax_backward(weights: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    """Write the gradient of a softmax, whose result is weights, into out; all (B, n, k).

    Weights and gradient are such that a kernel may serve; out need not be contiguous.
    """
    _softmax_backward(weights.numpy(), grad.contiguous().numpy(), out.numpy())
    return out


def _is_small(logits: Tensor) -> bool:
    """Whether the kernel is the faster way; its exponentials are those of float32."""
    return logits.dtype == torch.float32 and 0 < logits.shape[-1] < FEW_EXPERTS


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        weights = softmax_forward(logits)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        return softmax_backward(weights, grad, torch.empty_like(weights))


def softmax(logits: Tensor) -> Tensor:
    """The softmax of a gate's logits (B, n, k) over k, in float32 or wider."""
    if use_kernel(logits) and _is_small(logits):
        return _Softmax.apply(logits)
    return plain_softmax(logits)
