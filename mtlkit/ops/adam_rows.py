"""Adam (arXiv:1412.6980) on some rows of a table.

``mean += (1 - beta_1) * (grad - mean)``, ``square += (1 - beta_2) * (grad^2 - square)`` and
``row -= rate * mean / (sqrt(correction * square) + eps)``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtlkit.ops._dispatch import use_kernel
from mtlkit.ops._numba import exact_kernel
from mtlkit.ops._simd import prefetch

AHEAD = 16  # rows between asking the memory for one and moving it, as a trip there takes long
CACHE_LINE = 64  # bytes that come at a time


class AdamStep(NamedTuple):
    """The coefficients of a step; those that change are scalars on a GPU."""

    mean_rate: float  # ``1 - beta_1``
    square_rate: float  # ``1 - beta_2``
    correction: Any  # of the squares' bias, ``1 / (1 - beta_2 ** steps)``
    rate: Any  # the learning rate, with the correction of the means' bias
    eps: float  # added to the root of the squares


def plain_adam_rows(
    table: Tensor, moments: Tensor, rows: Tensor, grad: Tensor, step: AdamStep
) -> None:
    """:func:`adam_rows` in PyTorch's own operations, for rows as ``take_rows.summed_rows`` gives
    them.
    """
    # where a row stands several times, all get the gradient of the first, and write the same
    grad = grad.index_select(0, torch.searchsorted(rows, rows))
    mean, square = moments.index_select(0, rows).unbind(1)
    mean = mean.lerp(grad, step.mean_rate)
    square = square.lerp(grad.square(), step.square_rate)
    moments.index_copy_(0, rows, torch.stack([mean, square], 1))
    root = square.mul_(step.correction).sqrt_().add_(step.eps)
    moved = table.index_select(0, rows).sub_(mean.div_(root).mul_(step.rate))
    table.index_copy_(0, rows, moved)


@exact_kernel
def _adam_rows(
    table: np.ndarray, moments: np.ndarray, rows: np.ndarray, grad: np.ndarray, step: AdamStep
) -> None:
    """Move the rows in one pass.

    Args:
        table: (V, W).
        moments: (V, 2, W).
        rows: (U,).
        grad: (U, W).
        step: Coefficients of the table's type.
    """
    for u in range(rows.shape[0]):
        # ask the memory for a later row
        if u + AHEAD < rows.shape[0]:
            later = rows[u + AHEAD]
            for w in range(0, grad.shape[1], CACHE_LINE // table.itemsize):
                prefetch(table[later], w)
                prefetch(moments[later, 0], w)
                prefetch(moments[later, 1], w)

        # move this one
        row, row_grad = table[rows[u]], grad[u]  # (W,)
        means, squares = moments[rows[u], 0], moments[rows[u], 1]  # (W,)
        for w in range(row_grad.shape[0]):
            value, mean, square = row_grad[w], means[w], squares[w]
            mean += step.mean_rate * (value - mean)
            square += step.square_rate * (value * value - square)
            means[w], squares[w] = mean, square
            row[w] -= step.rate * mean / (np.sqrt(square * step.correction) + step.eps)


def adam_rows(table: Tensor, moments: Tensor, rows: Tensor, grad: Tensor, step: AdamStep) -> None:
    """Move some rows of a table, and their moments, in place.

    Args:
        table: (V, ...) contiguous.
        moments: (V, 2, ...) contiguous, the running mean of a row's gradients and of their squares
            side by side: one trip to memory.
        rows: (U,) int64, sorted, none of them twice.
        grad: (U, ...) of these rows.
        step: The coefficients.
    """
    table, grad = table.detach(), grad.detach()
    if not use_kernel(table, moments, grad):
        plain_adam_rows(table, moments, rows, grad, step)
        return
    number = grad.numpy().dtype.type
    _adam_rows(
        table.flatten(1).numpy(),
        moments.flatten(2).numpy(),
        rows.numpy(),
        grad.flatten(1).contiguous().numpy(),
        AdamStep(*map(number, step)),
    )
