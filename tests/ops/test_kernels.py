"""Each compiled kernel against its plain PyTorch form: values and all gradients."""

import pytest
import torch
import torch.nn.functional as F

from mtlkit.ops.combine_experts import combine_experts, combine_experts_vjp
from mtlkit.ops.folded_linear import add_fold_weight_gradients, fold
from mtlkit.ops.softmax import softmax
from mtlkit.ops.sum_rows import RowIndex, sum_rows

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(params=TOLERANCE, ids=str)
def dtype(request):
    torch.manual_seed(0)
    return request.param


def compare(kernel, plain, inputs, strange_gradient):
    """Equal outputs, and equal gradients of all inputs for an upstream gradient of any memory
    layout.
    """
    results = []
    for function in (kernel, plain):
        leaves = [value.clone().requires_grad_() for value in inputs]
        out = function(*leaves)
        upstream = torch.randn(
            out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1)
        )
        if strange_gradient:
            upstream = upstream.transpose(0, -1).contiguous().transpose(0, -1)
            assert not upstream.is_contiguous() or upstream.numel() < 8
        results.append([out, *torch.autograd.grad(out, leaves, upstream)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=TOLERANCE[one.dtype], atol=TOLERANCE[one.dtype])


@pytest.mark.parametrize("strange_gradient", [False, True])
@pytest.mark.parametrize(
    ("width", "outputs", "vocabularies"),
    [(1, 3, (4,)), (8, 33, (3, 9, 2)), (5, 2, (6, 1, 1, 7)), (4, 80, (20, 30))],
)
def test_embed_linear(dtype, width, outputs, vocabularies, strange_gradient):
    rows = 50
    starts = torch.tensor([0, *vocabularies[:-1]]).cumsum(0)
    ids = torch.stack([torch.randint(v, (rows,)) for v in vocabularies], -1).int() + starts.int()
    field = torch.repeat_interleave(
        torch.arange(len(vocabularies)), torch.tensor(vocabularies)
    ).int()
    table = torch.randn(sum(vocabularies), width, dtype=dtype)
    whole = torch.randn(outputs, width * len(vocabularies) + 3, dtype=dtype)
    compare(
        # a slice of a wider layer, as in models
        lambda table, whole: sum_rows(
            fold(table, whole[:, 1:-2], None, field)[0], RowIndex(ids, len(table))
        ),
        lambda table, whole: F.linear(table[ids.long()].flatten(1), whole[:, 1:-2]),
        [table, whole],
        strange_gradient,
    )


@pytest.mark.parametrize("strange_gradient", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(40, 2, 5, 16), (7, 1, 1, 3), (3, 4, 2, 1), (5, 3, 2, 37), (1, 2, 8, 48), (0, 2, 3, 16)],
)
def test_combine_experts(dtype, shape, strange_gradient):
    rows, gates, experts, width = shape
    compare(
        combine_experts,
        lambda weights, values: torch.einsum("bne,bed->bnd", weights, values),
        [
            torch.randn(rows, gates, experts, dtype=dtype),
            torch.randn(rows, experts, width, dtype=dtype),
        ],
        strange_gradient,
    )


def test_combine_experts_of_strided_inputs(dtype):
    compare(
        lambda weights, values: combine_experts(weights.transpose(1, 2), values.transpose(1, 2)),
        lambda weights, values: torch.einsum("ben,bde->bnd", weights, values),
        [torch.randn(6, 5, 2, dtype=dtype), torch.randn(6, 4, 5, dtype=dtype)],
        False,
    )


@pytest.mark.parametrize("width", [5, 16, 19])
def test_combine_experts_of_some_experts(dtype, width):
    expert_index = torch.tensor([[0, 3], [1, 3], [2, 3]])
    compare(
        lambda weights, values: combine_experts(weights, values, expert_index),
        lambda weights, values: torch.einsum("bnk,bnkd->bnd", weights, values[:, expert_index]),
        [torch.randn(6, 3, 2, dtype=dtype), torch.randn(6, 4, width, dtype=dtype)],
        True,
    )


@pytest.mark.parametrize("strange_gradient", [False, True])
@pytest.mark.parametrize(
    "shape", [(40, 2, 8), (1, 3, 5), (7, 1, 1), (9, 2, 15), (6, 2, 16), (0, 2, 8)]
)
def test_softmax(dtype, shape, strange_gradient):
    logits = 8 * torch.randn(shape, dtype=dtype)
    compare(softmax, lambda logits: logits.softmax(-1), [logits], strange_gradient)
    assert softmax(logits).dtype == dtype


def test_softmax_of_strided_inputs(dtype):
    """Columns of a wider matrix, and a last dimension that is not contiguous."""
    for own in (lambda x: x[:, 3:13].view(-1, 2, 5), lambda x: x.view(6, 5, 4).transpose(1, 2)):
        compare(
            lambda x, own=own: softmax(own(x)),
            lambda x, own=own: own(x).softmax(-1),
            [torch.randn(6, 20, dtype=dtype)],
            False,
        )


def test_softmax_of_numbers_far_apart(dtype):
    numbers = torch.cat(
        [torch.linspace(-100, 0, 1001), torch.tensor([-torch.inf, -3e38, 3e38])]
    ).to(dtype)
    logits = torch.stack([numbers, torch.zeros_like(numbers), numbers.flip(0)], 1)[:, None]
    torch.testing.assert_close(softmax(logits), logits.softmax(-1), rtol=1e-6, atol=1e-37)
    assert softmax(torch.tensor([[[0, -torch.inf]]], dtype=dtype)).tolist() == [[[1, 0]]]


def test_softmax_of_what_is_no_number(dtype):
    logits = torch.randn(6, 1, 4, dtype=dtype)
    logits[1, 0, 0] = logits[2, 0, 3] = torch.nan
    logits[3, 0, 1] = torch.inf
    logits[4] = -torch.inf
    torch.testing.assert_close(softmax(logits), logits.softmax(-1), equal_nan=True)
    half = torch.randn(3, 2, 4).bfloat16()
    assert torch.equal(softmax(half), half.softmax(-1, dtype=torch.float32))


@pytest.mark.parametrize("width", [5, 16, 64, 100, 300])
@pytest.mark.parametrize("numbers", [0, 3])
@pytest.mark.parametrize("rows", [0, 1, 30])
def test_sums_of_rows_and_by_id(dtype, rows, numbers, width):
    ids = (
        torch.stack([torch.randint(0, 3, (rows,)), torch.randint(3, 9, (rows,))]).int().T
    )  # not contiguous
    places = RowIndex(ids, 10)  # nothing stands in the last row
    table, weight = (
        torch.randn(*shape, dtype=dtype, requires_grad=True)
        for shape in ((10, width), (width, numbers))
    )
    given, grad = torch.randn(numbers, rows, dtype=dtype).T, torch.randn(width, rows, dtype=dtype).T
    found, plain = (
        sum_rows(table, places, given, weight),
        table[ids.long()].sum(1) + given @ weight.T,
    )
    torch.testing.assert_close(found, plain)
    for one, other in zip(
        *(torch.autograd.grad(of, [table, weight], grad) for of in (found, plain)), strict=True
    ):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(sum_rows(table, places), table[ids.long()].sum(1))
    torch.testing.assert_close(
        places.scatter_sum(grad), torch.autograd.grad(table[ids.long()].sum(1), table, grad)[0]
    )


@pytest.mark.parametrize("strange", [3, -1])
def test_an_id_that_is_no_row_is_refused(strange):
    places = RowIndex(torch.tensor([[0, 1], [2, strange]], dtype=torch.int32), 3)
    with pytest.raises(IndexError, match="beyond the 3 rows"):
        sum_rows(torch.randn(3, 4), places)
    with pytest.raises(IndexError):
        places.scatter_sum(torch.randn(2, 4))


@pytest.mark.parametrize("outputs", [4, 16, 37])
def test_weight_gradients_of_a_folded_layer(dtype, outputs):
    field = torch.tensor([0, 0, 1, 2, 2], dtype=torch.int32)
    table, weight, bias = (
        torch.randn(*shape, dtype=dtype) for shape in ((5, 3), (outputs, 9), (outputs,))
    )
    weight.requires_grad_()
    bias.requires_grad_()
    plain = (
        torch.einsum("vd,ovd->vo", table, weight.view(outputs, 3, 3)[:, field.long()])
        + bias * (field == 0)[:, None]
    )
    folded, _ = fold(table, weight, bias, field)
    torch.testing.assert_close(folded, plain)
    grad = torch.randn(outputs, 5, dtype=dtype).T
    expected = torch.autograd.grad(plain, [weight, bias], grad)
    torch.testing.assert_close(torch.autograd.grad(folded, [weight, bias], grad), expected)
    out = torch.ones(9, outputs, dtype=dtype)  # which is added to
    by_bias = add_fold_weight_gradients(table, field, grad, out)
    torch.testing.assert_close((out.T - 1, by_bias), expected)


def test_a_folded_layer_with_a_bias(dtype):
    """The bias is added once a row, and either half of the gradients can be had alone."""
    field = torch.tensor([0, 0, 1, 1, 1], dtype=torch.int32)
    ids = torch.tensor([[0, 2], [1, 4], [1, 2]], dtype=torch.int32)
    table, weight, bias = (
        torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((5, 3), (4, 6), (4,))
    )
    folded, of_table = fold(table, weight, bias, field)
    out = sum_rows(folded, RowIndex(ids, 5))
    plain = F.linear(table[ids.long()].flatten(1), weight, bias)
    torch.testing.assert_close(out, plain)
    upstream = torch.randn_like(out)
    expected = torch.autograd.grad(plain, [table, weight, bias], upstream)
    found = torch.autograd.grad(out, [weight, bias, of_table], upstream, retain_graph=True)
    (by_table,) = torch.autograd.grad(of_table, [table], found[2])
    for one, other in zip((by_table, *found[:2]), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("width", [5, 16, 19])
@pytest.mark.parametrize("some", [False, True])
def test_gradients_of_mixtures_apart(dtype, some, width):
    """Those of the experts by mixture: one backward pass each, with the other mixtures' gradients
    set to 0.
    """
    expert_index = torch.tensor([[0, 3], [1, 3], [2, 3]]) if some else None
    weights = torch.rand(6, 3, 2 if some else 4, dtype=dtype, requires_grad=True)
    experts = torch.randn(6, 4, width, dtype=dtype, requires_grad=True)
    grad = torch.randn(6, 3, width, dtype=dtype)
    by_mixture, by_weights = combine_experts_vjp(weights, experts, expert_index, grad)
    out = combine_experts(weights, experts, expert_index)
    assert by_mixture.shape == (3, 6, 4, width)
    for n in range(3):
        alone = torch.zeros_like(grad)
        alone[:, n] = grad[:, n]
        (expected,) = torch.autograd.grad(out, experts, alone, retain_graph=True)
        torch.testing.assert_close(by_mixture[n], expected)
    torch.testing.assert_close(by_weights, torch.autograd.grad(out, weights, grad)[0])
    # the form for other devices and mixed types
    mixed, mixed_weights = combine_experts_vjp(
        weights.float(), experts.bfloat16(), expert_index, grad.bfloat16()
    )
    torch.testing.assert_close(mixed.to(dtype), by_mixture, rtol=0.05, atol=0.05)
    torch.testing.assert_close(mixed_weights.to(dtype), by_weights, rtol=0.05, atol=0.1)
