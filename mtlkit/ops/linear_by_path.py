"""Linear layers on several inputs, side by side: ``out[b, c] = weight[c] @ x[b, path of c]``.

No part is copied: each product is written where it belongs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Runs = Sequence[tuple[int, int, int]]
"""Neighbouring columns that read one path: the path, the first column, and that after the last."""


class _LinearByPath(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, runs: Runs) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.runs = runs
        out = x.new_empty(len(x), len(weight))
        for path, start, stop in runs:
            layer = weight[start:stop].t()
            torch.addmm(bias[start:stop], x[:, path], layer, out=out[:, start:stop])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        d_x, d_weight = torch.zeros_like(x), torch.empty_like(weight)
        for path, start, stop in ctx.runs:
            columns = grad[:, start:stop]
            d_x[:, path].addmm_(columns, weight[start:stop])
            torch.mm(columns.t(), x[:, path], out=d_weight[start:stop])
        return d_x, d_weight, grad.sum(0), None


def linear_by_path(x: Tensor, weight: Tensor, bias: Tensor, runs: Runs) -> Tensor:
    """Linear layers, of which each reads one path.

    Args:
        x: (B, paths, D).
        weight: (C, D) of all layers.
        bias: (C,).
        runs: Which columns read which path, in order.

    Returns:
        (B, C).
    """
    out: Tensor = _LinearByPath.apply(x, weight, bias, runs)
    return out
