"""Linear layers on several inputs, side by side."""

import pytest
import torch

from mtlkit.ops.linear_by_path import linear_by_path, plain_linear_by_path
from tests.ops.compare import compare

RUNS = ((0, 0, 3), (2, 3, 5), (0, 5, 9), (1, 9, 20))  # path 0 is read twice, path 3 never
PATHS = [path for path, start, stop in RUNS for _ in range(start, stop)]


@pytest.mark.parametrize("strange_gradient", [False, True])
@pytest.mark.parametrize("rows", [0, 2, 40])
def test_each_column_reads_its_path(dtype, rows, strange_gradient):
    torch.manual_seed(0)
    sizes = [(rows, 4, 7), (20, 7), (20,)]
    compare(
        lambda x, weight, bias: linear_by_path(x, weight, bias, RUNS),
        lambda x, weight, bias: plain_linear_by_path(x, weight, bias, RUNS),
        lambda x, weight, bias: (x[:, PATHS] * weight).sum(-1) + bias,
        [torch.randn(size, dtype=dtype) for size in sizes],
        strange_gradient,
    )
