"""Some rows of large tables: their gradients, and Adam on them."""

import pytest
import torch

from mtlkit.ops.adam_rows import AdamStep, adam_rows, plain_adam_rows
from mtlkit.ops.sum_rows import RowIndex
from mtlkit.ops.take_rows import CompiledGroups, place_rows, sums_in_place


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("table_rows", "count", "width"),
    [(9, 4, 3), (5000, 700, 16), (5_000_000, 3000, 3), (3, 50, 17), (7, 1, 8), (7, 0, 16)],
)
def test_groups_of_equal_rows(dtype, table_rows, count, width, id_dtype):
    numbers = (table_rows * torch.rand(count) ** 3).to(id_dtype)  # some many times
    numbers[-1:] = table_rows - 1
    grad = torch.randn(width, count, dtype=dtype).T
    groups = CompiledGroups(numbers, table_rows)
    assert groups.rows.dtype == torch.int64
    assert groups.rows.tolist() == sorted(set(numbers.tolist()))
    assert groups.rows[groups.group.long()].tolist() == numbers.tolist()
    sums = [grad.double()[numbers == row].sum(0) for row in groups.rows]
    exact = torch.stack(sums).to(dtype) if sums else grad.new_zeros(0, width)
    torch.testing.assert_close(groups.sum(grad), exact, rtol=1e-5, atol=1e-5)

    # and in tensors of as many rows as there are numbers
    rows, in_place = sums_in_place(numbers.long(), grad)
    is_first = rows.diff(prepend=torch.tensor([-1])) != 0
    assert rows.tolist() == sorted(numbers.tolist())
    torch.testing.assert_close(in_place[is_first], exact, rtol=1e-5, atol=1e-5)
    assert not in_place[~is_first].any()


@pytest.mark.parametrize("shape", [(40, 2, 5), (40, 37)])
def test_adam_on_some_rows(dtype, shape):
    table, moments = torch.randn(shape, dtype=dtype), torch.rand(40, 2, *shape[1:], dtype=dtype)
    rows = torch.randperm(40)[:30].sort().values
    grad = torch.randn(30, *shape[1:], dtype=dtype)
    # of equal rows the first has the gradient
    repeated, in_place = sums_in_place(torch.cat([rows, rows[:9]]), torch.cat([grad, 0 * grad[:9]]))
    step = AdamStep(mean_rate=0.1, square_rate=0.001, correction=3.0, rate=0.2, eps=1e-3)

    results = []
    for form, taken, values in (
        (adam_rows, rows, grad),
        (plain_adam_rows, rows, grad),
        (plain_adam_rows, repeated, in_place),
    ):
        moved, with_moments = table.clone(), moments.clone()
        form(moved, with_moments, taken, values, step)
        results.append([moved, with_moments])

    # in double precision
    mean, square = moments.double()[rows].unbind(1)
    mean = 0.9 * mean + 0.1 * grad.double()
    square = 0.999 * square + 0.001 * grad.double() ** 2
    exact, exact_moments = table.double(), moments.double()
    exact[rows] -= 0.2 * mean / ((3 * square).sqrt() + 1e-3)
    exact_moments[rows] = torch.stack([mean, square], 1)
    for moved, with_moments in results:
        torch.testing.assert_close(moved, exact.to(dtype))
        torch.testing.assert_close(with_moments, exact_moments.to(dtype))


@pytest.mark.parametrize("rows", [1, 50])
@pytest.mark.parametrize("widths", [(16,), (8, 3), (20, 33, 1)], ids=str)
def test_rows_are_placed_side_by_side(dtype, widths, rows):
    tables = [torch.randn(40, width, dtype=dtype, requires_grad=True) for width in widths]
    indices = [RowIndex(torch.randint(40, (rows, 3), dtype=torch.int32), 40) for _ in widths]
    others = [torch.randn(rows, 2, dtype=dtype), torch.randn(2 * rows, 5, dtype=dtype)[::2]]
    taken = [
        table[index.ids.long()].flatten(1) for table, index in zip(tables, indices, strict=True)
    ]
    for more in ([], others):
        placed = place_rows(tables, indices, more)
        assert torch.equal(placed, torch.cat([*taken, *more], 1))
        assert not placed.requires_grad
    indices[-1].ids[0, 1] = 40
    with pytest.raises(IndexError, match="beyond the 40 rows"):
        place_rows(tables, [RowIndex(index.ids, 40) for index in indices], others)
