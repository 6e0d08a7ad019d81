"""Each compiled kernel against its plain PyTorch form: values and all gradients."""

import pytest
import torch
import torch.nn.functional as F

from mtlkit.models import folding
from mtlkit.models.folding import Places, fold, sum_rows
from mtlkit.models.kernels import mix_gradients, mix_shared

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(params=TOLERANCE, ids=str)
def dtype(request):
    torch.manual_seed(0)
    return request.param


def compare(kernel, plain, inputs, strange_gradient):
    """Equal outputs, and equal gradients of all inputs for an upstream gradient of any memory layout."""
    results = []
    for function in (kernel, plain):
        leaves = [value.clone().requires_grad_() for value in inputs]
        out = function(*leaves)
        upstream = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
        if strange_gradient:
            upstream = upstream.transpose(0, -1).contiguous().transpose(0, -1)
            assert not upstream.is_contiguous()
        results.append([out, *torch.autograd.grad(out, leaves, upstream)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=TOLERANCE[one.dtype], atol=TOLERANCE[one.dtype])


@pytest.mark.parametrize("strange_gradient", [False, True])
@pytest.mark.parametrize(("width", "outputs", "vocabularies"), [(1, 3, (4,)), (8, 33, (3, 9, 2)), (5, 2, (6, 1, 1, 7))])
def test_embed_linear(dtype, width, outputs, vocabularies, strange_gradient):
    rows = 50
    starts = torch.tensor([0, *vocabularies[:-1]]).cumsum(0)
    ids = torch.stack([torch.randint(v, (rows,)) for v in vocabularies], -1).int() + starts.int()
    field = torch.repeat_interleave(torch.arange(len(vocabularies)), torch.tensor(vocabularies)).int()
    table = torch.randn(sum(vocabularies), width, dtype=dtype)
    whole = torch.randn(outputs, width * len(vocabularies) + 3, dtype=dtype)
    compare(
        # a slice of a wider layer, as in models
        lambda table, whole: sum_rows(fold(table, whole[:, 1:-2], None, field)[0], Places(ids, len(table))),
        lambda table, whole: F.linear(table[ids.long()].flatten(1), whole[:, 1:-2]),
        [table, whole],
        strange_gradient,
    )


@pytest.mark.parametrize("strange_gradient", [False, True])
@pytest.mark.parametrize("shape", [(40, 2, 5, 16), (7, 1, 1, 3), (3, 4, 2, 1)])
def test_mix_shared(dtype, shape, strange_gradient):
    rows, gates, experts, width = shape
    compare(
        mix_shared,
        lambda weights, values: torch.einsum("bne,bed->bnd", weights, values),
        [torch.randn(rows, gates, experts, dtype=dtype), torch.randn(rows, experts, width, dtype=dtype)],
        strange_gradient,
    )


def test_mix_shared_of_strided_inputs(dtype):
    compare(
        lambda weights, values: mix_shared(weights.transpose(1, 2), values.transpose(1, 2)),
        lambda weights, values: torch.einsum("ben,bde->bnd", weights, values),
        [torch.randn(6, 5, 2, dtype=dtype), torch.randn(6, 4, 5, dtype=dtype)],
        False,
    )


@pytest.mark.parametrize("rows", [1, 7, 8, 30])
def test_sums_by_id_in_blocks(dtype, rows, monkeypatch):
    """Blocks of rows that fit, that do not, and more of them than rows."""
    monkeypatch.setattr(folding, "BLOCK", 8)
    ids = torch.stack([torch.randint(0, 3, (rows,)), torch.randint(3, 9, (rows,))], 1).int()
    values = torch.randn(rows, 5, dtype=dtype)
    expected = torch.zeros(10, 5, dtype=dtype)  # nothing stands in the last row
    for field in range(2):
        expected.index_add_(0, ids[:, field], values)
    places = Places(ids, 10)
    for _ in range(2):  # the second time with what was sorted the first time
        torch.testing.assert_close(places.sum_by_id(values), expected)


def test_a_folded_layer_with_a_bias(dtype):
    """The bias is added once a row, and either half of the gradients can be had alone."""
    field = torch.tensor([0, 0, 1, 1, 1], dtype=torch.int32)
    ids = torch.tensor([[0, 2], [1, 4], [1, 2]], dtype=torch.int32)
    table, weight, bias = (torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((5, 3), (4, 6), (4,)))
    folded, of_table = fold(table, weight, bias, field)
    out = sum_rows(folded, Places(ids, 5))
    plain = F.linear(table[ids.long()].flatten(1), weight, bias)
    torch.testing.assert_close(out, plain)
    upstream = torch.randn_like(out)
    expected = torch.autograd.grad(plain, [table, weight, bias], upstream)
    found = torch.autograd.grad(out, [weight, bias, of_table], upstream, retain_graph=True)
    (by_table,) = torch.autograd.grad(of_table, [table], found[2])
    for one, other in zip((by_table, *found[:2]), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("some", [False, True])
def test_gradients_of_mixtures_apart(dtype, some):
    """Those of the experts by mixture: one backward pass each, with the other mixtures' gradients set to 0."""
    reach = torch.tensor([[0, 3], [1, 3], [2, 3]]) if some else None
    weights = torch.rand(6, 3, 2 if some else 4, dtype=dtype, requires_grad=True)
    experts = torch.randn(6, 4, 5, dtype=dtype, requires_grad=True)
    grad = torch.randn(6, 3, 5, dtype=dtype)
    by_mixture, by_weights = mix_gradients(weights, experts, reach, grad)
    out = mix_shared(weights, experts, reach)
    assert by_mixture.shape == (3, 6, 4, 5)
    for n in range(3):
        alone = torch.zeros_like(grad)
        alone[:, n] = grad[:, n]
        (expected,) = torch.autograd.grad(out, experts, alone, retain_graph=True)
        torch.testing.assert_close(by_mixture[n], expected)
    torch.testing.assert_close(by_weights, torch.autograd.grad(out, weights, grad)[0])
    # the form for other devices and mixed types
    mixed, mixed_weights = mix_gradients(weights.float(), experts.bfloat16(), reach, grad.bfloat16())
    torch.testing.assert_close(mixed.to(dtype), by_mixture, rtol=0.05, atol=0.05)
    torch.testing.assert_close(mixed_weights.to(dtype), by_weights, rtol=0.05, atol=0.1)
