"""Inner products of gradients, summed in double precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtlkit.ops._numba import kernel
from mtlkit.ops._simd import LANES, fma, load, total, zeros

CHUNK = 16 * LANES


@kernel
def _inner_product(one: np.ndarray, other: np.ndarray) -> float:
    """Of two matrices with contiguous rows: sums of up to ``CHUNK`` products, summed in double
    precision.
    """
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
