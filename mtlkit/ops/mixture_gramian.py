"""Inner products of the tasks' gradients by experts that they mix, without forming the gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtlkit.ops._numba import kernel
from mtlkit.ops._simd import LANES, fma, load, total, zeros


@kernel
def _mixture_gram(weights: np.ndarray, grad: np.ndarray, out: np.ndarray) -> None:
    """``out[s, t] = sum over b of (weights[b, s] @ weights[b, t]) * (grad[b, s] @ grad[b, t])`` for
    t <= s.
    """
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


def mixture_gramian(weights: Tensor, grad: Tensor) -> Tensor:
    """(n, n) float64 inner products of the gradients that each of n mixtures has for the experts it
    mixes.

    They are outer products ``weights[b, s, e] * grad[b, s]``, whose inner products need not have
    them formed.

    Args:
        weights: (B, n, E).
        grad: (B, n, d), of the mixtures.
    """
    weights, grad = weights.detach(), grad.detach()
    if (
        grad.device.type == "cpu"
        and weights.dtype == grad.dtype
        and grad.dtype in {torch.float32, torch.float64}
    ):
        out = np.zeros((grad.shape[1], grad.shape[1]))
        _mixture_gram(weights.contiguous().numpy(), grad.contiguous().numpy(), out)
        found = torch.from_numpy(out)
        return found + found.tril(-1).T
    weights, grad = weights.double(), grad.double()
    return ((weights @ weights.mT) * (grad @ grad.mT)).sum(0)
