"""Sums of a table's rows, and sums by id."""

from contextlib import nullcontext

import pytest
import torch

from mtlkit.ops._dispatch import plain_operations
from mtlkit.ops.sum_rows import RowIndex, plain_scatter_sum, plain_sum_rows, sum_rows
from tests.ops.compare import compare


@pytest.mark.parametrize("width", [5, 16, 64, 100, 300])
@pytest.mark.parametrize("dense_columns", [0, 3])
@pytest.mark.parametrize("rows", [0, 1, 30])
def test_sums_of_rows_and_by_id(dtype, rows, dense_columns, width):
    columns = [torch.randint(0, 3, (rows,)), torch.randint(3, 9, (rows,))]
    ids = torch.stack(columns).int().T  # not contiguous
    index = RowIndex(ids, 10)  # nothing stands in the last row
    table = torch.randn(10, width, dtype=dtype)
    weight = torch.randn(width, dense_columns, dtype=dtype)
    dense = torch.randn(dense_columns, rows, dtype=dtype).T

    compare(
        lambda table, weight: sum_rows(table, index, dense, weight),
        lambda table, weight: plain_sum_rows(table, ids, dense, weight),
        lambda table, weight: table[ids.long()].sum(1) + dense.to(table.dtype) @ weight.T,
        [table, weight],
        strange_gradient=rows > 1,
    )
    table.requires_grad_()
    without_dense = table[ids.long()].sum(1)
    torch.testing.assert_close(sum_rows(table, index), without_dense)

    grad = torch.randn(width, rows, dtype=dtype).T
    by_id = index.scatter_sum(grad)
    torch.testing.assert_close(by_id, torch.autograd.grad(without_dense, table, grad)[0])
    torch.testing.assert_close(by_id, plain_scatter_sum(ids, grad, 10))


@pytest.mark.parametrize("plain", [False, True])
def test_products_with_dense_values_are_added(dtype, plain):
    index = RowIndex(torch.tensor([[0], [2], [0]], dtype=torch.int32), 3)
    dense, rows = torch.randn(3, 2, dtype=dtype), torch.randn(3, 20, dtype=dtype)
    d_weight = torch.ones(2, 20, dtype=dtype)
    with plain_operations() if plain else nullcontext():
        by_id = index.scatter_sum(rows, dense, d_weight)
    torch.testing.assert_close(d_weight, 1 + dense.T @ rows)
    torch.testing.assert_close(by_id, torch.stack([rows[0] + rows[2], 0 * rows[1], rows[1]]))


@pytest.mark.parametrize("strange", [3, -1])
def test_an_id_that_is_no_row_is_refused(strange):
    index = RowIndex(torch.tensor([[0, 1], [2, strange]], dtype=torch.int32), 3)
    with pytest.raises(IndexError, match="beyond the 3 rows"):
        sum_rows(torch.randn(3, 4), index)
    with pytest.raises(IndexError):
        index.scatter_sum(torch.randn(2, 4))
    with plain_operations(), pytest.raises((IndexError, RuntimeError)):
        sum_rows(torch.randn(3, 4), index)
