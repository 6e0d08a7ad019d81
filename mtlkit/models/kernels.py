"""Compiled CPU kernels, and the autograd functions around them. Each one has a plain PyTorch form in the tests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtlkit.models.lanes import LANES, fma, load, store, total, zeros

kernel = numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})

# "reassoc" would strike out a number that is added and subtracted again; where a division by 0 gives inf, as here, it
# does not keep a loop from being vectorised
exact_kernel = numba.njit(nogil=True, cache=True, fastmath={"contract", "nsz"}, error_model="numpy")

CHUNK = 16 * LANES
SMALL = 16  # experts of a gate from which on torch's softmax is the faster one


# Rows are taken out of the inner loops: only then does the compiler see that they do not overlap, and vectorise. The
# first numbers of a row are taken 16 at a time, the rest of it one by one.


@kernel
def _mix(weights: np.ndarray, experts: np.ndarray, reach: np.ndarray, out: np.ndarray) -> None:
    """``out[b, n] = weights[b, n] @ experts[b, reach[n]]``; weights (B, n, k), experts (B, E, d), out (B, n, d)."""
    width = out.shape[2]
    whole = width - width % LANES
    for b in range(out.shape[0]):
        for n in range(out.shape[1]):
            target = out[b, n]
            for i in range(0, whole, LANES):
                mixed = zeros(target)
                for k in range(reach.shape[1]):
                    mixed = fma(weights[b, n, k], load(experts[b, reach[n, k]], i), mixed)
                store(target, i, mixed)
            for i in range(whole, width):
                rest = total(zeros(target))
                for k in range(reach.shape[1]):
                    rest += weights[b, n, k] * experts[b, reach[n, k], i]
                target[i] = rest


@kernel
def _mix_gradients(
    weights: np.ndarray,
    experts: np.ndarray,
    reach: np.ndarray,
    grad: np.ndarray,
    d_weights: np.ndarray,
    d_experts: np.ndarray,
) -> None:
    """The gradients of ``_mix``; d_experts is (n, B, E, d) of each mixture apart, or (1, B, E, d) of all."""
    width = grad.shape[2]
    whole = width - width % LANES
    apart = d_experts.shape[0] > 1
    for b in range(grad.shape[0]):
        d_experts[:, b] = 0
        for n in range(grad.shape[1]):
            g, d_own = grad[b, n], d_experts[n if apart else 0, b]
            for k in range(reach.shape[1]):
                value, row, d_row = weights[b, n, k], experts[b, reach[n, k]], d_own[reach[n, k]]
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
    def forward(ctx: Any, weights: Tensor, experts: Tensor, reach: np.ndarray) -> Tensor:
        weights, experts = weights.contiguous(), experts.contiguous()
        ctx.save_for_backward(weights, experts)
        ctx.reach = reach
        out = experts.new_empty(*weights.shape[:2], experts.shape[2])
        _mix(weights.numpy(), experts.numpy(), reach, out.numpy())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, experts = ctx.saved_tensors
        d_weights, d_experts = _compiled_gradients(weights, experts, ctx.reach, grad, 1)
        return d_weights, d_experts[0], None


def _compiled_gradients(
    weights: Tensor, experts: Tensor, reach: np.ndarray, grad: Tensor, parts: int
) -> tuple[Tensor, Tensor]:
    """By weights and experts, the latter (parts, B, E, d)."""
    d_weights, d_experts = torch.empty_like(weights), experts.new_empty(parts, *experts.shape)
    grad = grad.contiguous()
    _mix_gradients(weights.numpy(), experts.numpy(), reach, grad.numpy(), d_weights.numpy(), d_experts.numpy())
    return d_weights, d_experts


def mix_shared(weights: Tensor, experts: Tensor, reach: Tensor | None = None) -> Tensor:
    """Mixtures of experts, on the CPU, without a (B, n, k, d) product in between.

    Args:
        weights: (B, n, k).
        experts: (B, E, d).
        reach: (n, k) int64, the experts that each mixture sees; None where every one sees all, k = E.

    Returns:
        (B, n, d), equal to ``weights @ experts`` where every mixture sees all.
    """
    return _Mix.apply(weights, experts, reach_array(weights.shape[1], experts.shape[1], reach))


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
    if experts.device.type == "cpu" and weights.dtype == experts.dtype == grad.dtype:
        known = reach_array(weights.shape[1], experts.shape[1], reach)
        d_weights, d_experts = _compiled_gradients(
            weights.contiguous(), experts.contiguous(), known, grad, grad.shape[1]
        )
        return d_experts, d_weights
    own = experts[:, None] if reach is None else experts.index_select(1, reach.flatten()).unflatten(1, reach.shape)
    found = (weights[..., None].to(grad.dtype) * grad[:, :, None]).transpose(0, 1).to(experts.dtype)  # (n, B, k, d)
    if reach is not None:
        spread = experts.new_zeros(grad.shape[1], *experts.shape)
        found = spread.scatter_(2, reach[:, None, :, None].expand_as(found), found)
    return found, (grad[:, :, None] * own).sum(-1).to(weights.dtype)


@kernel
def _inner_product(one: np.ndarray, other: np.ndarray) -> float:
    """Of two matrices with contiguous rows: sums of up to ``CHUNK`` products, summed in double precision."""
    found, width = 0.0, one.shape[1]
    whole = width - width % LANES
    for i in range(one.shape[0]):
        row, column = one[i], other[i]
        for start in range(0, whole, CHUNK):
            products = zeros(row)
            for j in range(start, min(start + CHUNK, whole), LANES):
                products = fma(load(row, j), load(column, j), products)
            found += total(products)
        for j in range(whole, width):
            found += np.float64(row[j]) * np.float64(column[j])
    return found


def inner_products(values: Sequence[Tensor]) -> Tensor:
    """(T, T) float64 inner products of T tensors of one shape."""
    first = values[0]
    if first.numel() == 0:
        return first.new_zeros(len(values), len(values), dtype=torch.float64)
    if first.device.type != "cpu" or first.dtype not in {torch.float32, torch.float64}:
        rows = torch.stack([value.detach().flatten() for value in values]).double()
        return rows @ rows.T
    # in the order of memory, and as few rows as it takes
    order = sorted(range(first.dim()), key=first.stride, reverse=True)
    matrix = first.shape[order[0]] if order else 1, -1
    arrays = [value.detach().permute(order).reshape(matrix).numpy() for value in values]
    arrays = [a if a.strides[1] == a.itemsize else np.ascontiguousarray(a) for a in arrays]
    found = np.empty((len(values), len(values)))
    for t in range(len(values)):
        for s in range(t + 1):
            found[t, s] = found[s, t] = _inner_product(arrays[t], arrays[s])
    return torch.from_numpy(found)


@kernel
def _mixture_gram(weights: np.ndarray, grad: np.ndarray, out: np.ndarray) -> None:
    """``out[s, t] = sum over b of (weights[b, s] @ weights[b, t]) * (grad[b, s] @ grad[b, t])`` for t <= s."""
    width = grad.shape[2]
    whole = width - width % LANES
    for b in range(grad.shape[0]):
        for s in range(grad.shape[1]):
            w, g = weights[b, s], grad[b, s]
            for t in range(s + 1):
                v, h = weights[b, t], grad[b, t]
                left = w[0] * v[0]
                for k in range(1, w.shape[0]):
                    left += w[k] * v[k]
                products = zeros(g)
                for i in range(0, whole, LANES):
                    products = fma(load(g, i), load(h, i), products)
                right = total(products)
                for i in range(whole, width):
                    right += g[i] * h[i]
                out[s, t] += left * right


def mixture_gram(weights: Tensor, grad: Tensor) -> Tensor:
    """(n, n) float64 inner products of the gradients that each of n mixtures has for the experts it mixes.

    They are outer products ``weights[b, s, e] * grad[b, s]``, whose inner products need not have them formed.

    Args:
        weights: (B, n, E).
        grad: (B, n, d), of the mixtures.
    """
    weights, grad = weights.detach(), grad.detach()
    if grad.device.type == "cpu" and weights.dtype == grad.dtype and grad.dtype in {torch.float32, torch.float64}:
        out = np.zeros((grad.shape[1], grad.shape[1]))
        _mixture_gram(weights.contiguous().numpy(), grad.contiguous().numpy(), out)
        found = torch.from_numpy(out)
        return found + found.tril(-1).T
    weights, grad = weights.double(), grad.double()
    return ((weights @ weights.mT) * (grad @ grad.mT)).sum(0)


def reach_array(mixtures: int, experts: int, reach: Tensor | None) -> np.ndarray:
    """The experts (n, k) that each mixture sees, for kernels."""
    return _all(mixtures, experts) if reach is None else reach.contiguous().numpy()


@lru_cache
def _all(mixtures: int, experts: int) -> np.ndarray:
    return np.tile(np.arange(experts, dtype=np.int64), (mixtures, 1))


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
    """The exponentials of float32 numbers (M,) of at most 0, in place, to 2 units in the last place; 0 below exp(-87).

    Not ``np.exp``, which is a call for each number. With x = n log 2 + r this is 2^n exp(r), and the polynomial for
    exp(r) is that of Cephes' expf. 1.5 * 2^23 is so large that adding it rounds to whole numbers: n stands in the last
    bits of the sum, from where it goes to the exponent's.
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
    """Write the gradient of a softmax, whose result is weights, into a tensor that need not be contiguous."""
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


def softmax_small(logits: Tensor) -> Tensor:
    """The softmax of a gate's logits (B, n, k) over k, in float32 or wider."""
    compiled = logits.device.type == "cpu" and logits.dtype == torch.float32 and 0 < logits.shape[-1] < SMALL
    if compiled and not torch.compiler.is_compiling():
        return _Softmax.apply(logits)
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
