"""A linear layer on embeddings, folded into their table, and the sums of its rows."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from mtlkit.ops._dispatch import plain_operations
from mtlkit.ops.folded_linear import (
    add_fold_weight_gradients,
    fold,
    plain_fold,
    plain_fold_weight_gradients,
)
from mtlkit.ops.sum_rows import RowIndex, plain_sum_rows, sum_rows
from tests.ops.compare import assert_close, compare

FIELD = torch.tensor([0, 0, 1, 2, 2], dtype=torch.int32)


@pytest.mark.parametrize("strange_gradient", [False, True])
@pytest.mark.parametrize(
    ("width", "outputs", "vocabularies"),
    [(1, 3, (4,)), (8, 33, (3, 9, 2)), (5, 2, (6, 1, 1, 7)), (4, 80, (20, 30))],
)
def test_folded_and_summed_is_linear(dtype, width, outputs, vocabularies, strange_gradient):
    rows = 50
    starts = torch.tensor([0, *vocabularies[:-1]]).cumsum(0)
    ids = torch.stack([torch.randint(v, (rows,)) for v in vocabularies], -1).int() + starts.int()
    fields = torch.arange(len(vocabularies))
    field = torch.repeat_interleave(fields, torch.tensor(vocabularies)).int()
    table = torch.randn(sum(vocabularies), width, dtype=dtype)
    weight = torch.randn(outputs, width * len(vocabularies) + 3, dtype=dtype)

    # a slice of a wider layer, as in models
    def operation(table, weight):
        folded, _ = fold(table, weight[:, 1:-2], None, field)
        return sum_rows(folded, RowIndex(ids, len(table)))

    def plain(table, weight):
        return plain_sum_rows(plain_fold(table, weight[:, 1:-2], None, field), ids)

    def formula(table, weight):
        return F.linear(table[ids.long()].flatten(1), weight[:, 1:-2])

    compare(operation, plain, formula, [table, weight], strange_gradient)


@pytest.mark.parametrize("outputs", [4, 16, 37])
def test_weight_gradients_of_a_folded_layer(dtype, outputs):
    table, weight, bias = (
        torch.randn(*shape, dtype=dtype) for shape in ((5, 3), (outputs, 9), (2, outputs))
    )
    weight.requires_grad_()
    bias.requires_grad_()
    by_formula = (
        torch.einsum("vd,ovd->vo", table, weight.view(outputs, 3, 3)[:, FIELD.long()])
        + bias[0] * (FIELD == 0)[:, None]
        + bias[1] * (FIELD == 1)[:, None]  # the first two fields have one
    )
    folded, _ = fold(table, weight, bias, FIELD)
    torch.testing.assert_close(folded, by_formula)
    torch.testing.assert_close(folded, plain_fold(table, weight, bias, FIELD))
    grad = torch.randn(outputs, 5, dtype=dtype).T
    expected = torch.autograd.grad(by_formula, [weight, bias], grad)
    torch.testing.assert_close(torch.autograd.grad(folded, [weight, bias], grad), expected)

    out = torch.ones(9, outputs, dtype=dtype)  # which is added to
    by_bias = add_fold_weight_gradients(table, FIELD, grad, out, biases=2)
    torch.testing.assert_close((out.T - 1, by_bias), expected)
    plain_weight, plain_bias = plain_fold_weight_gradients(table, FIELD, grad, 3, 2)
    assert_close([plain_weight.T, plain_bias], expected)
    with plain_operations():
        again = torch.ones(9, outputs, dtype=dtype)
        bias_again = add_fold_weight_gradients(table, FIELD, grad, again, biases=2)
        assert torch.equal(bias_again, plain_bias)
    assert torch.equal(again, plain_weight + 1)


@pytest.mark.parametrize("plain", [False, True])
def test_a_folded_layer_with_a_bias(dtype, plain):
    """The bias is added once a row, and either half of the gradients can be had alone."""
    field = torch.tensor([0, 0, 1, 1, 1], dtype=torch.int32)
    ids = torch.tensor([[0, 2], [1, 4], [1, 2]], dtype=torch.int32)
    table, weight, bias = (
        torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((5, 3), (4, 6), (1, 4))
    )
    by_formula = F.linear(table[ids.long()].flatten(1), weight, bias[0])
    upstream = torch.randn_like(by_formula)
    expected = torch.autograd.grad(by_formula, [table, weight, bias], upstream)

    with plain_operations() if plain else nullcontext():
        folded, of_table = fold(table, weight, bias, field)
        out = sum_rows(folded, RowIndex(ids, 5))
        torch.testing.assert_close(out, by_formula)
        *by_layer, at_table = torch.autograd.grad(
            out, [weight, bias, of_table], upstream, retain_graph=True
        )
        (by_table,) = torch.autograd.grad(of_table, [table], at_table)
    for one, other in zip((by_table, *by_layer), expected, strict=True):
        torch.testing.assert_close(one, other)
