"""Bags of weighted ids: gathered, summed and summed back by id, to the last digit as in the plain
form.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlkit.ops._dispatch import plain_operations, use_kernel
from mtlkit.ops.bags import (
    Bags,
    plain_sum_bags,
    plain_take_bags,
    sum_bags,
    take_bags,
    take_few_rows,
)
from tests.ops.compare import compare

LENGTHS = st.lists(st.integers(0, 6) | st.just(90), max_size=12)  # of bags, none or one huge


def draw_bags(lengths, table_rows, dtype, seed, shared=False):
    """Bags of these lengths: ids in any order, often several times, some of weight 0."""
    random = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    total = int(offsets[-1])
    values = (table_rows * torch.rand(total, generator=random) ** 3).int()
    values[-1:] = table_rows - 1
    weights = torch.randn(total, generator=random, dtype=dtype)
    weights[torch.rand(total, generator=random) < 0.2] = 0
    row = None
    if shared and lengths:  # some bags in several rows, some in none
        row = torch.randint(len(lengths), (2 * len(lengths),), generator=random).int()
    return Bags(offsets, values, weights, row)


def naive_sums(table, bags):
    """Bag by bag, and number by number, in double precision."""
    sums = [torch.zeros(table.shape[1:], dtype=torch.float64)] * (len(bags.offsets) - 1)
    for k in range(len(sums)):
        for i in range(bags.offsets[k], bags.offsets[k + 1]):
            sums[k] = sums[k] + bags.weights[i].double() * table[bags.values[i].item()].double()
    if bags.row is not None:
        sums = [sums[k] for k in bags.row.tolist()]
    return torch.stack(sums) if sums else torch.zeros(0, *table.shape[1:], dtype=torch.float64)


def sums_and_gradient(function, table, bags, sparse):
    """The sums, and the gradient by the table for some gradient of the sums, asked for twice."""
    leaf = table.clone().requires_grad_()
    sums = function(leaf, bags, sparse)
    upstream = torch.randn(sums.shape, generator=torch.Generator().manual_seed(1)).to(sums)
    torch.autograd.grad(sums, leaf, 2 * upstream, retain_graph=True)
    (gradient,) = torch.autograd.grad(sums, leaf, upstream)
    return sums.detach(), gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(
    lengths=LENGTHS,
    shape=st.sampled_from([(1,), (5,), (8,), (16,), (24,), (3, 8), (43,)]),
    table_rows=st.sampled_from([1, 7, 64, 65, 20_000]),
    sparse=st.booleans(),
    shared=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_sums_of_bags(dtype, lengths, shape, table_rows, sparse, shared, seed):
    bags = draw_bags(lengths, table_rows, dtype, seed, shared)
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(table_rows, *shape, generator=generator, dtype=dtype)
    assert use_kernel(table, bags.weights)
    sums, gradient = sums_and_gradient(sum_bags, table, bags, sparse)
    plain_sums, plain_gradient = sums_and_gradient(plain_sum_bags, table, bags, sparse)
    exact = naive_sums(table, bags)
    torch.testing.assert_close(sums, exact.to(dtype), rtol=1e-4, atol=1e-4)
    assert torch.equal(sums, plain_sums)

    # rows that occur, each once, where the gradient is sparse
    assert gradient.is_sparse == plain_gradient.is_sparse == sparse
    if sparse:
        assert gradient.is_coalesced()
        assert gradient.indices()[0].tolist() == sorted(set(bags.values.tolist()))
        gradient, plain_gradient = gradient.to_dense(), plain_gradient.to_dense()
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-4, atol=1e-4)
    if not shared and not sparse:
        assert torch.equal(gradient, plain_gradient)


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_are_those_of_finite_differences(shared):
    bags = draw_bags([2, 0, 5], 4, torch.float64, 3, shared)
    table = torch.randn(4, 2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda table: sum_bags(table, bags), table)


@given(lengths=LENGTHS, rows=st.lists(st.integers(0, 11), max_size=20), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_bags_of_some_rows(lengths, rows, seed):
    bags = draw_bags(lengths, 9, torch.float32, seed)
    rows = [row for row in rows if row < len(lengths)]
    numbers = torch.tensor(rows, dtype=torch.int64)
    features = {"one": bags, "other": bags}
    taken = take_bags(features, numbers)["other"]
    for row, start, stop in zip(rows, taken.offsets[:-1], taken.offsets[1:], strict=True):
        own = slice(bags.offsets[row], bags.offsets[row + 1])
        assert torch.equal(taken.values[start:stop], bags.values[own])
        assert torch.equal(taken.weights[start:stop], bags.weights[own])
    with plain_operations():
        chosen = take_bags(features, numbers)["other"]
    by_plain = plain_take_bags(features, numbers)["other"]
    for compiled, plain, other in zip(taken[:3], by_plain[:3], chosen[:3], strict=True):
        assert torch.equal(compiled, plain)
        assert torch.equal(compiled, other)
        assert compiled.dtype == plain.dtype


@given(
    lengths=LENGTHS,
    rows=st.lists(st.integers(0, 11), max_size=20),
    left=st.integers(0, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_bags_of_some_rows_in_more_room_than_they_need(lengths, rows, left, seed):
    bags = draw_bags(lengths, 9, torch.float32, seed)
    numbers = torch.tensor([row for row in rows if row < len(lengths)], dtype=torch.int64)
    exact = take_bags({"one": bags}, numbers)["one"]
    count = len(exact.values)
    room = count + left if len(bags.values) and len(numbers) else count
    taken = take_bags({"one": bags}, numbers, {"one": room})["one"]

    # The same ids come first. Those that fill the room occur as well, and have no weight.
    assert len(taken.values) == len(taken.weights) == taken.offsets[-1] == room
    assert torch.equal(taken.offsets[:-1], exact.offsets[:-1])
    assert torch.equal(taken.values[:count], exact.values)
    assert torch.equal(taken.weights[:count], exact.weights)
    assert not taken.weights[count:].any()
    if count:
        assert set(taken.values.tolist()) == set(exact.values.tolist())
    table = torch.randn(9, 3)
    assert torch.equal(plain_sum_bags(table, taken), plain_sum_bags(table, exact))


def test_no_features_have_no_bags():
    assert take_bags({}, torch.tensor([0])) == {}


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_few_rows_are_taken_as_by_index_select(dtype, kind):
    table, rows = torch.randn(7, 2, 5, dtype=dtype), torch.tensor([3, 0, 3, 6, 3]).to(kind)
    compare(
        lambda table: take_few_rows(table, rows),
        lambda table: table.index_select(0, rows),
        lambda table: table[rows.long()],
        [table],
        strange_gradient=True,
    )


@pytest.mark.parametrize("strange", [3, -1])
def test_an_id_that_is_no_row_is_refused(strange):
    bags = Bags(torch.tensor([0, 2]), torch.tensor([0, strange]).int(), torch.ones(2))
    with pytest.raises(IndexError, match="beyond the 3 rows"):
        sum_bags(torch.randn(3, 4), bags)
    with plain_operations(), pytest.raises((IndexError, RuntimeError)):
        sum_bags(torch.randn(3, 4), bags)
