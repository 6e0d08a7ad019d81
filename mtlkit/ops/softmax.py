"""The softmax of a gate: many rows of few numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtlkit.ops._numba import exact_kernel

SMALL = 16  # experts of a gate from which on torch's softmax is the faster one


@exact_kernel
def _softmax(logits: np.ndarray, out: np.ndarray) -> None:
    """The softmax of logits (B, n, k) over k, in float32."""
    for b in range(out.shape[0]):
        for n in range(out.shape[1]):
            row, target = logits[b, n], out[b, n]
            largest = row[0]
            for k in range(1, row.shape[0]):
                largest = max(largest, row[k])
            for k in range(row.shape[0]):
                target[k] = row[k] - largest
    _exp(out.reshape(out.size))
    for b in range(out.shape[0]):
        for n in range(out.shape[1]):
            target = out[b, n]
            total = target[0]
            for k in range(1, target.shape[0]):
                total += target[k]
            for k in range(target.shape[0]):
                target[k] /= total


@exact_kernel
def _exp(values: np.ndarray) -> None:
    """The exponentials of float32 numbers (M,) of at most 0, in place, to 2 units in the last
    place; 0 below exp(-87).

    Not ``np.exp``, which is a call for each number. With x = n log 2 + r this is 2^n exp(r), and
    the polynomial for exp(r) is that of Cephes' expf. 1.5 * 2^23 is so large that adding it rounds
    to whole numbers: n stands in the last bits of the sum, from where it goes to the exponent's.
    """
    for i in range(values.shape[0]):
        x = values[i]
        moved = np.float32(x * np.float32(1.44269504) + np.float32(12582912))
        n = moved - np.float32(12582912)
        r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
        y = np.float32(1.9875691500e-4)
        y = y * r + np.float32(1.3981999507e-3)
        y = y * r + np.float32(8.3334519073e-3)
        y = y * r + np.float32(4.1665795894e-2)
        y = y * r + np.float32(1.6666665459e-1)
        y = y * r + np.float32(5.0000001201e-1)
        y = y * (r * r) + r + np.float32(1)
        power = np.int32((np.int64(moved.view(np.int32)) + 127) << 23).view(np.float32)
        values[i] = np.float32(0) if x < np.float32(-87) else y * power


@exact_kernel
def _softmax_backward(weights: np.ndarray, grad: np.ndarray, d_logits: np.ndarray) -> None:
    """The gradient of ``_softmax``, whose result is weights; all (B, n, k)."""
    for b in range(weights.shape[0]):
        for n in range(weights.shape[1]):
            row, g, target = weights[b, n], grad[b, n], d_logits[b, n]
            mean = row[0] * g[0]
            for k in range(1, row.shape[0]):
                mean += row[k] * g[k]
            for k in range(row.shape[0]):
                target[k] = row[k] * (g[k] - mean)


def softmax_forward(logits: Tensor) -> Tensor:
    """The softmax of logits (B, n, k) over k, on the CPU; in whichever way is the faster one."""
    if logits.dtype != torch.float32 or logits.shape[-1] >= SMALL:
        return logits.softmax(-1)
    weights = torch.empty_like(logits, memory_format=torch.contiguous_format)
    _softmax(logits.numpy(), weights.numpy())
    return weights


def softmax_backward(weights: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    """Write the gradient of a softmax, whose result is weights, into a tensor that need not be
    contiguous.
    """
    _softmax_backward(weights.numpy(), grad.contiguous().numpy(), out.numpy())
    return out


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
    compiled = (
        logits.device.type == "cpu"
        and logits.dtype == torch.float32
        and 0 < logits.shape[-1] < SMALL
    )
    if compiled and not torch.compiler.is_compiling():
        return _Softmax.apply(logits)
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
