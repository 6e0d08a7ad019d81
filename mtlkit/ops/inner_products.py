"""Inner products of gradients, summed in double precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtlkit.ops._dispatch import use_kernel
from mtlkit.ops._numba import kernel
from mtlkit.ops._simd import LANES, fma, load, total, zeros

CHUNK = 16 * LANES  # columns whose products are summed in the tensors' precision


def plain_inner_products(values: Sequence[Tensor]) -> Tensor:
    """:func:`inner_products` in PyTorch's own operations."""
    rows = torch.stack([value.detach().flatten() for value in values]).double()  # (T, P)
    return rows @ rows.T


@kernel
def _inner_product(one: np.ndarray, other: np.ndarray) -> float:
    """The inner product of two matrices with contiguous rows.

    Sums of up to ``CHUNK`` products are summed in double precision.
    """
    result = 0.0
    width = one.shape[1]
    vector_end = width - width % LANES

    for i in range(one.shape[0]):
        row, other_row = one[i], other[i]

        # the full vectors, chunk by chunk
        for start in range(0, vector_end, CHUNK):
            products = zeros(row)
            for j in range(start, min(start + CHUNK, vector_end), LANES):
                products = fma(load(row, j), load(other_row, j), products)
            result += total(products)

        # the rest, one by one
        for j in range(vector_end, width):
            result += np.float64(row[j]) * np.float64(other_row[j])
    return result


def _matrices(values: Sequence[Tensor]) -> list[np.ndarray]:
    """The tensors as matrices with contiguous rows, the numbers of all in the same order."""
    # in the order of memory there are few rows, and mostly nothing to copy
    first = values[0]
    order = sorted(range(first.dim()), key=first.stride, reverse=True)
    rows = first.shape[order[0]] if order else 1
    matrices = [value.detach().permute(order).reshape(rows, -1).numpy() for value in values]
    return [
        matrix if matrix.strides[1] == matrix.itemsize else np.ascontiguousarray(matrix)
        for matrix in matrices
    ]


def inner_products(values: Sequence[Tensor]) -> Tensor:
    """(T, T) float64 inner products of T tensors of one shape."""
    # numbers that are not there have no order of memory
    if values[0].numel() == 0 or not use_kernel(*values):
        return plain_inner_products(values)

    matrices = _matrices(values)
    products = np.empty((len(values), len(values)))
    for t in range(len(values)):
        for s in range(t + 1):
            products[t, s] = products[s, t] = _inner_product(matrices[t], matrices[s])
    return torch.from_numpy(products)
