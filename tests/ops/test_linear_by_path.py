"""Linear layers on several inputs, side by side."""

import pytest
import torch

from mtlkit.ops.linear_by_path import linear_by_path
from tests.ops.compare import assert_close, results

RUNS = ((0, 0, 3), (2, 3, 5), (0, 5, 9), (1, 9, 20))  # path 0 is read twice, path 3 never
PATHS = [path for path, start, stop in RUNS for _ in range(start, stop)]


@pytest.mark.parametrize("strange_gradient", [False, True])
@pytest.mark.parametrize("rows", [0, 2, 40])
def test_each_column_reads_its_path(dtype, rows, strange_gradient):
    torch.manual_seed(0)
    inputs = [torch.randn(size, dtype=dtype) for size in [(rows, 4, 7), (20, 7), (20,)]]
    exact = results(
        lambda x, weight, bias: (x[:, PATHS] * weight).sum(-1) + bias,
        [value.double() for value in inputs],
        strange_gradient,
    )
    by_run = results(lambda *values: linear_by_path(*values, RUNS), inputs, strange_gradient)
    assert_close(by_run, exact, check_dtype=False)
