"""Inner products of the gradients that mixtures have for the experts they mix.

Mixture n of a row b has the gradient ``outer(weights[b, n], grad[b, n])`` for the experts, (E, d).
The inner product of two of them is the product of two shorter ones, so that none need be formed:
``gramian[s, t] = sum over b of (weights[b, s] @ weights[b, t]) * (grad[b, s] @ grad[b, t])``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtlkit.ops._dispatch import use_kernel
from mtlkit.ops._numba import kernel
from mtlkit.ops._simd import LANES, fma, load, total, zeros


def plain_mixture_gramian(weights: Tensor, grad: Tensor) -> Tensor:
    """:func:`mixture_gramian` in PyTorch's own operations."""
    weights, grad = weights.detach().double(), grad.detach().double()
    return ((weights @ weights.mT) * (grad @ grad.mT)).sum(0)


@kernel
def _mixture_gramian(weights: np.ndarray, grad: np.ndarray, out: np.ndarray) -> None:
    """Add the inner products for t <= s.

    Args:
        weights: (B, n, E).
        grad: (B, n, d).
        out: (n, n).
    """
    width = grad.shape[2]
    vector_end = width - width % LANES

    for b in range(grad.shape[0]):
        for s in range(grad.shape[1]):
            weights_s, grad_s = weights[b, s], grad[b, s]
            for t in range(s + 1):
                weights_t, grad_t = weights[b, t], grad[b, t]

                # of the weights, which are few
                by_weights = weights_s[0] * weights_t[0]
                for k in range(1, weights_s.shape[0]):
                    by_weights += weights_s[k] * weights_t[k]

                # of the gradients: the full vectors, then the rest one by one
                products = zeros(grad_s)
                for i in range(0, vector_end, LANES):
                    products = fma(load(grad_s, i), load(grad_t, i), products)
                by_grad = total(products)
                for i in range(vector_end, width):
                    by_grad += grad_s[i] * grad_t[i]

                out[s, t] += by_weights * by_grad


def mixture_gramian(weights: Tensor, grad: Tensor) -> Tensor:
    """The inner products of the gradients that each of n mixtures has for the experts.

    Args:
        weights: (B, n, E) of all experts in each mixture.
        grad: (B, n, d) of the mixtures.

    Returns:
        (n, n) float64.
    """
    if not use_kernel(weights, grad):
        return plain_mixture_gramian(weights, grad)

    weights, grad = weights.detach().contiguous(), grad.detach().contiguous()
    out = np.zeros((grad.shape[1], grad.shape[1]))
    _mixture_gramian(weights.numpy(), grad.numpy(), out)
    lower = torch.from_numpy(out)
    return lower + lower.tril(-1).T
