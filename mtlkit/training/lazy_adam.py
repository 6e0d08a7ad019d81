"""Adam on the rows of large embedding tables that a batch holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlkit.ops import take_rows
from mtlkit.ops._numba import exact_kernel
from mtlkit.ops._simd import prefetch

AHEAD = 16  # rows between asking for one and moving it: they lie anywhere in memory, and a trip there takes long
LINE = 64  # bytes that come at a time


@exact_kernel
def _move_rows(
    table: np.ndarray,
    moments: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
    numbers: tuple[float, float, float, float, float],
) -> None:
    """Adam on some rows in one pass; table (V, W), moments (V, 2, W), rows (U,), values (U, W)."""
    rest_first, rest_second, scale, rate, eps = numbers
    for u in range(rows.shape[0]):
        if u + AHEAD < rows.shape[0]:
            later = rows[u + AHEAD]
            for w in range(0, values.shape[1], LINE // table.itemsize):
                prefetch(table[later], w)
                prefetch(moments[later, 0], w)
                prefetch(moments[later, 1], w)
        row, own = table[rows[u]], values[u]
        means, squares = moments[rows[u], 0], moments[rows[u], 1]
        for w in range(own.shape[0]):
            grad, mean, square = own[w], means[w], squares[w]
            mean += rest_first * (grad - mean)
            square += rest_second * (grad * grad - square)
            means[w], squares[w] = mean, square
            row[w] -= rate * mean / (np.sqrt(square * scale) + eps)


class LazyAdam(torch.optim.Optimizer):
    """Adam (arXiv:1412.6980) on the rows that a row-sparse gradient holds.

    A row that every step holds moves as under plain Adam. Bias is corrected by the steps of the
    table, not of the row. ``torch.optim.SparseAdam`` adds its epsilon before that correction, which
    shortens the first steps of rows with small gradients several times.

    Args:
        groups: Parameter groups with their learning rate.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"betas": (0.9, 0.999), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move the rows of all gradients; a closure is not called."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._move(table, group)

    def _move(self, table: Tensor, group: dict[str, Any]) -> None:
        assert table.grad is not None
        grad = table.grad.coalesce()
        rows, values = grad.indices()[0], grad.values()
        state = self.state[table]
        if not state:  # a row's moments lie side by side: one trip to memory
            state |= {"step": 0, "moments": table.new_zeros(len(table), 2, *table.shape[1:])}
        state["step"] += 1
        (first, second), count, moments = group["betas"], state["step"], state["moments"]
        scale, rate = 1 / (1 - second**count), group["lr"] / (1 - first**count)
        if take_rows.has_kernels(table):
            numbers = tuple(
                map(values.numpy().dtype.type, (1 - first, 1 - second, scale, rate, group["eps"]))
            )
            own, state_rows = table.detach().flatten(1), moments.flatten(2)
            flat = values.flatten(1).contiguous()
            _move_rows(own.numpy(), state_rows.numpy(), rows.numpy(), flat.numpy(), numbers)
            return
        mean, square = moments.index_select(0, rows).unbind(1)
        mean = mean.lerp(values, 1 - first)
        square = square.lerp(values.square(), 1 - second)
        moments.index_copy_(0, rows, torch.stack([mean, square], 1))
        root = square.mul_(scale).sqrt_().add_(group["eps"])
        table.index_add_(0, rows, mean.div_(root), alpha=-rate)
